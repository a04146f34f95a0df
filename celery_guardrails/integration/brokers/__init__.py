"""The :class:`~celery_guardrails.ports.Broker` port on kombu: one class per broker family, one instance per process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...config import Settings
from ...errors import GuardrailsConfigError
from .base import KombuBroker

if TYPE_CHECKING:
    from .amqp import AmqpBroker
    from .redis import RedisBroker

__all__ = ["KombuBroker", "make_broker"]


def make_broker(app: Any, settings: Settings, *, timeout: float = 10.0) -> AmqpBroker | RedisBroker:
    """Return the broker of an app, with a connection of its own that is opened at the first use.

    Args:
        app: the Celery app; its ``broker_write_url`` decides.
        settings: ours.
        timeout: seconds any single operation may take.

    Raises:
        GuardrailsConfigError: where ``broker_url`` names a transport that can do neither confirms nor atomic steps.
    """
    transport = app.connection_for_write().transport
    if transport.driver_type == "amqp" and transport.driver_name == "py-amqp":
        from .amqp import AmqpBroker

        return AmqpBroker(app, settings, timeout=timeout)
    if transport.driver_type == "redis":
        from .redis import RedisBroker

        return RedisBroker(app, settings, timeout=timeout)
    raise GuardrailsConfigError(
        f"broker_url uses the transport {transport.driver_type!r} ({transport.driver_name}): amqp:// or amqps:// (RabbitMQ, with"
        " py-amqp), redis://, rediss://, redis+socket:// or sentinel:// (Redis, Valkey) is allowed"
    )
