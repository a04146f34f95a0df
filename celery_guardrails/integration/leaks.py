"""Looks at the process before and after each task, names what leaks, and asks for the process to be replaced."""

from __future__ import annotations

import gc
import os
import threading
from typing import TYPE_CHECKING, Any

from celery import signals

from ..events import TaskLeaked
from ..policy.leaks import LeakWatch, Snapshot
from . import sampling
from .logs import logger

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["Watching", "recycling", "watch"]

_UID = "celery_guardrails.leaks"


class _Recycling:
    """Whether this pool process shall end after the task that has just finished."""

    wanted = False


recycling = _Recycling()


def watch(rails: Guardrails, *, recycle: bool) -> Watching:
    """Look at every task that runs from now on in this process, and in those that are forked from it.

    Args:
        rails: whose settings say how.
        recycle: this process, or what is forked from it, can be replaced.
    """
    watching = Watching(rails, recycle=recycle)
    for signal, receiver in ((signals.task_prerun, watching.before), (signals.task_postrun, watching.after)):
        signal.disconnect(dispatch_uid=_UID)
        signal.connect(receiver, weak=False, dispatch_uid=_UID)
    return watching


class Watching:
    """Receiver of Celery's signals around each task.

    What is new after a run is the run's only where it ran alone: of two that overlap (threads, gevent) nobody can say whose it is,
    and nothing is noted of either.

    Args:
        rails: whose listeners are told.
        recycle: ask for the process to be replaced.
    """

    def __init__(self, rails: Guardrails, *, recycle: bool) -> None:
        self._rails = rails
        self._recycle = recycle
        self._lock = threading.Lock()
        self._pid = 0
        self._begin()

    def _begin(self) -> None:
        settings = self._rails.settings
        self._pid = os.getpid()
        self._sampler = sampling.Sampler()
        self._watch = LeakWatch(runs=settings.leak_runs, memory=settings.leak_memory)
        self._running: set[str] = set()
        #: The task that began alone and still is, and what there was before it.
        self._alone: tuple[str, Snapshot] | None = None

    def before(self, task_id: str, task: Any, **_: Any) -> None:
        """Look, if no other task runs."""
        if task.request.is_eager:
            return
        with self._lock:
            if self._pid != os.getpid():
                self._begin()  # what was seen before the fork is the parent's
            alone = not self._running
            self._running.add(task_id)
            self._alone = (task_id, self._sampler.snapshot()) if alone else None

    def after(self, task_id: str, task: Any, **_: Any) -> None:
        """Look again, if no other task has run meanwhile."""
        if task.request.is_eager:
            return
        with self._lock:
            self._running.discard(task_id)
            begun, self._alone = self._alone, None
            if begun is not None and begun[0] == task_id:
                self._compare(task.name, task_id, begun[1])

    def _compare(self, task: str, task_id: str, before: Snapshot) -> None:
        after = self._sampler.snapshot()
        self._watch.ran(task)
        heavy = self._watch.grew(task, before.memory, after.memory)
        fresh = list(self._watch.new(before, after))
        for kind, numbers in fresh:
            self._watch.left(task, kind, sampling.describe(kind, numbers))
        if not (heavy or fresh) or not self._found(task):
            return
        gc.collect()  # a cycle of objects may hold what nobody uses any more
        self._watch.freed(task, (after.memory or 0) - (sampling.memory() or 0))
        for leak in self._found(task):
            self._watch.told(task, leak)
            recycling.wanted = recycling.wanted or self._recycle
            text = f"{leak}; the process is replaced" if self._recycle else str(leak)
            self._rails.emit(TaskLeaked(task, task_id, leak.kind, leak.amount, leak.runs, leak.names, self._recycle, text))

    def _found(self, task: str) -> list[Any]:
        return self._watch.leaks(task, sampling.marks(self._watch.suspects(task)))


def say_what_is_unseen() -> None:
    """Log what ``guardrails_watch_leaks`` cannot see on this system."""
    missing = sampling.unseen()
    if missing:
        logger.warning("guardrails_watch_leaks: this system does not show a process its own %s: these are not watched", ", ".join(missing))
