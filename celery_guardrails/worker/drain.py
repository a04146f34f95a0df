"""SIGTERM: tell the tasks, give them their time, hand back the rest."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from typing import Any

from celery import bootsteps, signals
from celery.utils.log import get_logger

from ..integration import stopping
from ..integration.app import ensure_guardrails
from ..integration.mainstate import state
from ..integration.solitude import solitude
from .archiving import check_archive
from .overruns import report_abandoned, runs_here

__all__ = ["Drain"]

logger = get_logger(__name__)


class Drain(bootsteps.Step):
    """Listens to the worker's shutdown signals.

    Celery's warm shutdown waits for running tasks without end. After ``guardrails_drain_seconds`` the children that
    still run are killed: their messages go back, their leases are released, and nobody is charged.
    """

    label = "guardrails drain"

    def __init__(self, w: Any, **kwargs: Any) -> None:
        super().__init__(w, **kwargs)
        self._rails = ensure_guardrails(w.app)
        _ = (
            self._rails.settings,
            self._rails.store_url,
            self._rails.redact,
        )  # the first step of a worker: what is configured wrong is said here
        self._rails.alerts.prepare()
        check_archive(self._rails)
        for task in list(w.app.tasks.values()):
            if getattr(task, "guarded", False):
                self._rails.check_task(task.guard_options)
        solitude.open(_concurrency(w, kwargs.get("autoscale")))
        self._told = threading.Event()
        self._over = threading.Event()
        stopping.reset()
        state.killing = False
        signals.worker_ready.connect(self.on_ready, weak=False)
        signals.worker_shutting_down.connect(self.on_shutting_down, weak=False)
        signals.worker_shutdown.connect(self.on_shutdown, weak=False)
        self._wait_softly = getattr(w, "wait_for_soft_shutdown", None)
        if self._wait_softly is not None:
            w.wait_for_soft_shutdown = self.on_soft_shutdown
        self._pid = os.getpid()
        atexit.register(self._at_exit)

    def on_ready(self, **_: Any) -> None:
        """Start to listen. Not in the signal's handler: it may have interrupted the start of another thread, and its lock."""
        threading.Thread(target=self._wait, name="guardrails-drain", daemon=True).start()

    def _wait(self) -> None:
        self._told.wait()
        if not self._over.wait(self._rails.settings.drain_seconds):
            self._time_is_up()

    def on_shutting_down(self, how: str = "Warm", **_: Any) -> None:
        """SIGTERM, SIGQUIT or SIGINT has come."""
        stopping.set_stopping()
        if how == "Cold":
            state.killing = True  # Celery kills the children now: that is no crash of theirs
        self._told.set()

    def on_soft_shutdown(self) -> None:
        """A soft shutdown begins (Celery 5.5): it comes before the signal (celery/apps/worker.py), and is the time to end loops in."""
        stopping.set_stopping()
        if self._wait_softly is not None:
            self._wait_softly()

    def on_shutdown(self, **_: Any) -> None:
        """The pool is gone: what it did not finish starts at once elsewhere, and does not wait for its lease to end."""
        self._over.set()
        left = list(state.live.values())
        state.live.clear()
        for request in left:
            if not request.acknowledged:
                request.surrender()

    def _at_exit(self) -> None:
        """A cold shutdown sends no ``worker_shutdown`` (celery/worker/worker.py, ``terminate``)."""
        if os.getpid() == self._pid:
            self.on_shutdown()

    def _time_is_up(self) -> None:
        report_abandoned(self._rails)
        running = [r for r in list(state.live.values()) if not r.acknowledged and r.worker_pid is not None and not runs_here(r)]
        if not running:
            return
        state.killing = True
        for request in running:
            logger.warning(
                "%s[%s] is handed back: it still runs after guardrails_drain_seconds = %s",
                request.name,
                request.id,
                self._rails.settings.drain_seconds,
            )
            try:
                os.kill(request.worker_pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _concurrency(w: Any, autoscale: Any) -> int:
    """Return how many tasks this worker may run at a time; its pool is not there yet."""
    if w.pool_cls.__module__.endswith(".solo"):
        return 1
    most = str(autoscale).partition(",")[0] if isinstance(autoscale, str) else autoscale[0] if autoscale else 0
    return max(int(most), int(w.concurrency or 1))
