"""Declarations on RabbitMQ that never quarrel with what is there.

RabbitMQ answers a declaration with other arguments, and a passive one of something missing, by closing the channel. So each
step runs on a channel lent for it (``scratch``), asks passively first, and takes what exists as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from amqp import exceptions as amqp_errors

__all__ = ["Scratch", "at_least_once", "count_ready", "ensure_dead_letters", "ensure_queue", "major_version", "version_of"]

#: Lends a channel that may die.
Scratch = Callable[[], AbstractContextManager[Any]]


def count_ready(scratch: Scratch, queue: str) -> int | None:
    """Return how many messages are ready in a queue, or None where there is no such queue."""
    try:
        with scratch() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except amqp_errors.NotFound:
        return None
    except amqp_errors.ResourceLocked:  # exclusive to another connection: it is there
        return 0


def ensure_queue(scratch: Scratch, name: str, *, quorum: bool) -> None:
    """Declare a durable queue where there is none."""
    if count_ready(scratch, name) is not None:
        return
    try:
        with scratch() as channel:
            arguments: dict[str, Any] = {}
            if quorum:
                arguments["x-queue-type"] = "quorum"
                if major_version(channel) >= 4:
                    # RabbitMQ 4 takes a message out of a quorum queue at its 20th return unless told not to; a browse is one.
                    arguments["x-delivery-limit"] = -1
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    except amqp_errors.PreconditionFailed:
        if count_ready(scratch, name) is None:  # another process was not just quicker
            raise


def ensure_dead_letters(scratch: Scratch, *, exchange: str, queue: str, dead: str, quorum: bool) -> None:
    """Declare the DLX and the DLQ of a task queue where they are missing, and bind them."""
    try:
        with scratch() as channel:
            channel.exchange_declare(exchange, "direct", passive=True)
    except amqp_errors.NotFound:
        with scratch() as channel:
            channel.exchange_declare(exchange, "direct", durable=True, auto_delete=False)
    ensure_queue(scratch, dead, quorum=quorum)
    with scratch() as channel:
        channel.queue_bind(dead, exchange, queue)


def at_least_once(channel: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a quorum queue with a DLX wants besides, so that its broker confirms a dead letter before it lets go of the message.

    Without it a letter that finds no exchange, no binding or no node is gone. It needs ``reject-publish`` (a full queue refuses
    what comes, and does not dead-letter what it has), so nothing is returned for a queue that says otherwise.
    (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering; RabbitMQ 3.10)
    """
    wanted = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    fits = all(arguments.get(name, value) == value for name, value in wanted.items())
    return wanted if arguments.get("x-queue-type") == "quorum" and fits and version_of(channel) >= (3, 10) else {}


def major_version(channel: Any) -> int:
    """Return RabbitMQ's major version, or 0 where it does not say."""
    return version_of(channel)[0]


def version_of(channel: Any) -> tuple[int, int]:
    """Return RabbitMQ's version as (major, minor), zeros where it does not say."""
    major, minor, *_ = [*str(channel.connection.server_properties.get("version", "")).split("."), "", ""]
    return (int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0)
