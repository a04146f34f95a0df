"""A thread of the main process that does one thing every so often."""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery.utils.log import get_logger

__all__ = ["Background"]

logger = get_logger(__name__)


class Background:
    """Calls a function again and again until stopped; an error of it is logged and the next call comes all the same.

    A thread, not a timer of the hub: a soft shutdown blocks the hub, and leases must be renewed meanwhile. Celery
    starts a consumer step anew after every reconnect, so :meth:`start` does nothing while the thread runs. Where it was stopped and
    is still in its last round, held up by a server that does not answer, another begins beside it.

    Args:
        name: of the thread.
        work: does one round and returns the seconds until the next.
    """

    def __init__(self, name: str, work: Callable[[], float]) -> None:
        self._name = name
        self._work = work
        #: Of the present thread. Each has its own: one that does not come to its end in time must still find that it is over.
        self._stop = threading.Event()
        self._own = threading.local()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start unless running."""
        if self._thread is not None and self._thread.is_alive() and not self._stop.is_set():
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name=self._name, daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Stop after the present round; waits at most ``timeout`` seconds."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    @property
    def stopping(self) -> bool:
        """Whether the present round is the last one, for who asks within it."""
        return self._mine.is_set()

    def pause(self, seconds: float) -> None:
        """Wait within a round, but not longer than until :meth:`stop`."""
        self._mine.wait(seconds)

    @property
    def _mine(self) -> threading.Event:
        stop: threading.Event = getattr(self._own, "stop", self._stop)
        return stop

    def _run(self, stop: threading.Event) -> None:
        self._own.stop = stop
        last = ""
        while not stop.is_set():
            try:
                wait = self._work()
                last = ""
            except Exception as exc:  # noqa: BLE001 - a store or broker that is away must not end the renewal of leases
                wait = 0.5
                if repr(exc) != last:  # one line an outage, not two a second
                    last = repr(exc)
                    logger.warning("%s: %s; it goes on trying", self._name, last)
            stop.wait(wait)
