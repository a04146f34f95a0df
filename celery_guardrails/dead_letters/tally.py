"""What is counted while letters go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .canary import CanaryReport
from .letter import DeadLetter
from .reports import EDITS_KEPT, FAILURES_KEPT, DiscardReport, EditNote, Failure, Group, OnProgress, Progress, ReplayReport

__all__ = ["Gathering", "Names", "Run"]


class Names:
    """Tells letters apart that are the same byte for byte.

    Keeps one number per letter, not its name: that is about 100 bytes for each letter of a queue.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._twins: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        """Return the name, with a number behind it where it was there before."""
        number = hash(name)
        if number not in self._seen:
            self._seen.add(number)
            return name
        self._twins[name] += 1
        return f"{name}.{self._twins[name] + 1}"


class Gathering:
    """One group while it is being gathered."""

    def __init__(self, first: DeadLetter) -> None:
        self._count = 0
        self._last = first
        self._tasks: set[str] = set()
        self._queues: set[str] = set()
        self._first_seen = first.died_at

    def add(self, letter: DeadLetter) -> None:
        """Count a letter in."""
        self._count += 1
        self._tasks.add(letter.task)
        self._queues.add(letter.queue)
        died_at = letter.died_at
        if died_at is not None:
            if self._last.died_at is None or died_at >= self._last.died_at:
                self._last = letter
            if self._first_seen is None or died_at < self._first_seen:
                self._first_seen = died_at

    def group(self) -> Group:
        """Return what was gathered."""
        certificate = self._last.certificate
        return Group(
            reason=certificate.reason,
            error=certificate.error,
            fingerprint=certificate.fingerprint,
            message=self._last.shown_message,
            count=self._count,
            first_seen=self._first_seen,
            last_seen=certificate.last_seen,
            tasks=tuple(sorted(self._tasks)),
            queues=tuple(sorted(self._queues)),
            sample=self._last.id,
        )


@dataclass
class Run:
    """Counts of one replay or discard."""

    dry_run: bool
    on_progress: OnProgress | None = None
    already_completed: int | None = None
    depth: int = 0
    looked_at: int = 0
    total: int = 0
    acted: int = 0
    done: int = 0
    skipped_max_replays: int = 0
    skipped_hopeless: int = 0
    failed: int = 0
    stopped: str = ""
    failures: list[Failure] = field(default_factory=list)
    destinations: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    asked: frozenset[str] = frozenset()
    found: set[str] = field(default_factory=set)
    found_letters: set[str] = field(default_factory=set)
    edited: int = 0
    edits: list[EditNote] = field(default_factory=list)
    #: Letters that were published and not taken out yet, with what to say of them if that stays so.
    sent: dict[str, str] = field(default_factory=dict)
    #: Unix time in seconds after which the broker may have taken back what is in hand.
    hold_until: float = float("inf")

    def ask(self, ids: Iterable[str]) -> bool:
        """Say which letters are asked for by name; whether any are."""
        self.asked = frozenset(ids)
        return bool(self.asked)

    def is_asked(self, letter: DeadLetter) -> bool:
        """Whether this letter, or its task, was asked for by name."""
        hits = self.asked & {letter.id, letter.task_id}
        self.found |= hits
        self.found_letters |= hits & {letter.id}
        return bool(hits)

    @property
    def all_found(self) -> bool:
        """Whether every letter that was asked for by its own identifier has come by (a task id may have more letters)."""
        return bool(self.asked) and len(self.found_letters) == len(self.asked)

    def fail(self, letter: DeadLetter, why: str) -> None:
        """Count a letter that was not moved."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(Failure(letter.id, why))

    def note(self, edit: EditNote) -> None:
        """Count a letter whose arguments were changed."""
        self.edited += 1
        if len(self.edits) < EDITS_KEPT:
            self.edits.append(edit)

    def give_up_sent(self) -> None:
        """Count what was published and could not be found again to take it out."""
        for identifier, left in self.sent.items():
            self.failed += 1
            if len(self.failures) < FAILURES_KEPT:
                self.failures.append(Failure(identifier, f"{left}, or somebody else has taken it"))
        self.sent.clear()

    def progress(self) -> None:
        """Tell whoever wants to know."""
        if self.on_progress is not None:
            skipped = self.skipped_max_replays + self.skipped_hopeless
            self.on_progress(Progress(self.looked_at, self.depth, self.done, skipped, self.failed))

    def _missing(self) -> tuple[str, ...]:
        return () if self.stopped else tuple(sorted(self.asked - self.found))

    def replay_report(self, canary: CanaryReport | None = None) -> ReplayReport:
        """Return the counts of a replay."""
        return ReplayReport(
            total=self.total,
            replayed=self.done,
            skipped_max_replays=self.skipped_max_replays,
            skipped_hopeless=self.skipped_hopeless,
            failed=self.failed,
            failures=tuple(self.failures),
            missing=self._missing(),
            already_completed=self.already_completed,
            destinations=dict(self.destinations),
            reasons=dict(self.reasons),
            stopped=self.stopped,
            dry_run=self.dry_run,
            edited=self.edited,
            edits=tuple(self.edits),
            canary=canary,
        )

    def discard_report(self) -> DiscardReport:
        """Return the counts of a discard."""
        return DiscardReport(
            total=self.total,
            discarded=self.done,
            failed=self.failed,
            failures=tuple(self.failures),
            missing=self._missing(),
            stopped=self.stopped,
            dry_run=self.dry_run,
        )
