"""What RabbitMQ has for an app, asked over AMQP and, where it is given, over its management API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amqp import exceptions as amqp_errors

from ...doctor.facts import QueueFacts, RabbitFacts
from ..brokers.amqp_arguments import ARGUMENTS, shape_of
from ..brokers.amqp_declare import Scratch, count_ready, version_of
from ..brokers.delays import level_arguments

if TYPE_CHECKING:
    from ..brokers.amqp import AmqpBroker
    from .management import Management

__all__ = ["rabbit_facts"]

_PATIENCE = "x-consumer-timeout"


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
        declared = broker.app.amqp.queues
        queues = tuple((_with_patience(queue(name), declared.get(name)), queue(dead)) for name, dead in broker.queues().items())
        expected = level_arguments(delay_kind)
        return RabbitFacts(
            version=version,
            vhost=vhost,
            queues=queues,
            exchanges=_exchanges(scratch, queues),
            levels=tuple(queue(name, wanted) for name, wanted in expected.items()),
            expected_levels=expected,
        )

    found = broker.ask(look)
    if management is None:
        return found
    # outside of `ask`, which takes every error for the broker's
    queues = tuple((_with_policy(queue, vhost, management), _with_policy(dead, vhost, management)) for queue, dead in found.queues)
    return replace(found, queues=queues, exchanges=broker.ask(lambda scratch: _exchanges(scratch, queues)))


def _with_policy(queue: QueueFacts, vhost: str, management: Management) -> QueueFacts:
    if not queue.exists:
        return queue
    told = management.queue(vhost, queue.name)
    return replace(queue, policy=told.policy, arguments=None if queue.arguments is None else {**queue.arguments, **told.arguments})


def _with_patience(queue: QueueFacts, declared: Any) -> QueueFacts:
    """Add the one argument that RabbitMQ does not compare, so that only who declares the queue knows it."""
    patience = (getattr(declared, "queue_arguments", None) or {}).get(_PATIENCE)
    return queue if patience is None or queue.arguments is None else replace(queue, arguments={**queue.arguments, _PATIENCE: patience})


def _queue(scratch: Scratch, name: str, arguments: Iterable[str]) -> QueueFacts:
    if count_ready(scratch, name) is None:
        return QueueFacts(name, exists=False)
    shape = shape_of(scratch, name, arguments)
    if shape is None:
        return QueueFacts(name, arguments=None)
    return QueueFacts(name, arguments=shape.arguments, durable=shape.durable, auto_delete=shape.auto_delete)


def _exchanges(scratch: Scratch, queues: Iterable[tuple[QueueFacts, QueueFacts]]) -> dict[str, bool]:
    """Return the exchanges that task queues name as theirs for dead letters, and whether they are there."""
    named = {one.get("x-dead-letter-exchange") for one, _ in queues} - {None, ""}
    return {name: _exchange_exists(scratch, name) for name in sorted(named)}


def _exchange_exists(scratch: Scratch, name: str) -> bool:
    try:
        with scratch() as channel:
            channel.exchange_declare(name, "direct", passive=True)  # the type is not compared
    except amqp_errors.NotFound:
        return False
    except amqp_errors.ChannelError:  # it is there and we may not look
        return True
    return True
