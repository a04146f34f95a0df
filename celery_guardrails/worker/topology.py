"""Declares the dead letter exchange and queues, and the delays, before the worker consumes."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.consumer import Connection

from ..errors import GuardrailsConfigError, PublishFailed
from ..integration.app import ensure_guardrails
from ..integration.topology import declare_dead_letters

__all__ = ["DeadLetterTopology"]

logger = get_logger(__name__)


class DeadLetterTopology(bootsteps.StartStopStep):
    """Runs after every connect: a broker that lost its definitions gets them back."""

    label = "guardrails topology"
    requires = (Connection,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._check(c)

    def _check(self, c: Any) -> None:
        """Say what is wrong at start, not at the first task."""
        settings = self._rails.settings
        one_process = getattr(self._rails.store, "one_process_only", False)
        if one_process and getattr(c.pool, "uses_semaphore", False):
            raise GuardrailsConfigError(
                f"guardrails_store = {settings.store!r}: the prefork pool runs tasks in other processes, which do not share it; "
                "use redis://…, or --pool threads, gevent or solo"
            )

    def start(self, c: Any) -> None:
        """Declare."""
        try:
            declare_dead_letters(self._rails.broker, [queue.name for queue in c.app.amqp.queues.consume_from.values()])
        except PublishFailed as exc:
            # Not a reason to consume nothing: a dead letter that finds no queue declares it.
            logger.warning("dead letter queues are not declared yet: %r", exc)
