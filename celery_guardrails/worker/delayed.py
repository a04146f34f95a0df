"""On Redis, moves the messages whose time has come from the delay back into their queues."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker.consumer import Tasks

from ..integration.app import ensure_guardrails
from .background import Background

__all__ = ["DelayedPump"]

#: Seconds: the longest sleep, which is also how late a message may be that another process parked meanwhile.
_LONGEST = 0.5


class DelayedPump(bootsteps.StartStopStep):
    """Every worker pumps; a step of the pump is atomic in Redis, so they do not get in each other's way."""

    label = "guardrails delayed messages"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._background = Background("guardrails-delayed", self._round)

    def include_if(self, c: Any) -> bool:
        """RabbitMQ keeps the time itself."""
        return bool(hasattr(self._rails.broker, "pump"))

    def start(self, c: Any) -> None:
        """Start with the consumer; does nothing after a reconnect."""
        self._background.start()

    def stop(self, c: Any) -> None:
        """Stop with the consumer: what becomes due now is for others."""
        self._background.stop()

    def _round(self) -> float:
        pump: Any = self._rails.broker
        moved, next_due = pump.pump(100)
        if moved >= 100:
            return 0.0
        return min(_LONGEST, max(0.01, next_due / 1000)) if next_due >= 0 else _LONGEST
