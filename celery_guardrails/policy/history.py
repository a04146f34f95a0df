"""What a message remembers of the attempts that failed before, and of its deaths, in as little room as that needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["HISTORY_BYTES", "PastAttempt", "PastDeath", "died_again", "history_header", "read_deaths", "read_history", "remembered"]

#: Bytes that the attempts of one message may take, as its header has them. RabbitMQ wants all headers of a message in one
#: frame (131,072 bytes by default), and every copy of a message that waits carries them.
HISTORY_BYTES = 8_192
#: Characters kept of an error's class, message and traceback; of the last its tail, which names the cause.
_ERROR, _MESSAGE, _TRACEBACK = 120, 200, 1_500
#: Deaths that are kept, the last ones.
_DEATHS = 10
#: Bytes of an entry besides its texts: names, types and lengths of its fields in AMQP, and its numbers.
_ENTRY = 120


@dataclass(frozen=True)
class PastAttempt:
    """An attempt that failed and was followed by another.

    Args:
        attempt: which one it was, 1 for the first.
        at: unix time in seconds of its failure.
        error: qualified class name, or "" where ``self.retry()`` was called without an error.
        message: of the error, at most 200 characters.
        fingerprint: of the error.
        traceback: its last 1,500 characters, or "" where it was left out to save room.
        skipped: attempts between the entry before this one and this one that were left out to save room.
    """

    attempt: int = 0
    at: float = 0.0
    error: str = ""
    message: str = ""
    fingerprint: str = ""
    traceback: str = ""
    skipped: int = 0

    @property
    def size(self) -> int:
        """Bytes in a header, never fewer than it takes there."""
        return _ENTRY + sum(len(_bytes(text)) for text in (self.error, self.message, self.fingerprint, self.traceback))


@dataclass(frozen=True)
class PastDeath:
    """A death that a replay was made of.

    Args:
        reason: one of :data:`~celery_guardrails.policy.deadletter.REASONS`.
        error: qualified class name of the error.
        at: unix time in seconds of the death, or None where unknown.
    """

    reason: str = ""
    error: str = ""
    at: float | None = None


def remembered(history: Sequence[PastAttempt], failed: PastAttempt) -> tuple[PastAttempt, ...]:
    """Return the history with one more attempt, cut to :data:`HISTORY_BYTES`.

    Tracebacks go first: of errors that came again later, then of all, the oldest before the newer. Then entries in the middle
    go, and the one after them says how many: the first errors tell how it began, the last ones how it ended.
    """
    entries = [
        *history,
        replace(failed, error=failed.error[:_ERROR], message=failed.message[:_MESSAGE], traceback=failed.traceback[-_TRACEBACK:]),
    ]
    room = HISTORY_BYTES - sum(entry.size for entry in entries)
    for number in _least_telling(entries):
        if room >= 0:
            break
        room += len(_bytes(entries[number].traceback))
        entries[number] = replace(entries[number], traceback="")
    while room < 0 and len(entries) > 1:
        middle = (len(entries) - 1) // 2
        gone = entries.pop(middle)
        entries[middle] = replace(entries[middle], skipped=entries[middle].skipped + gone.skipped + 1)
        room += gone.size
    return tuple(entries)


def _least_telling(entries: Sequence[PastAttempt]) -> list[int]:
    """Return the places of the entries in the order in which they lose their tracebacks."""
    last = {entry.fingerprint: number for number, entry in enumerate(entries)}
    return sorted(range(len(entries)), key=lambda number: (last[entries[number].fingerprint] == number, number))


def died_again(deaths: Sequence[PastDeath], death: PastDeath) -> tuple[PastDeath, ...]:
    """Return the deaths with one more, the last ten."""
    return (*deaths, replace(death, error=death.error[:_ERROR]))[-_DEATHS:]


def history_header(entries: Sequence[PastAttempt | PastDeath]) -> list[dict[str, Any]] | None:
    """Return attempts or deaths as values of a header, without what is unset; None for none."""
    return [{name: value for name, value in vars(entry).items() if value != getattr(type(entry), name)} for entry in entries] or None


def read_history(value: Any) -> tuple[PastAttempt, ...]:
    """Read what a header says of attempts; what is of a wrong type counts as unset."""
    return tuple(PastAttempt(**_fields(entry, _ATTEMPT)) for entry in _entries(value))


def read_deaths(value: Any) -> tuple[PastDeath, ...]:
    """Read what a header says of deaths; what is of a wrong type counts as unset."""
    return tuple(PastDeath(**_fields(entry, _DEATH)) for entry in _entries(value))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_ATTEMPT = {"attempt": int, "at": float, "error": str, "message": str, "fingerprint": str, "traceback": str, "skipped": int}
_DEATH = {"reason": str, "error": str, "at": float}


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, (dict, Mapping))] if isinstance(value, (list, tuple)) else []


def _fields(entry: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    return {name: known for name, kind in types.items() if (known := _known(entry.get(name), kind)) is not None}


def _known(value: Any, kind: type) -> Any:
    if kind is float:
        # up to the year 9999, beyond which nothing can write a time down; NaN compares with nothing
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 253_402_300_800
        return float(value) if number else None
    if kind is int:
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
    return value if isinstance(value, str) else None
