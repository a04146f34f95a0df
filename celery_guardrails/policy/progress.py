"""How far the loops of a task have come, and whether they get anywhere.

It is one recovery point of the key's record, so every store keeps it already: it is saved under the fence, survives retries,
crashes and the dead letter queue, and goes when the key completes.

Charges are never taken back. The point notes instead how many there were when a cursor moved last, and only those since
then count against the task: a loop that has come further is not the one that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["PROGRESS", "RESERVED", "Progress"]

#: What the names of recovery points begin with that are no user's.
RESERVED = "guardrails:"
#: Name of the recovery point.
PROGRESS = RESERVED + "progress"
#: Characters of a cursor that people are shown.
_SHOWN = 200


@dataclass(frozen=True)
class Progress:
    """How far the loops of one key have come.

    Args:
        cursors: name of a loop → where it goes on.
        items: handled so far in all loops and runs; what a crash made the next run repeat counts again.
        saved_at: unix time in seconds of the last save by the store's clock, or None where nothing has been handled yet.
        attempts: charged to the key when a cursor moved last.
        crashes: and suspicions, of the key when a cursor moved last.
        stalls: runs in a row that have begun at these cursors, left them there, and ended without a charge.
        begun: attempts, and crashes with suspicions, when the last run began here; None where that run has moved a cursor.
    """

    cursors: Mapping[str, Any] = field(default_factory=dict)
    items: int = 0
    saved_at: float | None = None
    attempts: int = 0
    crashes: int = 0
    stalls: int = 0
    begun: tuple[int, int] | None = None

    @classmethod
    def from_value(cls, value: Any) -> Progress:
        """Read what :meth:`to_value` made; what is missing or of a wrong type counts as unset."""
        if not isinstance(value, Mapping):
            return cls()
        cursors, saved_at, begun = value.get("cursors"), value.get("saved_at"), value.get("begun")
        return cls(
            cursors=dict(cursors) if isinstance(cursors, Mapping) else {},
            items=_count(value.get("items")),
            saved_at=float(saved_at) if isinstance(saved_at, (int, float)) else None,
            attempts=_count(value.get("attempts")),
            crashes=_count(value.get("crashes")),
            stalls=_count(value.get("stalls")),
            begun=(_count(begun[0]), _count(begun[1])) if isinstance(begun, (list, tuple)) and len(begun) == 2 else None,
        )

    def to_value(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**vars(self), "cursors": dict(self.cursors)}

    # -- what happens to it -----------------------------------------------------------------------------------

    def afresh(self) -> Progress:
        """Return it with nothing counted: whoever brings a task back that was given up goes on where its loop stood."""
        return replace(self, attempts=0, crashes=0, stalls=0, begun=None)

    def as_of(self, attempts: int, crashes: int) -> Progress:
        """Return it as the charges of the key stand now: those that it counts from may have been forgotten since.

        A task that is given up loses its charges, and its recovery points stay; so does whoever is replayed.
        """
        begun = self.begun or (0, 0)
        before, lost = max(self.attempts, begun[0]), max(self.crashes, begun[1])
        # suspicions end with an attempt that came to an end, so fewer losses than before say nothing where attempts were charged
        return self.afresh() if attempts < before or (attempts == before and crashes < lost) else self

    def restarted(self, attempts: int, crashes: int) -> Progress:
        """Another run begins where an earlier one has left off."""
        return replace(self, stalls=self.stalled(attempts, crashes), begun=(attempts, crashes))

    def moved(self, cursors: Mapping[str, Any], items: int, *, now: float, attempts: int, crashes: int) -> Progress:
        """A cursor has moved: what was charged until now counts no more.

        Args:
            cursors: all of them.
            items: handled since the last save.
            now: unix time in seconds.
            attempts: charged to the key so far.
            crashes: charged to the key so far.
        """
        return Progress(cursors=dict(cursors), items=self.items + items, saved_at=now, attempts=attempts, crashes=crashes)

    # -- what it says -----------------------------------------------------------------------------------------

    def failures(self, attempts: int) -> int:
        """Return how many of the key's attempts were made since a cursor moved."""
        return max(0, attempts - self.attempts)

    def losses(self, crashes: int) -> int:
        """Return how many of the key's crashes (and suspicions) came since a cursor moved."""
        return max(0, crashes - self.crashes)

    def recent(self, suspicions: int, losses: int) -> int:
        """Return how many suspicions came since a cursor moved, at most, of so many losses of both kinds."""
        return min(suspicions, self.losses(losses))

    def stalled(self, attempts: int, crashes: int) -> int:
        """Return how many runs in a row got nowhere without a charge, the last one included: told to stop, or killed by a deploy.

        A run that ended with a charge is counted by its attempt or its crash, which have limits of their own.
        """
        return self.stalls + (1 if self.begun == (attempts, crashes) else 0)

    def where(self) -> str:
        """Return the cursors as a text for people."""
        value: Any = dict(self.cursors)
        if set(value) <= {""}:
            value = value.get("")
        text = repr(value)
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
