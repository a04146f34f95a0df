"""Where one task stands, as a pure function of what was seen of it: the contract's five states, or none of them.

A task that moves is seen in two places or in none for a moment, so one look proves nothing: who calls this looks again
(:mod:`.auditor`), and tells what is seen twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from ..policy.lease import Record, RecordState

__all__ = ["OVER_LEASES", "SILENT", "Facts", "Letter", "Place", "Sight", "Standing", "State", "judge"]

#: Lengths of a lease for which a dead holder's message may be on its way back, out of everybody's sight: RabbitMQ redelivers when it
#: notices, which for a host that fell silent takes its heartbeat twice.
OVER_LEASES = 3.0
#: A result backend that did not answer.
SILENT = "?"


class State(str, Enum):
    """What a task is, at any moment exactly one of the first five."""

    WAITING = "waiting"
    DELAYED = "delayed"
    RUNNING = "running"
    COMPLETED = "completed"
    DEAD = "dead"
    #: Its result says that it failed, and there is no letter: ``dead_letter=False``, or somebody has discarded it.
    FAILED = "failed"
    UNACCOUNTED = "unaccounted"


class Place(str, Enum):
    """Where a message can be before it has its end."""

    READY = "ready"
    DELAYED = "delayed"
    #: A consumer has it and has not acknowledged it.
    HELD = "held"


@dataclass(frozen=True)
class Sight:
    """A message that was seen.

    Args:
        place: where.
        queue: it waits for, or came from.
        worker: that holds it, where that is known.
        active: the worker says that it runs.
        due: unix time in seconds at which its time comes, where that is known.
    """

    place: Place
    queue: str
    worker: str = ""
    active: bool = False
    due: float | None = None


@dataclass(frozen=True)
class Letter:
    """A dead letter that was seen.

    Args:
        id: by which ``dead-letters show`` finds it.
        queue: the task queue it comes from.
        reason: it is dead for.
        place: ``"queue"`` or ``"archive"``.
        state: ``"waiting"`` or ``"discarded"``.
    """

    id: str
    queue: str
    reason: str
    place: str = "queue"
    state: str = "waiting"

    @property
    def waits(self) -> bool:
        """Whether it can be replayed as it is."""
        return self.state == "waiting"

    @property
    def refused(self) -> bool:
        """Whether its key is another task's, with other arguments: what becomes of that one says nothing of this."""
        return self.reason == "conflict"

    def __str__(self) -> str:
        return f"{self.reason} (letter {self.id} of {self.queue}{', archived' if self.place == 'archive' else ''})"


@dataclass(frozen=True)
class Facts:
    """What was seen of one task in one look.

    Args:
        name: it was asked for by: idempotency key or task id.
        key: its idempotency key, as far as that is known.
        record: of the key.
        messages: alive.
        letters: of it.
        result: what the result backend says of a task by this id, "" where it says nothing, :data:`SILENT` where it did not answer.
    """

    name: str
    key: str
    record: Record | None = None
    messages: tuple[Sight, ...] = ()
    letters: tuple[Letter, ...] = ()
    result: str = ""

    @property
    def by_id(self) -> bool:
        """Whether one task was asked for by its id, and not all that have a key."""
        return self.name != self.key


@dataclass(frozen=True)
class Standing:
    """What one task is.

    Args:
        name: it was asked for by.
        key: its idempotency key.
        state: it is in.
        where: in words.
        contradiction: what it is at the same time, or "".
        note: what is worth a look and no contradiction, or "".
        fence: of its record; what is seen of another execution is another sight.
    """

    name: str
    key: str
    state: State
    where: str = ""
    contradiction: str = ""
    note: str = ""
    fence: int = field(default=0, repr=False)

    @property
    def settled(self) -> bool:
        """Whether nothing about it is odd."""
        return self.state is not State.UNACCOUNTED and not self.contradiction


def judge(facts: Facts, *, now: float, lease: float, all_held: bool) -> Standing:
    """Say where a task stands.

    Args:
        facts: seen in one look.
        now: unix time in seconds by the store's clock.
        lease: length of a lease in seconds.
        all_held: whether messages in the hands of consumers are all seen.
    """
    record = facts.record
    waiting = [letter for letter in facts.letters if letter.waits]
    refused = [letter for letter in waiting if letter.refused]
    found = partial(Standing, facts.name, facts.key, fence=record.fence if record is not None else 0)
    if facts.by_id and not facts.messages and facts.letters and all(letter.refused for letter in facts.letters):
        return found(state=State.DEAD, where=_buried(facts.letters))
    both = f", and dead-lettered as {_listed(own)}" if (own := [letter for letter in waiting if not letter.refused]) else ""
    note = f"a task with this key and other arguments is dead-lettered as {_listed(refused)}" if refused else ""
    if record is not None and record.state is RecordState.COMPLETED:
        where = "the store has its completion"
        return found(state=State.COMPLETED, where=where, contradiction=both and f"completed{both}", note=note)
    if record is not None and record.state is RecordState.LEASED and record.until > now:
        where = f"leased by {record.owner or record.holder}"
        return found(state=State.RUNNING, where=where, contradiction=both and f"running{both}", note=note)
    if facts.messages:
        state, where = _alive(facts.messages)
        if over := _over(record, now):
            where += f"; its holder {over}"
        note = f"also dead-lettered as {_listed(waiting)}: published twice, or being replayed" if waiting else ""
        return found(state=state, where=where, note=note)
    if facts.letters:
        return found(state=State.DEAD, where=_buried(facts.letters), note="more than one letter" if len(waiting) > 1 else "")
    if record is not None and record.state is RecordState.LEASED and not all_held and now - record.until < OVER_LEASES * lease:
        where = f"its holder {_over(record, now)}, and its message comes back to the queue when the broker notices"
        return found(state=State.WAITING, where=where)
    if facts.result == "SUCCESS":
        return found(state=State.COMPLETED, where="the result backend has its result")
    if facts.result in ("FAILURE", "REVOKED"):
        return found(state=State.FAILED, where=f"the result backend says {facts.result}, and there is no letter")
    return found(state=State.UNACCOUNTED, where=_last(record, now))


def _alive(messages: tuple[Sight, ...]) -> tuple[State, str]:
    for sight in messages:
        if sight.active:
            return State.RUNNING, f"{sight.worker} says that it runs it, and has no lease of the store"
    sight = min(messages, key=lambda one: list(Place).index(one.place))
    if sight.place is Place.READY:
        return State.WAITING, f"in queue {sight.queue}"
    if sight.place is Place.DELAYED:
        return State.DELAYED, f"for queue {sight.queue}"
    return State.WAITING, f"taken from queue {sight.queue} by {sight.worker or 'a worker'}, not begun"


def _over(record: Record | None, now: float) -> str:
    if record is None or record.state is not RecordState.LEASED:
        return ""
    return f"{record.owner or record.holder} is gone, its lease is over since {now - record.until:.0f} s"


def _last(record: Record | None, now: float) -> str:
    if record is None:
        return "no record, no message, no letter"
    if over := _over(record, now):
        return f"no message and no letter; its holder {over}"
    return f"no message and no letter; {record.attempts} attempts charged, last claimed {max(0.0, now - record.claimed_at):.0f} s ago"


def _buried(letters: tuple[Letter, ...]) -> str:
    waiting = [letter for letter in letters if letter.waits]
    return _listed(waiting) if waiting else f"discarded: {_listed(letters)}"


def _listed(letters: Iterable[Letter]) -> str:
    return ", ".join(map(str, letters))
