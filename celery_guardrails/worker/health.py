"""Whether the worker lives, and whether it is ready: what ``/healthz`` and ``/readyz`` answer.

It lives unless a restart would help: its loop stands still although broker and store are there. It is ready when it takes messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..integration import stopping
from ..integration.app import Guardrails, ensure_guardrails
from ..integration.brokers import make_broker
from ..integration.mainstate import state
from .background import Background

__all__ = ["Health", "Pulse", "Question", "pulse"]

logger = get_logger(__name__)

#: Seconds that the loop of the main process may stand still while broker and store answer, before the worker counts as dead. Celery
#: waits up to 30 s between two attempts to connect, and notices only then that the broker is back.
STUCK = 90.0
#: Seconds after which a loop that stands still takes no messages. Celery's loops turn every second or two when there is nothing to do.
STANDS = 15.0
#: Seconds between two questions, while the last one was answered and while it was not.
_CALM, _ALERT = 5.0, 1.0
#: Seconds without an answer after which what was asked counts as away: two questions, and the time that one may take.
_SILENT = 20.0
#: Seconds that the broker has for its answer.
_PATIENCE = 5.0
_SOLO = "celery.concurrency.solo"


class _Pulse:
    """When the loop of the main process turned last (monotonic seconds)."""

    turned = time.monotonic()

    def beat(self) -> None:
        """Note a turn."""
        self.turned = time.monotonic()


pulse = _Pulse()


class Pulse(bootsteps.StartStopStep):
    """Notes every turn of the consumer's loop."""

    label = "guardrails pulse"

    def include_if(self, c: Any) -> bool:
        """Only where somebody asks."""
        return ensure_guardrails(c.app).settings.http is not None

    def create(self, c: Any) -> None:
        """Without an event loop of Celery's (gevent) the loop calls this function each time (worker/loops.py, ``synloop``)."""
        perform: Callable[[], None] = c.perform_pending_operations

        def turn() -> None:
            pulse.beat()
            perform()

        c.perform_pending_operations = turn

    def start(self, c: Any) -> None:
        """The loop begins next."""
        pulse.beat()

    def stop(self, c: Any) -> None:
        """Nothing."""

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called for every connection; Celery clears the timers when one is lost."""
        pulse.beat()
        hub.call_repeatedly(1.0, pulse.beat)


class Question:
    """Something that is asked every few seconds, from a thread of its own.

    Args:
        name: of who is asked.
        ask: raises, or takes long, where there is no answer.
    """

    def __init__(self, name: str, ask: Callable[[], object]) -> None:
        self._name = name
        self._ask = ask
        self._answered: float | None = None
        self._failed = False
        self._since = float("inf")
        self.background = Background(f"guardrails-ask-{name}", self.round)

    def round(self) -> float:
        """Ask once; returns the seconds until the next time."""
        try:
            self._ask()
        except Exception as exc:  # noqa: BLE001 - whatever a driver raises: there was no answer
            if not self._failed:  # one line an outage; the others who need it say what it raised
                logger.warning("guardrails_http: the %s does not answer (%s): the worker is not ready", self._name, type(exc).__name__)
            self._failed = True
            return _ALERT
        now = time.monotonic()
        if self._failed or self.away(now):
            self._since = now
        self._failed, self._answered = False, now
        return _CALM

    @property
    def asked(self) -> bool:
        """Whether there is an answer yet, or that there is none."""
        return self._failed or self._answered is not None

    def away(self, now: float) -> bool:
        """Whether the last question was not answered, or is taking long."""
        return self._failed or self._answered is None or now - self._answered > _SILENT

    def since(self, now: float) -> float:
        """Return since when every question has been answered (monotonic seconds)."""
        return now if self.away(now) else self._since


class Health:
    """Looks at what the main process knows of itself.

    Args:
        w: the worker.
        rails: of its app.
    """

    def __init__(self, w: Any, rails: Guardrails) -> None:
        self._worker = w
        broker = make_broker(rails.app, rails.settings, timeout=_PATIENCE)  # one that nobody waits for who has work to do
        queues = rails.app.amqp.queues

        def ask_store() -> None:
            rails.store.ping()  # opened here, in the thread: this is called before the pool forks

        def ask_broker() -> None:
            broker.exists(next(iter(queues.consume_from or queues)))

        self.store, self.broker = Question("store", ask_store), Question("broker", ask_broker)

    def start(self) -> None:
        """Begin to ask."""
        pulse.beat()
        for question in (self.store, self.broker):
            question.background.start()

    def dead(self) -> str:
        """Return why a restart would help, or ""."""
        if stopping.is_stopping() or not state.started or self._may_stand_still():
            return ""
        now = time.monotonic()
        still = now - max(pulse.turned, self.store.since(now), self.broker.since(now))
        return f"the consumer's loop has not turned for {still:.0f} s" if still > STUCK else ""

    def unready(self) -> str:
        """Return why the worker takes no messages, or ""."""
        now = time.monotonic()
        if stopping.is_stopping():
            return "stopping"
        for name, question in (("broker", self.broker), ("store", self.store)):
            if question.asked and question.away(now):
                return f"{name} away"
        if not (state.started and self.broker.asked and self.store.asked):
            return "starting"
        if not state.taking:
            return "broker away"
        if now - pulse.turned > STANDS and not self._may_stand_still():
            return "loop stands still"
        return ""

    def _may_stand_still(self) -> bool:
        """Whether the pool is full and the loop waits for a place in it (gevent), or runs the task itself (solo)."""
        pool = self._worker.pool
        if self._worker.hub is not None and type(pool).__module__ != _SOLO:
            return False
        return len(worker_state.active_requests) >= (getattr(pool, "limit", None) or 1)
