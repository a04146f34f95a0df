"""The first look at a message, in the worker's main process, before the pool: must not block for long."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery.utils.log import get_logger
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state as worker_state
from celery.worker.strategy import default

from ..errors import PublishFailed
from .app import ensure_guardrails
from .mainstate import state
from .translate import new_holder, queue_of, restore_origin, to_delivery

__all__ = ["SHORT", "guarded", "seconds_to_wait"]

logger = get_logger(__name__)

#: Seconds; a shorter wait is not worth a trip through the broker.
SHORT = 0.5


def guarded(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """Celery's default strategy, but nothing with an ETA stays unacknowledged in this worker's memory.

    Held in memory it would raise the prefetch count, meet RabbitMQ's consumer timeout, or Redis' visibility timeout,
    which starts it once more.
    """
    inner = default(task, app, consumer, **kwargs)
    rails = ensure_guardrails(app)

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **extra: Any) -> Any:
        restore_origin(message)
        wait = seconds_to_wait(message.headers, app, rails.clock.now()) if message.headers and message.headers.get("eta") else 0.0
        if wait > SHORT and message.headers.get("id") not in worker_state.revoked:
            delivery = to_delivery(
                message,
                task_id=str(message.headers.get("id")),
                task_name=task.name,
                key=None,
                fingerprint=None,
                queue=queue_of(message, state.task_consumer),
                holder=new_holder(),
                first=rails.clock.now(),
            )
            try:
                rails.main_guard.postpone(delivery, wait)
            except PublishFailed as exc:
                logger.warning("%s[%s] waits in memory, the broker did not take it back: %r", task.name, delivery.task_id, exc)
            else:
                ack(logger, consumer.connection_errors)
                return None
        return inner(message, body, ack, reject, callbacks, **extra)

    return on_message


def seconds_to_wait(headers: Any, app: Any, now: float) -> float:
    """Return the seconds from ``now`` (unix time in seconds) until a message's ETA, or 0 where it has none that can be read."""
    try:
        eta = maybe_iso8601(headers.get("eta"))
        if not isinstance(eta, datetime):
            return 0.0
        due: float = maybe_make_aware(eta, app.timezone).timestamp()
        return due - now
    except (ValueError, TypeError, AttributeError, OverflowError):
        return 0.0  # Celery's own strategy refuses it, and it is dead-lettered as invalid
