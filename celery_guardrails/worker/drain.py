"""SIGTERM: tell the tasks, give them their time, hand back the rest."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from billiard.common import REMAP_SIGTERM
from celery import bootsteps, platforms, signals
from celery.apps import worker as worker_app
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from .. import events
from ..integration import stopping
from ..integration.app import ensure_guardrails
from ..integration.mainstate import state
from ..integration.solitude import solitude
from .archiving import check_archive
from .cutting_off import CutOff, live
from .listing import listed
from .overruns import report_abandoned

__all__ = ["Drain"]

logger = get_logger(__name__)

#: Seconds that a child gets to end after a cold shutdown has told it to; a body may swallow what it was sent, or sit in C code.
_COLD_GRACE = 5.0
#: Seconds that children without a task get to exit when the drain time is over.
_IDLE_GRACE = 3.0


class Drain(bootsteps.StartStopStep):
    """Listens to the worker's shutdown signals.

    Celery's warm shutdown waits for running tasks without end. After ``guardrails_drain_seconds``, or at a second signal, the
    children that still run are killed: their messages go back, their leases are released, and nobody is charged. Tasks that run
    in this process itself (threads, gevent, solo) end with it: see :class:`~celery_guardrails.worker.cutting_off.CutOff`.
    """

    label = "guardrails drain"

    def __init__(self, w: Any, **kwargs: Any) -> None:
        super().__init__(w, **kwargs)
        self._worker = w
        self._rails = ensure_guardrails(w.app)
        # the first step of a worker: what is configured wrong is said here
        _ = self._rails.settings, self._rails.store_url, self._rails.redact
        self._rails.alerts.prepare()
        check_archive(self._rails)
        for task in list(w.app.tasks.values()):
            if getattr(task, "guarded", False):
                self._rails.check_task(task.guard_options)
        solitude.open(_concurrency(w, kwargs.get("autoscale")))
        # A queue that a signal's handler may put into while it interrupts another one that does; an Event's lock may not be met twice.
        self._words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._told = False
        self._told_at = time.monotonic()
        self._over = False
        self._cut_off = CutOff(w, self._rails)
        stopping.reset()
        state.killing = state.started = False
        state.drain_ends = None
        state.tally.reset()
        signals.worker_ready.connect(self.on_ready, weak=False)
        signals.worker_shutting_down.connect(self.on_shutting_down, weak=False)
        signals.worker_shutdown.connect(self.on_shutdown, weak=False)
        self._pid = os.getpid()
        atexit.register(self._at_exit)

    @property
    def _forks(self) -> bool:
        """Whether tasks run in processes of their own, which can be killed one by one."""
        return isinstance(self._worker.pool, PreforkPool)

    def start(self, w: Any) -> None:
        """Nothing to start before the worker is ready."""

    def stop(self, w: Any) -> None:
        """Nothing: :meth:`on_shutdown` comes when the pool is gone."""

    def terminate(self, w: Any) -> None:
        """Nothing, see :meth:`stop`."""

    def on_ready(self, **_: Any) -> None:
        """Start to listen. Not in the signal's handler: it may have interrupted the start of another thread, and its lock."""
        state.started = True
        if self._forks:
            self._hear_of_soft_shutdown()
        else:
            self._take_signals("SIGQUIT", *(["SIGTERM"] if REMAP_SIGTERM == "SIGQUIT" else []))
        threading.Thread(target=self._wait, name="guardrails-drain", daemon=True).start()

    # -- being told -------------------------------------------------------------------------------------------

    def on_shutting_down(self, sig: str = "SIGTERM", how: str = "Warm", **_: Any) -> None:
        """SIGTERM, SIGQUIT or SIGINT has come; called in the signal's handler, so nothing here may wait."""
        if how == "Cold" and self._forks:
            state.killing = True  # Celery kills the children now: that is no crash of theirs
        self._tell("cold" if how == "Cold" else "warm")
        if sig == "SIGINT" and not self._forks and threading.current_thread() is threading.main_thread():
            self._take_signals("SIGINT")  # where Celery has just put its cold shutdown

    def close(self, w: Any) -> None:
        """The worker stops without a signal (``celery control shutdown``)."""
        if not self._told:
            self._tell("warm")

    def _tell(self, word: str) -> None:
        stopping.set_stopping()
        if not self._told:
            self._told, self._told_at = True, time.monotonic()
        self._words.put(word)

    def _hear_of_soft_shutdown(self) -> None:
        """Tell the tasks at the beginning of Celery's soft shutdown (5.5): its signal comes at the end (apps/worker.py)."""
        wait: Callable[[], None] | None = getattr(self._worker, "wait_for_soft_shutdown", None)
        if wait is None:
            return

        def told_first() -> None:
            stopping.set_stopping()
            if not self._told:
                self._told, self._told_at = True, time.monotonic()
            wait()

        self._worker.wait_for_soft_shutdown = told_first

    def _take_signals(self, *names: str) -> None:
        """Take the signals of a cold shutdown over, in a pool whose tasks run in this process.

        Celery's handler cannot work there: threads and solo know no ``terminate_job`` (the error is raised in whatever runs, a
        solo worker's task would fail with it), and gevent acknowledges what it kills. So it is a warm shutdown with
        ``worker_soft_shutdown_timeout`` instead of the drain time.
        """
        for name in names:
            platforms.signals[name] = self._on_cold

    def _on_cold(self, number: int, frame: object) -> None:
        worker_app.safe_say("worker: Cold shutdown (MainProcess)", sys.__stdout__)
        signals.worker_shutting_down.send(sender=self._worker.hostname, sig=signal.Signals(number).name, how="Cold", exitcode=0)
        if worker_state.should_stop is None:
            worker_state.should_stop = 0

    # -- the drain time ---------------------------------------------------------------------------------------

    def _wait(self) -> None:
        word = self._words.get()
        state.drain_ends = time.monotonic() + (0.0 if word == "over" else self._seconds(word))
        try:
            if word != "over" and self._words.get(timeout=self._seconds(word)) == "over":
                return
            logger.warning("told a second time: nothing is waited for any longer")
        except queue.Empty:
            pass
        if word != "over":
            self._time_is_up()

    def _seconds(self, word: str) -> float:
        if word == "warm":
            return self._rails.settings.drain_seconds
        return _COLD_GRACE if self._forks else float(self._worker.app.conf.get("worker_soft_shutdown_timeout") or 0.0)

    def _time_is_up(self) -> None:
        if not self._forks:
            report_abandoned(self._rails)
            self._cut_off(self._drained)
            return
        running = live()
        if running:
            state.killing = True
        for request in running:
            logger.warning("%s[%s] is handed back: it still runs, and the drain time is over", request.name, request.id)
            _kill(request.worker_pid)
        self._end_idle_children()

    def _end_idle_children(self) -> None:
        """End children that have nothing to do and still do not exit: billiard may wait 30 s for them (pool.py, ``Worker``)."""
        try:
            if self._words.get(timeout=_IDLE_GRACE) == "over":
                return
        except queue.Empty:
            pass
        busy = {request.worker_pid for request in listed(worker_state.active_requests)}
        for child in list(getattr(self._worker.pool._pool, "_pool", ())):
            if child.pid not in busy:
                _kill(child.pid)

    # -- the end ----------------------------------------------------------------------------------------------

    def on_shutdown(self, **_: Any) -> None:
        """The pool is gone: what it did not finish starts at once elsewhere, and does not wait for its lease to end."""
        if self._over or self._cut_off.begun:
            return
        self._over = True
        self._words.put("over")
        left = live()
        state.live.clear()
        for request in left:
            state.tally.count("handed_back")
            request.surrender()
        if self._told:
            self._drained()

    def _drained(self) -> None:
        tally = state.tally
        self._rails.emit(
            events.Drained(tally.finished, tally.checkpointed, tally.handed_back, tally.abandoned, seconds=time.monotonic() - self._told_at)
        )

    def _at_exit(self) -> None:
        """A cold shutdown sends no ``worker_shutdown`` (celery/worker/worker.py, ``terminate``)."""
        if os.getpid() == self._pid:
            self.on_shutdown()


def _concurrency(w: Any, autoscale: Any) -> int:
    """Return how many tasks this worker may run at a time; its pool is not there yet."""
    if w.pool_cls.__module__.endswith(".solo"):
        return 1
    most = str(autoscale).partition(",")[0] if isinstance(autoscale, str) else autoscale[0] if autoscale else 0
    return max(int(most), int(w.concurrency or 1))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
