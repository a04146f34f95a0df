"""Idempotency keys and fingerprints from a task's arguments."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from inspect import Parameter, Signature
from typing import Any, Union

from ..errors import GuardrailsConfigError
from .canonical import canonical, canonical_text, plain_member

__all__ = ["KeyTemplate", "bind_arguments", "canonical", "fingerprint", "is_ours", "make_key", "shortened"]

KeyTemplate = Union[str, Callable[..., str], None]
#: Longest key that is kept as it is, in characters; a longer one is shortened to its head and a digest.
KEY_LIMIT = 512


def is_ours(key: str) -> bool:
    """Whether a key is one of the package's own (turns, quarantine, alerts, resources), and no task's."""
    return key[:1] in ("\0", "\x7f")


def template_fields(template: str) -> Iterator[str]:
    """Yield the names that a template uses.

    Raises:
        ValueError: it is no template.
    """
    for _, path, _, _ in _parsed(template):
        if path is not None:
            yield path[0]


@lru_cache(maxsize=1024)
def _parsed(template: str) -> tuple[tuple[str, tuple[str, ...] | None, str | None, str], ...]:
    """Return literal text, path of the field after it (None at the end), conversion and format of each part."""
    return tuple(
        (literal, None if name is None else tuple(name.split(".")), conversion, spec or "")
        for literal, name, spec, conversion in _FORMATTER.parse(template)
    )


_FORMATTER = string.Formatter()


def _filled(template: str, fields: Mapping[str, Any]) -> str:
    """Fill a template: ``{order.id}`` goes over mappings and attributes, never into private names."""
    parts = []
    for literal, path, conversion, spec in _parsed(template):
        parts.append(literal)
        if path is not None:
            value = plain_member(_found(path, fields))
            if conversion:
                value = _FORMATTER.convert_field(value, conversion)
            parts.append(_text(value, _filled(spec, fields) if "{" in spec else spec))
    return "".join(parts)


def _found(path: tuple[str, ...], fields: Mapping[str, Any]) -> Any:
    value = fields[path[0]]
    for part in path[1:]:
        if part.startswith("_"):
            raise KeyError(".".join(path))
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def _text(value: Any, spec: str) -> str:
    kind = type(value)
    if kind is str or kind is int:
        return format(value, spec)
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set is printed in another order by every process")
    text = format(value, spec)
    if " at 0x" in text and not isinstance(value, str):
        raise TypeError(f"{text} is printed with its place in memory, which is another one each time")
    return text


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
            key = _filled(template, arguments)
        except (KeyError, AttributeError, IndexError, TypeError, ValueError) as exc:
            raise GuardrailsConfigError(f"key = {template!r} cannot be filled from the arguments {sorted(arguments)}: {exc!r}") from exc
    if not isinstance(key, str) or not key:
        raise GuardrailsConfigError(f"key = {template!r} gave {key!r}: a text that is not empty is allowed")
    return shortened(key)


def shortened(key: str) -> str:
    """Return a key as it travels and is stored: beyond 512 characters its beginning and a digest; what is short enough stays."""
    if len(key) <= KEY_LIMIT:
        return key
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{key[: KEY_LIMIT - 33]}#{digest}"


def fingerprint(arguments: Mapping[str, Any], names: Sequence[str] | bool | None) -> str | None:
    """Return 16 hex digits over the arguments that must agree for one key.

    Args:
        arguments: by name.
        names: which of them; None or True means all, False or an empty sequence means no check (None is returned).

    Raises:
        TypeError: naming the argument that has no canonical form, see :func:`celery_guardrails.policy.canonical.canonical`.
    """
    if names is False:
        return None
    if names is None or names is True:
        chosen = arguments
    else:
        if not names:
            return None
        chosen = {name: arguments.get(name) for name in names}
    try:
        text = canonical_text(chosen)
    except TypeError:
        for name, value in chosen.items():  # say which one it was
            try:
                canonical(value)
            except TypeError as exc:
                raise TypeError(f"argument {name!r}: {exc}") from exc
        raise
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
