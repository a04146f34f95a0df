"""One form for what counts as the same argument: in every process, Python version and after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

__all__ = ["DEPTH_LIMIT", "canonical", "canonical_text", "plain_member"]

#: Levels of lists, mappings and objects within one another; more is taken for a structure that contains itself.
DEPTH_LIMIT = 200
#: Longest integer that is written in decimal digits, in bits: Python refuses to do it from 4300 digits on.
_DECIMAL_BITS = 10_000

#: Modules whose values count as their text, by the type's own ``__str__``: a subclass may print itself in another way,
#: and comes out of JSON as the plain type.
_TEXTUAL = frozenset({"uuid", "decimal", "fractions", "pathlib", "ipaddress", "zoneinfo"})
#: Where pydantic's URLs live; not all of ``pydantic``: a SecretStr prints stars, whatever the secret.
_PYDANTIC_URLS = frozenset({"pydantic.networks", "pydantic_core._pydantic_core"})

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def canonical_text(value: Any) -> str:
    """Return the canonical form as JSON text, mappings sorted by name.

    Raises:
        TypeError: see :func:`canonical`.
    """
    return _encode(canonical(value))


def canonical(value: Any) -> Any:
    """Return a value of JSON types that is the same in every process, Python version and after a trip through JSON.

    What JSON tells apart stays apart: none, true, numbers, texts, lists and mappings. ``1.0`` is the number 1, since
    another language writes it so; a tuple is a list. Whatever else there is counts as the text or the structure that
    stands for it: a date, time, UUID or Decimal as the text that Celery's JSON writes (the worker may see either),
    bytes as hexadecimal digits, a member of an enumeration as its value, a set as its sorted list, a dataclass, attrs
    class or pydantic model as the mapping of its fields, a model of Django as its label and primary key, and an object
    with kombu's ``__json__`` as what that returns.

    Raises:
        TypeError: the value has no such form, or contains itself.
    """
    try:
        return _canonical(value, 0)
    except RecursionError:  # the caller was deep in the stack already
        raise _too_deep() from None


def _canonical(value: Any, depth: int) -> Any:  # the publish path: plain values first, by exact type
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return value if value.bit_length() <= _DECIMAL_BITS else format(value, "#x")
    if kind is float:
        return int(value) if value.is_integer() else value
    if depth > DEPTH_LIMIT:
        raise _too_deep()
    if isinstance(value, Mapping):
        return {name if type(name) is str else _name(name): _canonical(item, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, depth + 1) for item in value]
    if isinstance(value, (str, int, float)):  # what is derived from them: JSON writes the plain one
        return _canonical(_plain(value), depth)
    if isinstance(value, (set, frozenset)):
        return sorted((_canonical(item, depth + 1) for item in value), key=_encode)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    return _object(value, depth)


_WAY_OUT = "name the arguments that identify the work in fingerprint=(...), or use fingerprint=False"


def plain_member(value: Any) -> Any:
    """Return what a member of an enumeration stands for, and anything else as it is.

    How a member is formatted differs between Python versions, and JSON hands the worker its value.
    """
    if not isinstance(value, Enum):
        return value
    return _plain(value) if isinstance(value, (str, int, float)) else value.value


def _plain(value: Any) -> Any:
    # not str(value) and int(value): those ask the derived class
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def _name(name: Any) -> str:
    """Return a mapping's name as JSON writes it, where it has no other names than texts."""
    if isinstance(name, str):
        return str.__str__(name)
    if isinstance(name, float):
        return json.dumps(name)  # "2.0": a name keeps its point
    form = _canonical(name, 0)
    return form if isinstance(form, str) else _encode(form)


def _object(value: Any, depth: int) -> Any:
    if isinstance(value, type):
        raise TypeError(f"the class {value.__module__}.{value.__qualname__} has no stable fingerprint: {_WAY_OUT}")
    if isinstance(value, Enum):
        return _canonical(value.value, depth + 1)
    reducer = getattr(value, "__json__", None)
    if callable(reducer):
        return _canonical(reducer(), depth + 1)
    text = _text(value)
    if text is not None:
        return text
    if hasattr(value, "_meta") and hasattr(value, "pk"):  # without importing Django
        return _row(value, depth)
    names = _field_names(value)
    if names is not None:
        return {name: _canonical(getattr(value, name, None), depth + 1) for name in names}
    if callable(getattr(value, "isoformat", None)):
        return value.isoformat()
    raise _refused(value)


def _text(value: Any) -> str | None:
    for base in type(value).__mro__:
        module = base.__module__
        if module == "datetime":
            if base.__name__ == "timedelta":
                return f"P{value.days}DT{value.seconds}.{value.microseconds:06}S"
            return base.isoformat(value) if hasattr(base, "isoformat") else None
        if module.partition(".")[0] in _TEXTUAL:
            text: str = base.__str__(value)  # type: ignore[call-arg]
            return text
        if module in _PYDANTIC_URLS:
            return str(value)
    return None


def _row(value: Any, depth: int) -> list[Any]:
    meta, key = value._meta, value.pk
    meta = getattr(getattr(meta, "concrete_model", None), "_meta", meta)  # a proxy shows the same row
    if key is None or (isinstance(key, tuple) and None in key):
        raise TypeError(
            f"a {meta.label_lower} that is not saved has no primary key and so no fingerprint: save it first, "
            f"pass its data instead, or {_WAY_OUT}"
        )
    return [str(meta.label_lower), _canonical(key, depth + 1)]


def _field_names(value: Any) -> Iterable[str] | None:
    """Return the names of the fields that make an object what it is, or None where it does not declare any."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.compare]
    attributes = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        return [attribute.name for attribute in attributes if attribute.eq]
    fields = getattr(kind, "model_fields", None)
    if isinstance(fields, Mapping) and callable(getattr(value, "model_dump", None)):
        # not model_dump(): it writes a set in the order of its hashes, NaN as null, and cuts a subclass down to the
        # fields of the class that is annotated
        return [*fields, *(getattr(value, "__pydantic_extra__", None) or ())]
    return None


def _too_deep() -> TypeError:
    return TypeError(f"it contains itself, or is nested more than {DEPTH_LIMIT} levels deep: {_WAY_OUT}")


def _refused(value: Any) -> TypeError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, (range, Iterator)):
        return TypeError(f"a {kind} has no stable fingerprint, and does not travel in a message: pass list(...) of it")
    return TypeError(f"{kind} has no stable fingerprint: {_WAY_OUT}")
