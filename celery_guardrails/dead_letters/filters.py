"""Which dead letters are meant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import Any

from ..errors import GuardrailsConfigError
from ..policy.deadletter import REASONS
from .letter import DeadLetter

__all__ = ["Filter", "parse_span", "parse_time"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_AGO = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[smhdw])(?:\s+ago)?\s*", re.IGNORECASE)
_TIME_ALLOWED = "an ISO 8601 time (2031-05-01T12:00:00Z, UTC where it has no zone) or a time ago (30s, 15m, 2h, 3d, 1w)"


@dataclass(frozen=True)
class Filter:
    """Chooses dead letters; what is None chooses all.

    Args:
        queue: a task queue, or the name of its dead letter queue.
        task: name of the task; ``*`` and ``?`` stand for any text and any character.
        reason: one of :data:`~celery_guardrails.policy.deadletter.REASONS`.
        error: class of the error, qualified or its last part; ``*`` and ``?`` as in ``task``.
        fingerprint: of the error, or how it begins.
        since: unix time in seconds of death, at or after it. A letter whose time of death is unknown is not chosen by time.
        until: unix time in seconds of death, before it.
        key: idempotency key (the task id where the task has none).
        limit: so many letters at most; for groups so many groups.

    Raises:
        GuardrailsConfigError: naming the option, its value and what is allowed.
    """

    queue: str | None = None
    task: str | None = None
    reason: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    since: float | None = None
    until: float | None = None
    key: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("queue", "task", "error", "key"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise _refused(name, value, "a text that is not empty")
        if self.reason is not None and self.reason not in REASONS:
            raise _refused("reason", self.reason, ", ".join(REASONS))
        if self.fingerprint is not None and not (isinstance(self.fingerprint, str) and re.fullmatch(r"[0-9a-f]{4,16}", self.fingerprint)):
            raise _refused("fingerprint", self.fingerprint, "4 to 16 hexadecimal digits, as `groups` shows them,")
        if self.limit is not None and (not isinstance(self.limit, int) or isinstance(self.limit, bool) or self.limit < 1):
            raise _refused("limit", self.limit, "a whole number of at least 1")
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise _refused(name, value, "a unix time in seconds")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise _refused("until", self.until, f"a time after --since ({self.since:.0f})")

    @classmethod
    def parse(cls, *, now: float, since: str | None = None, until: str | None = None, **options: Any) -> Filter:
        """Build one from texts as they are typed.

        Args:
            now: unix time in seconds that "2h" counts back from.
            since: ISO 8601, or a time ago.
            until: the same.
            **options: the other fields.

        Raises:
            GuardrailsConfigError: naming the option, its value and what is allowed.
        """
        return cls(since=parse_time("since", since, now), until=parse_time("until", until, now), **options)

    @property
    def everything(self) -> bool:
        """Whether it chooses every letter."""
        return self == Filter()

    def matches(self, letter: DeadLetter) -> bool:
        """Whether this letter is meant; queue and limit are the service's to keep."""
        died_at = letter.died_at
        return (
            (self.task is None or fnmatchcase(letter.task, self.task))
            and (self.reason is None or letter.reason == self.reason)
            and (self.error is None or _names(letter.certificate.error, self.error))
            and (self.fingerprint is None or letter.certificate.fingerprint.startswith(self.fingerprint))
            and (self.key is None or letter.key == self.key)
            and (self.since is None or (died_at is not None and died_at >= self.since))
            and (self.until is None or (died_at is not None and died_at < self.until))
        )


def parse_time(option: str, text: str | None, now: float) -> float | None:
    """Return unix time in seconds of an ISO 8601 text or of a time ago.

    Raises:
        GuardrailsConfigError: it is neither.
    """
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    if ago:
        return now - float(ago["number"]) * _UNITS[ago["unit"].lower()]
    try:
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text.strip()))  # Python 3.10 does not know the Z
    except ValueError:
        raise _refused(option, text, _TIME_ALLOWED) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def parse_span(option: str, text: str) -> float:
    """Return the seconds of a text such as ``30s``, ``15m``, ``2h``, ``3d``, ``1w``.

    Raises:
        GuardrailsConfigError: it is none.
    """
    found = _AGO.fullmatch(text)
    if found is None or not float(found["number"]):
        raise _refused(option, text, "a time such as 30s, 15m, 2h, 3d, 1w")
    return float(found["number"]) * _UNITS[found["unit"].lower()]


def _names(error: str, pattern: str) -> bool:
    return fnmatchcase(error, pattern) or fnmatchcase(error.rpartition(".")[2], pattern)


def _refused(option: str, value: object, allowed: str) -> GuardrailsConfigError:
    return GuardrailsConfigError(f"--{option} {value!r}: {allowed} is allowed")
