"""From kombu's messages to the policy's words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..policy.delivery import Delivery, RawMessage, Travel

__all__ = ["DEADLINE_FIELD", "DELIVERY_FIELD", "new_holder", "queue_of", "raw_message", "remember_tags", "restore_origin", "to_delivery"]

#: Where the main process puts the :class:`Delivery` into the request that it hands to the child.
DELIVERY_FIELD = "guardrails_delivery"
#: Where a task that has returned leaves its deadline in its request, for what Celery publishes now.
DEADLINE_FIELD = "guardrails_deadline"
#: Exchanges that bring delayed messages back.
_DELAY_PREFIX = "guardrails.delay."


def new_holder() -> str:
    """Return a fresh identifier: a delivery tag or a task id is not unique to one delivery (Redis restores both)."""
    return os.urandom(8).hex()


def raw_message(message: Any) -> RawMessage:
    """Return a kombu message byte for byte."""
    info: Mapping[str, Any] = message.delivery_info or {}
    return RawMessage(
        body=_wire_body(message),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=dict(message.headers or {}),
        properties=dict(message.properties or {}),
        exchange=str(info.get("exchange") or ""),
        routing_key=str(info.get("routing_key") or ""),
    )


def _wire_body(message: Any) -> bytes:
    body = message.body
    if (message.headers or {}).get("compression"):
        # kombu has decompressed it already; the worker's consumer keeps the wire's bytes (worker/bad_messages.py)
        raw = getattr(message, "_raw", None)
        if isinstance(raw, dict) and raw.get("body"):
            body = message.channel.decode_body(raw["body"], (raw.get("properties") or {}).get("body_encoding"))
        else:
            body = getattr(message, "guardrails_body", body)
    if body is None:
        return b""
    return body.encode("utf-8", "surrogateescape") if isinstance(body, str) else bytes(body)


def restore_origin(message: Any) -> None:
    """Put exchange and routing key of the first publish back on a message that has waited in a delay queue.

    ``Task.retry()`` publishes to where the message came from, and that must be the task's queue, not our delay.
    """
    info = message.delivery_info
    if info and str(info.get("exchange") or "").startswith(_DELAY_PREFIX):
        origin = Travel.from_headers(message.headers).origin
        if origin is not None:
            info["exchange"], info["routing_key"] = origin


def remember_tags(consumer: Any) -> dict[str, str]:
    """Return the queue of each consumer tag, also of those that are being cancelled.

    kombu forgets a tag before it asks the broker to stop (messaging.py, ``cancel_by_queue``), and messages come in until that has answered.
    """
    tags: dict[str, str] = dict(getattr(consumer, "guardrails_tags", {}))
    tags.update((tag, str(name)) for name, tag in dict(consumer._active_tags).items())
    consumer.guardrails_tags = tags
    return tags


def queue_of(message: Any, consumer: Any) -> str:
    """Return the name of the queue that a message was consumed from."""
    info = message.delivery_info or {}
    tag = info.get("consumer_tag")
    if tag and consumer is not None:
        queue = getattr(consumer, "guardrails_tags", {}).get(tag) or remember_tags(consumer).get(tag)
        if queue:
            return queue
    exchange, routing_key = str(info.get("exchange") or ""), str(info.get("routing_key") or "")
    lookup = getattr(message.channel, "_lookup", None)
    if exchange and lookup is not None:  # a virtual transport: its routing table is at hand
        queues = [queue for queue in lookup(exchange, routing_key) if queue]
        if len(queues) == 1:
            return str(queues[0])
    if consumer is not None and exchange:
        bound = [
            queue.name
            for queue in consumer.queues
            if queue.exchange is not None and queue.exchange.name == exchange and routing_key in (queue.routing_key, queue.name)
        ]
        if len(bound) == 1:
            return str(bound[0])
        if len(consumer.queues) == 1:
            return str(next(iter(consumer.queues)).name)
    return routing_key


def to_delivery(
    message: Any, *, task_id: str, task_name: str, key: str | None, fingerprint: str | None, queue: str, holder: str, first: float
) -> Delivery:
    """Return the delivery of a message; what travelled in its header goes before what was computed here."""
    travel = Travel.from_headers(message.headers)
    if travel.first is None:
        travel = travel.evolve(first=first)
    return Delivery(
        task_id=task_id,
        task_name=task_name,
        key=travel.key or key or task_id,
        fingerprint=travel.fingerprint if travel.key else fingerprint,
        holder=holder,
        queue=queue,
        travel=travel,
        redelivered=bool((message.delivery_info or {}).get("redelivered")),
        raw=raw_message(message),
    )
