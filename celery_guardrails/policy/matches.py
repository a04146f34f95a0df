"""How people name errors: by class, by name, by glob."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Union

from ..errors import GuardrailsConfigError

__all__ = ["ErrorMatch", "as_tuple", "check_matches", "full_name", "nearest_match"]

#: A class, or its name as "module.Class"; the module may be a package that the class is exported from
#: ("requests.ConnectionError"), and the whole may be a glob ("stripe.*").
ErrorMatch = Union[type[BaseException], str]


def check_matches(value: Any, option: str) -> tuple[ErrorMatch, ...]:
    """Return ``retryable=`` or ``permanent=`` of a task as a tuple.

    Args:
        value: an exception class, its name as ``"module.Class"``, or several of them.
        option: the name of the option, for the message.

    Raises:
        GuardrailsConfigError: for anything else.
    """
    several = tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    for match in several:
        if isinstance(match, type) and issubclass(match, BaseException):
            continue
        if isinstance(match, str) and "." in match.strip(".") and not any(sign.isspace() for sign in match):
            continue
        raise GuardrailsConfigError(
            f'{option}={match!r}: an exception class, its name as "module.Class" or a glob as "package.*", or a tuple of these, is allowed'
        )
    return several


def nearest_match(mro: tuple[type, ...], matches: tuple[ErrorMatch, ...]) -> int | None:
    """Return the place in the MRO of the first class that one of the matches is for."""
    for depth, cls in enumerate(mro):
        for match in matches:
            if match is cls or (isinstance(match, str) and _named(cls, match)):
                return depth
    return None


def _named(cls: type, match: str) -> bool:
    """Whether a class is known by this name: its own, one of a package above its module, or a glob of its own."""
    module, name = str(cls.__module__), cls.__qualname__
    full = f"{module}.{name}"
    if match == full:
        return True
    if "*" in match or "?" in match:
        return fnmatchcase(full, match)
    return match.endswith(f".{name}") and module.startswith(match[: -len(name)])


def full_name(cls: type) -> str:
    """Return the name that rules know a class by: ``module.Class``, as the class itself says it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def as_tuple(value: Any) -> tuple[ErrorMatch, ...]:
    """Return one match, or a collection of them, as a tuple."""
    if isinstance(value, tuple):
        return value
    return tuple(value) if isinstance(value, (list, set, frozenset)) else (value,)
