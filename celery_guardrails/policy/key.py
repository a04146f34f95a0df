"""Idempotency keys and fingerprints from a task's arguments."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, Union

from ..errors import GuardrailsConfigError

__all__ = ["KeyTemplate", "bind_arguments", "canonical", "fingerprint", "make_key"]

KeyTemplate = Union[str, Callable[..., str], None]
#: Longest key that is kept as it is, in characters; a longer one is shortened to its head and a digest.
KEY_LIMIT = 512


class _Dotted(string.Formatter):
    """``{order.id}``: dotted paths over mappings and attributes, never into private names."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        first, *rest = field_name.split(".")
        if first not in kwargs:
            raise KeyError(first)
        value = kwargs[first]
        for part in rest:
            if part.startswith("_"):
                raise KeyError(field_name)
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        return value, first


_FORMATTER = _Dotted()


def template_fields(template: str) -> Iterator[str]:
    """Yield the argument names that a template uses."""
    for _, name, _, _ in _FORMATTER.parse(template):
        if name is not None:
            yield name.split(".")[0]


def bind_arguments(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, defaults filled in, ``**kwargs`` laid flat.

    Raises:
        TypeError: where the arguments do not fit the signature.
    """
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    values = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            values.update(values.pop(name, {}))
    return values


def make_key(template: KeyTemplate, arguments: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return the idempotency key, or None where there is no template.

    Raises:
        GuardrailsConfigError: where the template names what is not there, or the result is no text, or an empty one.
    """
    if template is None:
        return None
    if callable(template):
        key = template(*args, **kwargs)
    else:
        try:
            key = _FORMATTER.vformat(template, (), arguments)
        except (KeyError, AttributeError, IndexError, TypeError, ValueError) as exc:
            raise GuardrailsConfigError(f"key = {template!r} cannot be filled from the arguments {sorted(arguments)}: {exc!r}") from exc
    if not isinstance(key, str) or not key:
        raise GuardrailsConfigError(f"key = {template!r} gave {key!r}: a text that is not empty is allowed")
    if len(key) > KEY_LIMIT:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        key = f"{key[: KEY_LIMIT - 33]}#{digest}"
    return key


def fingerprint(arguments: Mapping[str, Any], names: Sequence[str] | bool | None) -> str | None:
    """Return 16 hex digits over the arguments that must agree for one key.

    Args:
        arguments: by name.
        names: which of them; None or True means all, False or an empty sequence means no check (None is returned).
    """
    if names is False:
        return None
    if names is None or names is True:
        chosen = dict(arguments)
    else:
        if not names:
            return None
        chosen = {name: arguments.get(name) for name in names}
    text = json.dumps(canonical(chosen), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def canonical(value: Any) -> Any:
    """Return a value of JSON types that is the same in every process, Python version and after a trip through JSON.

    A tuple equals a list. A date, UUID or Decimal equals the text that Celery's JSON gives for it, since the worker
    may see either; a model of Django counts as its label and primary key.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else float.__repr__(value)
    if isinstance(value, Mapping):
        return {_canonical_name(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    return _canonical_object(value)


def _canonical_name(key: Any) -> str:
    """Return a mapping's key as JSON writes it, where it has no other names than texts."""
    if key is None or isinstance(key, bool):
        return json.dumps(key)
    return float.__repr__(key) if isinstance(key, float) else str(canonical(key))


def _canonical_object(value: Any) -> Any:
    if hasattr(value, "_meta") and hasattr(value, "pk"):  # a Django model, without importing Django
        return [str(value._meta.label_lower), canonical(value.pk)]
    if callable(getattr(value, "model_dump", None)):  # pydantic 2
        return canonical(value.model_dump(mode="json"))
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: canonical(getattr(value, name)) for name in value.__dataclass_fields__}
    if callable(getattr(value, "isoformat", None)):
        return value.isoformat()
    if type(value).__module__.split(".")[0] in ("uuid", "decimal", "pathlib", "fractions"):
        return str(value)
    raise TypeError(
        f"{type(value).__module__}.{type(value).__qualname__} has no stable fingerprint: "
        "name the arguments that identify the work in fingerprint=(...), or use fingerprint=False"
    )
