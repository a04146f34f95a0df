"""Names tasks that run beyond their limit where nothing ends them; their lease is renewed until they truly end.

The threads and solo pools know no time limits, gevent no soft one, and a task may catch ``SoftTimeLimitExceeded`` and go on.
"""

from __future__ import annotations

import os
import sys
import time
from types import FrameType
from typing import Any

from celery import bootsteps
from celery.worker import state as worker_state
from celery.worker.consumer import Tasks
from celery.worker.control import inspect_command

from ..events import Abandoned, Overran, StillRunning
from ..integration.app import Guardrails, ensure_guardrails
from ..integration.mainstate import state
from ..policy.overrun import Overruns, Running
from ..policy.verdict import deadline_of
from .background import Background

__all__ = ["OverrunWatch", "limit_of", "report_abandoned"]

#: Seconds between two looks.
_INTERVAL = 1.0
#: Lines of a thread that are shown.
_LINES = 3


class OverrunWatch(bootsteps.StartStopStep):
    """Looks at what runs from a thread of the main process."""

    label = "guardrails overruns"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._background = Background("guardrails-overruns", self._round)
        self._seen: dict[str, tuple[Any, float | None, float]] = {}
        _shown.overruns = self._overruns = Overruns()

    def start(self, c: Any) -> None:
        """Start with the consumer; after a reconnect the thread runs already."""
        self._background.start()

    def stop(self, c: Any) -> None:
        """Nothing: what still runs is waited for after the consumer has stopped."""

    def shutdown(self, c: Any) -> None:
        """End the thread: the pool is gone, and with it what was still reported."""
        self._background.stop()
        self._round()

    def _round(self) -> float:
        live = {holder: request for holder, request in list(state.live.items()) if request in worker_state.active_requests}
        running = {holder: self._running(holder, request) for holder, request in live.items()}
        due, ended = self._overruns.look(running)
        for holder in due:
            request, now = live[holder], running[holder]
            limit = now.limit or 0.0
            self._rails.emit(StillRunning(request.name, request.id, request.delivery.key, now.seconds, limit, where_is(request)))
        for holder, end in ended.items():
            request = self._seen[holder][0]
            self._rails.emit(Overran(request.name, request.id, request.delivery.key, end.seconds, end.limit))
        self._seen = {holder: seen for holder, seen in self._seen.items() if holder in live}
        return _INTERVAL

    def _running(self, holder: str, request: Any) -> Running:
        seen = self._seen.get(holder)
        if seen is None:
            seen = self._seen[holder] = (request, *limit_of(self._rails, request))
        return Running(_age(request), seen[1], seen[2])


def limit_of(rails: Guardrails, request: Any) -> tuple[float | None, float]:
    """Return the seconds that a task may run before it is reported, and in which the pool is expected to end it afterwards."""
    task, pool = request.task, getattr(state.consumer, "pool", None)
    options = getattr(pool, "options", {})  # of the command line: --time-limit
    hard, soft = request.own_time_limits
    hard = hard or task.time_limit or options.get("timeout")
    soft = soft or task.soft_time_limit or options.get("soft_timeout")
    if not runs_here(request):
        return soft, max(5.0, 0.1 * soft) if soft else 0.0  # a task may clean up; the hard limit is the pool's
    limits = [soft]
    if not getattr(pool, "is_green", False):
        deadline = deadline_of(request.delivery, rails.limits_of(task.guard_options))
        limits += [hard, None if deadline is None else max(0.0, deadline - request.time_start)]
    known = [limit for limit in limits if limit]
    return (min(known) if known else None), 0.0


def runs_here(request: Any) -> bool:
    """Whether a task runs in this very process, in a thread or greenlet that nobody can kill."""
    return request.worker_pid == os.getpid() or bool(getattr(getattr(state.consumer, "pool", None), "is_green", False))


def where_is(request: Any) -> str:
    """Return the innermost lines of the thread that runs a task: file, line and function, and nothing of what is in them."""
    frame = _frame(request) if runs_here(request) else None
    lines: list[str] = []
    while frame is not None and len(lines) < _LINES and not str(frame.f_globals.get("__name__")).startswith("celery_guardrails."):
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines) or "unknown"


def _frame(request: Any) -> FrameType | None:
    greenlets = getattr(getattr(state.consumer, "pool", None), "_pool_map", None)
    if greenlets is not None:  # gevent's: its number for the task is that of the greenlet
        frame: FrameType | None = getattr(greenlets.get(request.worker_pid), "gr_frame", None)
        return frame
    return sys._current_frames().get(request.thread)


def report_abandoned(rails: Guardrails) -> None:
    """Report what the worker, at the end of its drain time, can neither end nor hand back."""
    for request in list(state.live.values()):
        if runs_here(request) and request in worker_state.active_requests and not request.acknowledged:
            rails.emit(Abandoned(request.name, request.id, request.delivery.key, _age(request), where_is(request)))


def _age(request: Any) -> float:
    seconds: float = time.time() - request.time_start
    return max(0.0, seconds)


class _Shown:
    overruns = Overruns()


_shown = _Shown()
#: A control command is called with something else by the name of ``state``.
_live = state.live


@inspect_command(name="guardrails_overruns", visible=False)
def overruns(state: Any) -> list[dict[str, Any]]:
    """Answer ``guardrails overruns``: the tasks that run beyond their limit."""
    found = []
    for holder, running in _shown.overruns.present.items():
        request = _live.get(holder)
        if request is not None:
            known = {"name": request.name, "id": request.id, "key": request.delivery.key}
            found.append({**known, "seconds": round(running.seconds, 1), "limit": running.limit, "where": where_is(request)})
    return found
