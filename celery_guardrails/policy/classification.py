"""What kind of failure an exception is: the words only; the rules are in :mod:`.classify`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "PERMANENT", "POISON", "RETRYABLE", "THROTTLED", "Classification"]

RETRYABLE = "retryable"
THROTTLED = "throttled"
PERMANENT = "permanent"
POISON = "poison"
KINDS = (RETRYABLE, THROTTLED, PERMANENT, POISON)


@dataclass(frozen=True)
class Classification:
    """Answer of :func:`celery_guardrails.classify`.

    Args:
        kind: ``"retryable"``, ``"throttled"``, ``"permanent"`` or ``"poison"``.
        retry_after: seconds that the dependency asked for, or None.
        rule: name of the rule that matched, for people: ``"builtins.ConnectionError"``, ``"http.503"``, ``"default"``.
    """

    kind: str
    retry_after: float | None = None
    rule: str = "default"
