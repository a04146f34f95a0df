"""Waiting in RabbitMQ: a message passes one queue with a TTL per set bit of its delay.

The idea is NServiceBus' delayed delivery (docs.particular.net, "Delayed delivery" of its RabbitMQ transport), which Celery's
native delayed delivery took over. Ours has a finer tick, works for every queue (also one on a direct exchange), and
starts at the highest set bit, so a message makes as many hops as its delay has bits set.

Names are ``guardrails.delay.<kind>.<level>``; the routing key is 24 bits, the highest first, and the word of the target queue.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

__all__ = [
    "DELIVER",
    "LEVELS",
    "TICK",
    "UNROUTED",
    "address",
    "binding_key",
    "declare_levels",
    "level_arguments",
    "level_name",
    "queue_word",
    "ticks",
]

#: Seconds of the lowest level; a delay is rounded up to it.
TICK = 0.25
#: Levels 0..23: the longest delay is 2**24 - 1 ticks, 48 days. The TTL of level 23 fits RabbitMQ's 32 bits.
LEVELS = 24
#: Where a message arrives when its time has come; bound to every target queue.
DELIVER = "guardrails.delay.deliver"
#: Catches what arrives for a queue that was deleted while the message waited. Without it a classic level would drop the
#: message, and 32 of them would hold up every other message of a quorum level (its dead letter worker's prefetch).
UNROUTED = "guardrails.delay.unrouted"

#: AMQP's short string; 24 bits with their dots take 48 of it.
_ROUTING_KEY_BYTES = 255


def ticks(seconds: float) -> int:
    """Return the delay in whole ticks, rounded up, at most what the levels can hold."""
    return max(0, min(math.ceil(seconds / TICK), (1 << LEVELS) - 1))


def level_name(kind: str, level: int) -> str:
    """Return the name that the exchange and the queue of a level share."""
    return f"guardrails.delay.{kind}.{level:02d}"


def queue_word(queue: str) -> str:
    """Return what stands for a queue at the end of a routing key.

    The name itself, dots and all: the binding counts the 24 words before it, so ``b`` never matches a message for ``a.b``.
    A digest where a word of the name would be a wildcard of the binding, or the key would be too long.
    """
    wild = any(word in ("*", "#") for word in queue.split("."))
    if wild or len(queue.encode()) > _ROUTING_KEY_BYTES - 2 * LEVELS:
        return "~" + hashlib.blake2b(queue.encode(), digest_size=20).hexdigest()
    return queue


def binding_key(queue: str) -> str:
    """Return the key that binds a queue to :data:`DELIVER`, whatever the bits."""
    return "*." * LEVELS + queue_word(queue)


def address(kind: str, count: int, queue: str) -> tuple[str, str]:
    """Return exchange and routing key for a delay of ``count`` ticks (at least 1)."""
    return level_name(kind, count.bit_length() - 1), ".".join(f"{count:0{LEVELS}b}") + "." + queue_word(queue)


def declare_levels(channel: Any, kind: str) -> None:
    """Declare everything a delay of this kind passes, but for the queue :data:`UNROUTED`, which is to exist.

    Only the queues are waited for, each by itself: a new quorum queue takes its time, the other 70 requests need none. What
    RabbitMQ refuses closes the channel and surfaces at the next answer, so hand in a scratch channel.
    """
    channel.exchange_declare(UNROUTED, "fanout", durable=True, auto_delete=False, nowait=True)
    channel.queue_bind(UNROUTED, UNROUTED, "", nowait=True)
    channel.exchange_declare(DELIVER, "topic", durable=True, auto_delete=False, nowait=True, arguments={"alternate-exchange": UNROUTED})
    below = DELIVER
    for level, name in _upwards(kind):
        skipped = "*." * (LEVELS - 1 - level)
        channel.exchange_declare(name, "topic", durable=True, auto_delete=False, nowait=True)
        channel.queue_declare(name, durable=True, auto_delete=False, arguments=_queue_arguments(kind, level, below))
        channel.exchange_bind(below, name, f"{skipped}0.#", nowait=True)
        channel.queue_bind(name, name, f"{skipped}1.#", nowait=True)
        below = name
    channel.exchange_declare(below, "topic", passive=True)


def level_arguments(kind: str) -> dict[str, dict[str, Any]]:
    """Return the queues of all levels with what they are declared with."""
    below, found = DELIVER, {}
    for level, name in _upwards(kind):
        found[name] = _queue_arguments(kind, level, below)
        below = name
    return found


def _upwards(kind: str) -> Iterator[tuple[int, str]]:
    for level in range(LEVELS):
        yield level, level_name(kind, level)


def _queue_arguments(kind: str, level: int, below: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x-queue-type": kind,
        "x-message-ttl": int(1000 * TICK) * 2**level,
        "x-dead-letter-exchange": below,
        # A full queue refuses (and we raise PublishFailed) instead of dropping its oldest message.
        "x-overflow": "reject-publish",
    }
    if kind == "quorum":
        # With it, and only with reject-publish, a hop is confirmed before the message leaves its level.
        arguments["x-dead-letter-strategy"] = "at-least-once"
    return arguments
