"""What the service did, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .canary import CanaryReport

__all__ = ["DiscardReport", "EditNote", "Failure", "Group", "OnProgress", "Progress", "ReplayReport"]

#: Failures that a report names one by one; the rest is only counted.
FAILURES_KEPT = 20
#: Edited letters likewise.
EDITS_KEPT = 20


@dataclass(frozen=True)
class Group:
    """Dead letters that died of the same thing.

    Args:
        reason: why.
        error: qualified class name.
        fingerprint: of the error.
        message: of the letter named in ``sample``.
        count: letters.
        first_seen: unix time in seconds of the first of these deaths, or None where unknown.
        last_seen: of the last.
        tasks: their names, sorted.
        queues: the task queues they come from, sorted.
        sample: identifier of the letter that died last.
    """

    reason: str
    error: str
    fingerprint: str
    message: str
    count: int
    first_seen: float | None
    last_seen: float | None
    tasks: tuple[str, ...]
    queues: tuple[str, ...]
    sample: str


@dataclass(frozen=True)
class Progress:
    """How far a replay or discard has come.

    Args:
        looked_at: letters seen so far, those not chosen included.
        total: letters that lay in the queues at the start.
        done: replayed or discarded.
        skipped: chosen, but left where they are.
        failed: not moved.
    """

    looked_at: int
    total: int
    done: int
    skipped: int
    failed: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Failure:
    """One letter that could not be moved, and why."""

    id: str
    why: str


@dataclass(frozen=True)
class EditNote:
    """What was changed in one letter.

    Args:
        id: of the letter.
        changes: name, old value and new one of each argument, as redacted texts.
        key: its idempotency key before.
        new_key: after, made anew where the key is made from arguments.
    """

    id: str
    changes: tuple[tuple[str, str, str], ...]
    key: str | None
    new_key: str | None


@dataclass(frozen=True)
class DiscardReport:
    """What became of the letters that were chosen.

    Args:
        total: letters chosen.
        discarded: removed for good (would be removed, in a dry run).
        failed: still where they were.
        failures: the first of them.
        missing: identifiers that were asked for and not found.
        stopped: why it ended before the last letter, or "".
        dry_run: nothing was touched.
    """

    total: int = 0
    discarded: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    missing: tuple[str, ...] = ()
    stopped: str = ""
    dry_run: bool = False

    @property
    def clean(self) -> bool:
        """Whether everything that was asked for was done."""
        return not (self.failed or self.missing or self.stopped)


@dataclass(frozen=True)
class ReplayReport:
    """What became of the letters that were chosen.

    Args:
        total: letters chosen.
        replayed: back in a task queue and out of the dead letter queue (would be, in a dry run).
        skipped_max_replays: left where they are, for they have been replayed often enough.
        skipped_hopeless: left where they are, for they would only die again (undecodable, invalid, no task message at
            all); asking for them by identifier or by reason replays them.
        failed: not moved, or moved and not taken out of the dead letter queue.
        failures: the first of them.
        missing: identifiers that were asked for and not found.
        already_completed: of a dry run: letters whose key has completed meanwhile, so that their task would not run again;
            None where nobody asked or the store did not answer.
        destinations: letters replayed to each queue.
        reasons: letters replayed by their reason.
        stopped: why it ended before the last letter, or "".
        dry_run: nothing was touched.
        edited: letters replayed with other arguments.
        edits: the first of them.
        canary: how far a canary let it go; None without one.
    """

    total: int = 0
    replayed: int = 0
    skipped_max_replays: int = 0
    skipped_hopeless: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    missing: tuple[str, ...] = ()
    already_completed: int | None = None
    destinations: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    stopped: str = ""
    dry_run: bool = False
    edited: int = 0
    edits: tuple[EditNote, ...] = ()
    canary: CanaryReport | None = None

    @property
    def skipped(self) -> int:
        """Letters left where they are on purpose."""
        return self.skipped_max_replays + self.skipped_hopeless

    @property
    def clean(self) -> bool:
        """Whether everything that was asked for was done."""
        return not (self.failed or self.missing or self.stopped)
