"""Dead letters as lines of JSON and back, byte for byte: the format of ``dead-letters export`` and ``import``.

One letter a line, an object with these fields:

- ``v``: version of the format, 1.
- ``id``: of the letter in its queue; letters that are the same byte for byte have different ones.
- ``queue``: the task queue in whose dead letter queue it lay.
- ``body``: base64 of the bytes.
- ``content_type``, ``content_encoding``: texts or null.
- ``headers``, ``properties``: objects, see :mod:`~celery_guardrails.dead_letters.tagged`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DeadLetterError
from ..policy.delivery import RawMessage
from .tagged import decode, encode

__all__ = ["FORMAT_VERSION", "PackedLetter", "pack", "unpack"]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PackedLetter:
    """A line that was read.

    Args:
        identifier: of the letter where it lay, or "".
        queue: the task queue in whose dead letter queue it lay.
        message: byte for byte.
    """

    identifier: str
    queue: str
    message: RawMessage


def pack(message: RawMessage, *, identifier: str, queue: str) -> str:
    """Return a letter as one line of ASCII, without its end.

    Args:
        message: as found in the dead letter queue.
        identifier: of the letter.
        queue: the task queue in whose dead letter queue it lies.

    Raises:
        DeadLetterError: a header or property has a value of a type that no broker hands out.
    """
    fields = {
        "v": FORMAT_VERSION,
        "id": identifier,
        "queue": queue,
        "body": base64.b64encode(message.body).decode("ascii"),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": encode(message.headers),
        "properties": encode(message.properties),
    }
    return json.dumps(fields, separators=(",", ":"), allow_nan=False)


def unpack(line: bytes | str) -> PackedLetter:
    """Return the letter of a line.

    Raises:
        DeadLetterError: it is none; the text says why.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise DeadLetterError(f"no JSON: {exc}") from None
    if not isinstance(fields, dict) or "v" not in fields:
        raise DeadLetterError("no dead letter: an object with the fields of `dead-letters export` is expected")
    if fields["v"] != FORMAT_VERSION or isinstance(fields["v"], bool):
        raise DeadLetterError(f"version {fields['v']!r} of the format: this release reads version {FORMAT_VERSION}")
    queue = fields.get("queue")
    if not isinstance(queue, str) or not queue:
        raise DeadLetterError(f"queue {queue!r}: the name of a task queue is expected")
    message = RawMessage(
        body=_body(fields.get("body")),
        content_type=_text(fields, "content_type"),
        content_encoding=_text(fields, "content_encoding"),
        headers=_table(fields, "headers"),
        properties=_table(fields, "properties"),
        exchange="",
        routing_key="",
    )
    return PackedLetter(_text(fields, "id") or "", queue, message)


def _body(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as exc:
        raise DeadLetterError(f"body: base64 is expected ({exc})") from None


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise DeadLetterError(f"{name} {value!r}: a text or null is expected")
    return value


def _table(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        value = decode(fields.get(name))
    except DeadLetterError as exc:
        raise DeadLetterError(f"{name}: {exc}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise DeadLetterError(f"{name}: an object is expected")
    return value
