"""At the end of a worker, what it had taken and not begun goes back to its queue as if it had never been delivered.

Celery closes the channel and leaves the rest to the broker. A quorum queue counts that as a delivery (RabbitMQ 3.10: so it does
a reject, a nack and a lost connection), and dead-letters a message at its delivery limit: a few deploys, and a task is dead that
nobody ever started.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.consumer import Tasks

from ..integration.mainstate import state

__all__ = ["Returning"]

logger = get_logger(__name__)


class Returning(bootsteps.StartStopStep):
    """Gives back what has been counted before; the pool is gone by then, the channel is not yet closed."""

    label = "guardrails returning"
    requires = (Tasks,)

    def start(self, c: Any) -> None:
        """What came over a connection that was lost is the broker's to give back."""
        state.counted.clear()

    def stop(self, c: Any) -> None:
        """Nothing: the pool goes on after the consumer has stopped, and may still begin what it has got."""

    def shutdown(self, c: Any) -> None:
        """Give back what is left."""
        if c.connection is not None and c.connection.connected:
            for request in list(state.counted):
                if request.return_afresh():
                    # what the request has told Celery waits for an event loop that will not turn again
                    request.message.ack_log_error(logger, c.connection_errors)
