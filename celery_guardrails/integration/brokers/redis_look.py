"""Redis from outside: how much lies in its lists, what waits for its time, and what consumers hold; nothing is moved by it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from kombu.utils.json import loads

from ...policy.delivery import RawMessage
from ...ports import Backlog, Depth, FoundMessage

__all__ = ["TRANSPORT_PROPERTIES", "backlog", "delayed_pages", "held_pages", "lengths", "raw_of"]

#: What kombu's transport adds to the properties of every message for itself.
TRANSPORT_PROPERTIES = frozenset({"body_encoding", "delivery_info", "delivery_tag"})
#: Messages read in one round trip.
_PAGE = 200


def lengths(link: Any, keys: list[str]) -> list[int]:
    """Return the lengths of lists, in one round trip."""
    pipeline = link.client.pipeline(transaction=False)
    for key in keys:
        pipeline.llen(key)
    return [int(length) for length in pipeline.execute()]


def backlog(link: Any, index: str, queues: Iterable[str]) -> Backlog:
    """Return how much there is; whether something is overdue is said by the server's clock.

    Args:
        link: connected.
        index: key of the sorted set of what waits for its time.
        queues: names.
    """
    lists = {queue: link.list_keys(queue) for queue in queues}
    seconds, microseconds = link.client.time()
    now = seconds * 1000 + microseconds // 1000
    pipeline = link.client.pipeline(transaction=False)
    pipeline.zcard(index)
    pipeline.zcount(index, "-inf", now)
    pipeline.zrange(index, 0, 0, withscores=True)
    pipeline.hlen(link.key(link.channel.unacked_key))
    for keys in lists.values():
        for key in keys:
            pipeline.llen(key)
    delayed, overdue, first, held, *found = pipeline.execute()
    counts = iter(int(length) for length in found)
    return Backlog(
        queues={queue: Depth(sum(islice(counts, len(keys)))) for queue, keys in lists.items()},
        delayed=int(delayed),
        overdue=int(overdue),
        overdue_seconds=max(0.0, (now - first[0][1]) / 1000) if overdue and first else 0.0,
        held=int(held),
    )


def delayed_pages(link: Any, index: str, messages: str) -> Iterator[list[FoundMessage]]:
    """Yield what waits for its time, page by page. A scan finds whatever is there from its beginning to its end."""
    scan = link.client.zscan_iter(index, count=_PAGE)
    while page := list(islice(scan, _PAGE)):
        payloads = link.client.hmget(messages, [member for member, _ in page])
        yield [
            FoundMessage(raw_of(payload), _queue_of(link, member[32:]), score / 1000)
            for (member, score), payload in zip(page, payloads, strict=True)
            if payload is not None  # moved in between
        ]


def held_pages(link: Any) -> Iterator[list[FoundMessage]]:
    """Yield what consumers have not acknowledged, page by page, of every app that has its queues in this database."""
    scan = link.client.hscan_iter(link.key(link.channel.unacked_key), count=_PAGE)
    while page := list(islice(scan, _PAGE)):
        yield [found for _, entry in page if (found := _held(entry)) is not None]


def _held(entry: bytes) -> FoundMessage | None:
    try:
        payload, _, routing_key = loads(entry.decode("utf-8"))
        return FoundMessage(_of_payload(payload), str(routing_key))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _queue_of(link: Any, key: bytes) -> str:
    """Return the queue of a list: its key without the prefix, and without the step of a priority."""
    name = key.decode("utf-8", "surrogateescape").removeprefix(link.channel.global_keyprefix)
    return name.partition(link.channel.sep)[0]


def raw_of(item: bytes) -> RawMessage:
    """Read an item of a list; what is no message of kombu's comes out as a body without headers."""
    try:
        return _of_payload(loads(item.decode("utf-8")))
    except (AttributeError, KeyError, TypeError, ValueError):
        return RawMessage(item, None, None, {}, {}, "", "")


def _of_payload(payload: Mapping[str, Any]) -> RawMessage:
    properties = dict(payload["properties"])
    info = properties.get("delivery_info") or {}
    body = payload.get("body") or ""
    if str(properties.get("body_encoding") or "utf-8").lower() == "base64":
        body = base64.b64decode(body)
    return RawMessage(
        body=body if isinstance(body, bytes) else str(body).encode("utf-8"),
        content_type=payload.get("content-type"),
        content_encoding=payload.get("content-encoding"),
        headers=dict(payload.get("headers") or {}),
        properties={name: value for name, value in properties.items() if name not in TRANSPORT_PROPERTIES},
        exchange=str(info.get("exchange") or ""),
        routing_key=str(info.get("routing_key") or ""),
    )
