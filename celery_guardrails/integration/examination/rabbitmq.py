"""What RabbitMQ has for an app, asked over AMQP and, where it is given, over its management API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from amqp import exceptions as amqp_errors

from ...doctor.facts import QueueFacts, RabbitFacts
from ..brokers.amqp_arguments import ARGUMENTS, shape_of
from ..brokers.amqp_declare import Scratch, count_ready, version_of
from ..brokers.delays import level_arguments

if TYPE_CHECKING:
    from ..brokers.amqp import AmqpBroker
    from .management import Management

__all__ = ["rabbit_facts"]


def rabbit_facts(broker: AmqpBroker, delay_kind: str, management: Management | None = None) -> RabbitFacts:
    """Return the facts of the broker; nothing is declared by it.

    Raises:
        PublishFailed: it does not answer.
        GuardrailsConfigError: the management API does not answer.
    """
    vhost = broker.app.connection_for_write().virtual_host or "/"

    def look(scratch: Scratch) -> RabbitFacts:
        def queue(name: str, arguments: Iterable[str] = ARGUMENTS) -> QueueFacts:
            return _queue(scratch, name, arguments)

        with scratch() as channel:
            version = version_of(channel)
        queues = tuple((queue(name), queue(dead)) for name, dead in broker.queues().items())
        expected = level_arguments(delay_kind)
        named = {one.get("x-dead-letter-exchange") for one, _ in queues} - {None, ""}
        return RabbitFacts(
            version=version,
            vhost=vhost,
            queues=queues,
            exchanges={name: _exchange_exists(scratch, name) for name in sorted(named)},
            levels=tuple(queue(name, wanted) for name, wanted in expected.items()),
            expected_levels=expected,
        )

    found = broker.ask(look)
    if management is None:
        return found
    # outside of `ask`, which takes every error for the broker's
    queues = tuple((_with_policy(queue, vhost, management), _with_policy(dead, vhost, management)) for queue, dead in found.queues)
    return replace(found, queues=queues)


def _with_policy(queue: QueueFacts, vhost: str, management: Management) -> QueueFacts:
    return replace(queue, policy=management.policy(vhost, queue.name)) if queue.exists else queue


def _queue(scratch: Scratch, name: str, arguments: Iterable[str]) -> QueueFacts:
    if count_ready(scratch, name) is None:
        return QueueFacts(name, exists=False)
    shape = shape_of(scratch, name, arguments)
    if shape is None:
        return QueueFacts(name, arguments=None)
    return QueueFacts(name, arguments=shape.arguments, durable=shape.durable, auto_delete=shape.auto_delete)


def _exchange_exists(scratch: Scratch, name: str) -> bool:
    try:
        with scratch() as channel:
            channel.exchange_declare(name, "direct", passive=True)  # the type is not compared
    except amqp_errors.NotFound:
        return False
    except amqp_errors.ChannelError:  # it is there and we may not look
        return True
    return True
