"""Dead letters as lines of JSON and back, byte for byte: the format of ``dead-letters export`` and ``import``.

One letter a line, an object with these fields:

- ``v``: version of the format, 1.
- ``id``: of the letter in its queue; letters that are the same byte for byte have different ones.
- ``queue``: the task queue in whose dead letter queue it lay.
- ``body``: base64 of the bytes.
- ``content_type``, ``content_encoding``: texts or null.
- ``headers``, ``properties``: objects. What JSON knows stands for itself; every other value is an object with one field,
  whose name says the type: ``$bytes`` (base64), ``$time`` (ISO 8601, without a zone where the broker gave none),
  ``$date``, ``$clock``, ``$decimal``, ``$uuid`` (texts), ``$float`` ("nan", "inf", "-inf"), and ``$map`` (a list of
  pairs) for a mapping that JSON cannot hold or that would look like one of these.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..errors import DeadLetterError
from ..policy.delivery import RawMessage

__all__ = ["FORMAT_VERSION", "PackedLetter", "pack", "unpack"]

FORMAT_VERSION = 1

#: Type → tag and what writes it; a datetime is a date as well, so it comes first.
_WRITERS: tuple[tuple[type | tuple[type, ...], str, Callable[[Any], Any]], ...] = (
    ((bytes, bytearray, memoryview), "$bytes", lambda value: base64.b64encode(value).decode("ascii")),
    (datetime, "$time", lambda value: value.isoformat()),
    (date, "$date", lambda value: value.isoformat()),
    (time, "$clock", lambda value: value.isoformat()),
    (Decimal, "$decimal", str),
    (UUID, "$uuid", str),
)
_READERS: dict[str, Callable[[Any], Any]] = {
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$time": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$clock": time.fromisoformat,
    "$decimal": Decimal,
    "$uuid": UUID,
    "$float": lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "$map": lambda pairs: {_decode(name): _decode(value) for name, value in pairs},
}


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
        "headers": _encode(message.headers),
        "properties": _encode(message.properties),
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
        value = _decode(fields.get(name))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as exc:
        raise DeadLetterError(f"{name}: {type(exc).__name__}: {exc}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise DeadLetterError(f"{name}: an object is expected")
    return value


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Mapping):
        return _encode_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    for kind, tag, write in _WRITERS:
        if isinstance(value, kind):
            return {tag: write(value)}
    raise DeadLetterError(f"a header or property holds a {type(value).__name__}, which no broker hands out")


def _encode_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    if not all(isinstance(name, str) for name in value):
        return {"$map": [[_encode(name), _encode(item)] for name, item in value.items()]}
    # in the order of the names: two exports of one letter are the same text
    table = {name: _encode(value[name]) for name in sorted(value)}
    if len(table) == 1 and next(iter(table)).startswith("$"):
        return {"$map": [[name, item] for name, item in table.items()]}
    return table


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, item),) = value.items()
        if name.startswith("$"):
            if name not in _READERS:
                raise ValueError(f"the type {name!r} is unknown")
            return _READERS[name](item)
    return {name: _decode(item) for name, item in value.items()}
