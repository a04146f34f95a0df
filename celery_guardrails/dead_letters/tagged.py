"""Headers and properties as JSON, and back without loss: JSON alone knows neither bytes nor times."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

__all__ = ["dumps", "loads"]

_TAG = "$"
_READERS: dict[str, Callable[[Any], Any]] = {
    "$bytes": base64.b64decode,
    "$datetime": datetime.fromisoformat,
    "$decimal": Decimal,
    "$float": float,
    "$map": lambda pairs: {_read(name): _read(value) for name, value in pairs},
}


def dumps(value: Any) -> str:
    """Return a value as JSON in ASCII (so that any database takes it, with zero bytes and half surrogates in it).

    Args:
        value: of the types that headers can have: JSON's, and bytes, ``datetime``, ``Decimal``, NaN and infinities.
            Tuples come back as lists.

    Raises:
        TypeError: for a value of another type.
    """
    return json.dumps(_tagged(value), allow_nan=False, separators=(",", ":"))


def loads(text: str) -> Any:
    """Return the value that :func:`dumps` was given."""
    return _read(json.loads(text))


def _tagged(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Mapping):
        if all(isinstance(name, str) and not name.startswith(_TAG) for name in value):
            return {name: _tagged(item) for name, item in value.items()}
        return {"$map": [[_tagged(name), _tagged(item)] for name, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_tagged(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    raise TypeError(f"a header of the type {type(value).__name__} cannot be kept: {value!r}")


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, item),) = value.items()
        if name in _READERS:
            return _READERS[name](item)
    return {name: _read(item) for name, item in value.items()}
