"""Headers and properties as JSON, and back without loss: JSON alone knows neither bytes nor times.

What JSON knows stands for itself; every other value is an object with one field, whose name says the type: ``$bytes``
(base64), ``$time`` (ISO 8601, without a zone where the broker gave none), ``$date``, ``$clock``, ``$decimal``, ``$uuid``
(texts), ``$float`` ("nan", "inf", "-inf"), and ``$map`` (a list of pairs) for a mapping that JSON cannot hold or that would
look like one of these.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..errors import DeadLetterError

__all__ = ["decode", "dumps", "encode", "loads"]

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


def encode(value: Any) -> Any:
    """Return a value as values that JSON knows.

    Args:
        value: of the types that headers can have: JSON's, those above, and mappings and lists of them. Tuples come back as
            lists, bytearrays as bytes.

    Raises:
        DeadLetterError: it is, or holds, a value of another type, or is nested too deeply.
    """
    try:
        return _encode(value)
    except RecursionError as exc:
        raise DeadLetterError(f"a header or property is nested too deeply: {exc}") from None


def decode(value: Any) -> Any:
    """Return the value that :func:`encode` was given.

    Raises:
        DeadLetterError: it was given none; the text says why.
    """
    try:
        return _decode(value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as exc:
        raise DeadLetterError(f"{type(exc).__name__}: {exc}") from None


def dumps(value: Any) -> str:
    """Return a value as JSON in ASCII (so that any database takes it, with zero bytes and half surrogates in it).

    Raises:
        DeadLetterError: see :func:`encode`.
    """
    return json.dumps(encode(value), allow_nan=False, separators=(",", ":"))


def loads(text: str) -> Any:
    """Return the value that :func:`dumps` was given."""
    return decode(json.loads(text))


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
    # in the order of the names: one letter is always the same text
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
