"""What an audit found, as frozen values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .standing import Standing, State

__all__ = ["Audit", "Finding", "QueueCount", "findings_of"]

#: What to do about what was found of one task.
_MEND = {
    "completed and dead": "if its effect is there, `guardrails dead-letters discard ID`; a replay does not run a completed key again",
    "running and dead": "look again when it has ended; a letter that somebody is replaying looks like this for a moment",
    "failed": "a task with dead_letter=False, one that was revoked, or a letter that somebody has discarded",
    "unaccounted": "`guardrails lookup KEY`; if it was not revoked, expired, purged or discarded, publish it again with the same key",
}


@dataclass(frozen=True)
class Finding:
    """Something that an operator should know.

    Args:
        kind: a few words, always the same for the same thing.
        text: what, and how to find it.
        key: idempotency key or task id it is about, or "".
        mend: what to do, or "".
        error: it breaks conservation, or may hide what does; others are only worth a look.
    """

    kind: str
    text: str
    key: str = ""
    mend: str = ""
    error: bool = True


@dataclass(frozen=True)
class QueueCount:
    """A task queue and its dead letter queue.

    Args:
        name: of the task queue.
        waiting: messages ready, by the broker's count.
        consumers: of it; None where the broker does not tell.
        dead_letter_queue: its name.
        dead: letters in there, by the broker's count.
        reasons: how many are dead for which reason; None where they were not looked at.
    """

    name: str
    waiting: int
    consumers: int | None
    dead_letter_queue: str
    dead: int
    reasons: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Audit:
    """Where everything is; of no single instant, since tasks move while it is looked at.

    Args:
        at: unix time in seconds at which it began.
        seconds: that it took.
        looks: at the tasks that were asked for, or were odd.
        queues: the app's task queues.
        delayed: messages that wait for their time, by the broker's count.
        overdue: of these, whose time has come and nobody moves them; None where the broker moves them itself.
        held: messages that workers have and did not acknowledge, running or not: by the broker's count, of all apps on it, or where it
            does not count them by what the workers said.
        running: live leases.
        over: leases whose holder is gone.
        completed: records of completed keys that are still retained; None where the store does not count.
        archived: letters in the archive by their state; None where there is no archive.
        workers: that answered.
        standings: of each key or task id that was asked for, in that order.
        findings: what is odd.
    """

    at: float
    seconds: float
    looks: int
    queues: tuple[QueueCount, ...] = ()
    delayed: int = 0
    overdue: int | None = None
    held: int = 0
    running: int = 0
    over: int = 0
    completed: int | None = None
    archived: Mapping[str, int] | None = None
    workers: tuple[str, ...] = ()
    standings: tuple[Standing, ...] = field(default=(), repr=False)
    findings: tuple[Finding, ...] = ()

    @property
    def conserved(self) -> bool:
        """Whether nothing contradicts itself and nothing is unaccounted for."""
        return not any(finding.error for finding in self.findings)

    @property
    def balance(self) -> dict[State, int]:
        """How many of those that were asked for are in which state; their sum is how many were asked for."""
        counts = dict.fromkeys(State, 0)
        for standing in self.standings:
            counts[standing.state] += 1
        return counts

    @property
    def waiting(self) -> int:
        """Messages ready in all task queues."""
        return sum(queue.waiting for queue in self.queues)

    @property
    def dead(self) -> int:
        """Letters in all dead letter queues."""
        return sum(queue.dead for queue in self.queues)


def findings_of(standings: Iterable[Standing], blind: Sequence[str]) -> list[Finding]:
    """Return what is odd about tasks.

    Args:
        standings: that were seen more than once.
        blind: where nobody looked, in words.
    """
    found = []
    for one in standings:
        if one.state is State.UNACCOUNTED:
            where = f"{one.name}: {one.where}" + (f"; not seen: {', '.join(blind)}" if blind else "")
            found.append(Finding("unaccounted", where, one.key, _MEND["unaccounted"]))
        elif one.contradiction:
            kind = f"{one.state.value} and dead"
            found.append(Finding(kind, f"{one.name}: {one.contradiction}", one.key, _MEND[kind]))
        elif one.state is State.FAILED:
            found.append(Finding("failed without a letter", f"{one.name}: {one.where}", one.key, _MEND["failed"], error=False))
        elif one.note:
            found.append(Finding(f"{one.state.value}, and more", f"{one.name}: {one.where}; {one.note}", one.key, error=False))
    return found
