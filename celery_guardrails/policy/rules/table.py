"""What a shipped rule is made of.

A rule belongs to one class, named ``module.Class`` as the class itself says it. It is either the answer, or a
function that looks at the exception and may decline with None; then the next class of the MRO is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, Protocol, Union

from ..classification import Classification

__all__ = ["LONGEST", "Handler", "Look", "Rule", "Rules", "always", "attribute", "certificate_refused", "handled", "seconds"]

#: Longest wait in seconds that is taken from a dependency's word, one year; the retry policy caps far below it.
LONGEST = 31_536_000.0


class Look(Protocol):
    """What a handler may ask for besides the exception."""

    @property
    def now(self) -> float | None:
        """Unix time in seconds, or None where the caller did not say."""

    def known(self, error: object) -> Classification | None:
        """Return what the shipped rules say of a wrapped exception and its causes; None for nothing, or no exception."""


Handler = Callable[[Any, Look], Classification | None]
Rule = Union[Classification, Handler]
Rules = dict[str, Rule]


def always(kind: str, module: str, *names: str, prefix: str | None = None) -> Rules:
    """Return rules that give ``kind`` for classes of one module; the rule's name starts with the top-level package."""
    head = module.partition(".")[0] if prefix is None else prefix
    return {f"{module}.{name}": Classification(kind, rule=f"{head}.{name}") for name in names}


def handled(handler: Handler, modules: Iterable[str], *names: str) -> Rules:
    """Return rules that hand classes, under every module they have lived in, to one function."""
    return {f"{module}.{name}": handler for module in modules for name in names}


def seconds(value: object) -> float | None:
    """Return a wait in seconds within ``[0, LONGEST]``, or None for what is no number, negative or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        return None
    if isinstance(value, int):  # an int beyond 1e308 has no float
        return float(min(value, int(LONGEST)))
    return min(value, LONGEST) if isfinite(value) else None


def attribute(error: object, *names: str) -> Any:
    """Return the first of the attributes that is there and not None; a property that raises counts as absent."""
    for name in names:
        try:
            value = getattr(error, name, None)
        except Exception:  # noqa: BLE001, S112 - a foreign property may do anything
            continue
        if value is not None:
            return value
    return None


def certificate_refused(error: object) -> bool:
    """Return whether TLS failed over the certificate, which no retry mends.

    By OpenSSL's own words: requests, httpx, urllib3 and botocore keep them in the text and drop the ssl error.
    """
    text = str(error).lower()
    return "certificate_verify_failed" in text or "certificate verify failed" in text
