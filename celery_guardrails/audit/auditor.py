"""Looks, and looks again: counts, and where each task stands that was asked for or is odd.

Messages go from delays to queues to workers, and the look goes the same way: what moves on meanwhile is met later. What a retry
sends back behind the look is missed, so whoever is nowhere is looked for again, until it is found or the time is over.
Completions and letters are asked for last: they stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from ..dead_letters.browsing import closed_after
from ..dead_letters.filters import Filter
from ..dead_letters.service import DeadLetters
from ..errors import GuardrailsConfigError
from ..policy.delivery import DEAD_LETTER_HEADER
from ..policy.key import is_ours, shortened
from ..policy.lease import Record, RecordState
from ..ports import Backlog, Broker, Clock, CountingStore, IdempotencyStore, OpenBroker
from .archived import ArchivedLetters
from .report import Audit, Finding, QueueCount, findings_of
from .sightings import Answer, KeyOf, Sightings
from .standing import OVER_LEASES, SILENT, Facts, Letter, Place, Sight, Standing, State, judge

__all__ = ["Auditor", "Sources"]

#: Seconds between two looks.
_PAUSE = 1.0
#: Seconds after which a message whose time has come should have been moved.
_OVERDUE = 60.0


@dataclass(frozen=True)
class Sources:
    """Whom an audit asks.

    Args:
        broker: of the app.
        store: of the guard.
        letters: over the dead letter queues alone.
        archive: the archived letters, or None where there is no archive.
        workers: asks all workers what they hold.
        result: says a task's state in the result backend, "", or :data:`~.standing.SILENT`.
        key_of: computes the key of a message that travels without one.
        clock: time.
        lease: length of a lease in seconds.
    """

    broker: Broker
    store: IdempotencyStore
    letters: DeadLetters
    archive: ArchivedLetters | None
    workers: Callable[[], Sequence[Answer]]
    result: Callable[[str], str]
    key_of: KeyOf
    clock: Clock
    lease: float


@dataclass
class _Dead:
    """What lies in the dead letter queues."""

    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    bare: int = 0
    unread: list[str] = field(default_factory=list)


class Auditor:
    """Audits one app.

    Args:
        sources: whom it asks.
        limit: messages in one queue above which nobody looks through it.
        wait: seconds for which what cannot be found is looked for.
        counted: also look through queues that count every look as a delivery (quorum queues).
        queues: further task queues that the app does not know.

    Raises:
        GuardrailsConfigError: an option is wrong, or the broker cannot be audited.
    """

    def __init__(
        self, sources: Sources, *, limit: int = 10_000, wait: float = 10.0, counted: bool = False, queues: Iterable[str] = ()
    ) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise GuardrailsConfigError(f"limit = {limit!r}: a whole number of messages of at least 0 is allowed")
        if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait < float("inf"):
            raise GuardrailsConfigError(f"wait = {wait!r}: a number of seconds of at least 0 is allowed")
        if not isinstance(sources.broker, OpenBroker):
            raise GuardrailsConfigError(f"broker_url: {type(sources.broker).__name__} cannot be looked through from outside")
        self._from = sources
        self._broker: Any = sources.broker
        self._limit, self._wait, self._counted = limit, wait, counted
        self._queues: dict[str, str] = dict(sources.letters.queues())
        for name in queues:
            self._queues.update(sources.letters.queues(name))
        self._answers: Sequence[Answer] = ()
        self._blind: list[str] = []
        self._strict = False
        self._looks = 0

    def run(self, names: Iterable[str] | None = None) -> Audit:
        """Count everything, find what is odd, and say where each of these tasks stands.

        Args:
            names: idempotency keys or task ids; None: nobody is asked for.

        Raises:
            GuardrailsConfigError: more messages than the limit would have to be looked through.
            StoreUnavailable, PublishFailed, DeadLetterError: the store or the broker does not answer.
        """
        if isinstance(names, str):
            raise GuardrailsConfigError(f"keys = {names!r}: several keys are allowed, in a list for instance")
        begun = self._from.clock.now()
        asked = list(dict.fromkeys(map(shortened, names))) if names is not None else []
        self._strict = bool(asked)
        backlog: Backlog = self._broker.backlog([*self._queues, *self._queues.values()])
        self._answers = self._from.workers()
        dead = self._dead(backlog)
        leases = {key: record for key, record in self._from.store.leases() if not is_ours(key)}
        now = self._from.store.now()
        completed = self._completed()
        over = {key: record for key, record in leases.items() if record.until <= now}
        standings, suspects = self._standings(asked, dead, over)
        blind = self._blind
        findings = [
            *self._of_broker(backlog),
            *_of_letters(dead, self._strict),
            *findings_of(standings, blind),
            *findings_of((one for one in suspects if not one.settled), blind),
        ]
        return Audit(
            at=begun,
            seconds=self._from.clock.now() - begun,
            looks=self._looks,
            queues=tuple(
                QueueCount(
                    name,
                    backlog.queues[name].ready,
                    backlog.queues[name].consumers,
                    letters,
                    backlog.queues[letters].ready,
                    dead.reasons.get(name),
                )
                for name, letters in self._queues.items()
            ),
            delayed=backlog.delayed,
            overdue=backlog.overdue,
            held=backlog.held if backlog.held is not None else sum(len(answer.held) for answer in self._answers),
            running=len(leases) - len(over),
            over=len(over),
            completed=completed,
            archived=None if self._from.archive is None else self._from.archive.counts(),
            workers=tuple(sorted(answer.worker for answer in self._answers)),
            standings=tuple(standings),
            findings=tuple(findings),
        )

    # -- counts -----------------------------------------------------------------------------------------------

    def _completed(self) -> int | None:
        store = self._from.store
        if not isinstance(store, CountingStore):
            return None
        return sum(part.get(RecordState.COMPLETED, 0) for part in store.census())

    def _dead(self, backlog: Backlog) -> _Dead:
        found = _Dead()
        for queue, letters in self._queues.items():
            count = backlog.queues[letters].ready
            if count > self._limit:
                found.unread.append(f"{count} letters in {letters}")
                continue
            reasons = found.reasons.setdefault(queue, Counter())
            if count:
                with closing(self._from.letters.list(Filter(queue=queue))) as listed:
                    for letter in listed:
                        reasons[letter.reason] += 1
                        found.bare += DEAD_LETTER_HEADER not in letter.message.headers
                        if letter.key:
                            found.keys.add(letter.key)
        return found

    def _of_broker(self, backlog: Backlog) -> Iterator[Finding]:
        if backlog.overdue and backlog.overdue_seconds > _OVERDUE:
            yield Finding(
                "overdue",
                f"{backlog.overdue} delayed messages should be in their queues, the first since {backlog.overdue_seconds:.0f} s",
                mend="start a worker of this app: workers with the plug-in move them",
            )
        if backlog.unrouted:
            yield Finding(
                "unrouted",
                f"{backlog.unrouted} delayed messages have come to a queue that is not there any more (guardrails.delay.unrouted)",
                mend="start a worker that consumes the queue: it declares it, and sends them on",
            )
        if not self._answers and (backlog.delayed or any(backlog.queues[name].ready for name in self._queues)):
            yield Finding("no worker", "messages wait, and no worker has answered", error=False)

    # -- one by one -------------------------------------------------------------------------------------------

    def _standings(self, asked: Sequence[str], dead: _Dead, over: Mapping[str, Record]) -> tuple[list[Standing], list[Standing]]:
        """Return where those stand that were asked for, and those that may be odd: dead ones, and who lost their holder long ago."""
        now, known = self._from.store.now(), set(asked)
        gone = [key for key, record in over.items() if now - record.until >= OVER_LEASES * self._from.lease]
        others = [key for key in dict.fromkeys([*gone, *dead.keys]) if key not in known]
        # records and letters first: where they answer, nobody needs to look through messages
        found = self._look([*asked, *others])
        nowhere = [name for name, one in found.items() if one.state is State.UNACCOUNTED]
        found.update(self._look(nowhere, messages=True, everywhere=True))
        odd, deadline = _odd(found), self._from.clock.now() + self._wait
        while odd and self._from.clock.now() < deadline:
            self._from.clock.sleep(_PAUSE)
            seen = self._look(odd, messages=any(found[name].state is State.UNACCOUNTED for name in odd))
            odd = [name for name in _odd(seen) if not _twice(found[name], seen[name])]
            found.update(seen)
        found.update(self._look([name for name in odd if found[name].state is State.UNACCOUNTED], messages=True, everywhere=True))
        return [found[name] for name in asked], [found[name] for name in others]

    def _look(self, names: Sequence[str], *, messages: bool = False, everywhere: bool = False) -> dict[str, Standing]:
        """Say where these stand, by one look.

        Args:
            names: of those that are looked for.
            messages: look through everything that is alive as well.
            everywhere: ask of those that are nowhere also whom it is dear to ask.
        """
        if not names:
            return {}
        self._looks += 1
        self._blind = []
        seen = Sightings(frozenset(names), self._from.key_of)
        all_held = messages and self._see_messages(seen)
        records = {name: self._from.store.lookup(name) for name in names}
        self._see_letters(seen)
        records.update({name: self._from.store.lookup(key) for name, key in seen.keys.items() if key != name})
        now, found, silent = self._from.store.now(), {}, 0
        for name in names:
            facts = Facts(name, seen.keys.get(name, name), records[name], tuple(seen.messages[name]), tuple(seen.letters[name]))
            found[name] = judge(facts, now=now, lease=self._from.lease, all_held=all_held)
            if everywhere and found[name].state is State.UNACCOUNTED:
                archived = () if self._from.archive is None else self._from.archive.letters(name)
                facts = replace(facts, letters=archived, result="" if archived else self._from.result(name))
                found[name] = judge(facts, now=now, lease=self._from.lease, all_held=all_held)
                silent += facts.result == SILENT
        if silent:
            self._blind.append(f"{silent} results, for which the result backend gave no answer")
        return found

    def _see_messages(self, seen: Sightings) -> bool:
        """Look through everything that is alive, in the direction in which it goes; whether all that consumers hold was seen."""
        backlog: Backlog = self._broker.backlog(self._queues)
        if self._may_look(backlog.delayed, "that wait for their time"):
            with closed_after(self._broker.delayed_messages()) as delayed:
                for found in delayed:
                    seen.message(found.message, Sight(Place.DELAYED, found.queue, due=found.due))
        for queue, depth in ((queue, backlog.queues[queue]) for queue in self._queues):
            if depth.counted and not self._counted and depth.ready:
                self._blind.append(f"{depth.ready} messages in quorum queue {queue!r}, where a look counts as a delivery (--quorum looks)")
            elif self._may_look(depth.ready, f"in queue {queue!r}"):
                with closed_after(self._from.broker.browse(queue)) as ready:
                    for letter in ready:
                        seen.message(letter.message, Sight(Place.READY, queue))
        if backlog.held is None:
            return self._see_held(seen, backlog)
        if self._may_look(backlog.held, "that workers hold"):
            with closed_after(self._broker.held_messages()) as held:
                for found in held:
                    seen.message(found.message, Sight(Place.HELD, found.queue))
        return True

    def _see_held(self, seen: Sightings, backlog: Backlog) -> bool:
        """Ask the workers what they hold; whether every consumer's has answered."""
        self._answers = self._from.workers()
        for answer in self._answers:
            for one in answer.held:
                seen.held(one, Sight(Place.HELD, one.queue, answer.worker, one.active))
        silent = 0
        for queue in self._queues:
            answered = sum(queue in answer.queues for answer in self._answers)
            silent = max(silent, (backlog.queues[queue].consumers or 0) - answered)
        if silent:
            self._blind.append(f"what {silent} consumers hold whose workers did not answer")
        return not silent

    def _may_look(self, count: int, where: str) -> bool:
        """Whether so many messages are not too many.

        Raises:
            GuardrailsConfigError: they are, and somebody asks for tasks that may be among them.
        """
        if count <= self._limit:
            return count > 0
        if self._strict:
            raise GuardrailsConfigError(
                f"--limit {self._limit}: {count} messages {where} would have to be looked through, which RabbitMQ holds for the moment; "
                f"--limit {count} does it all the same"
            )
        self._blind.append(f"{count} messages {where} (--limit {count} looks)")
        return False

    def _see_letters(self, seen: Sightings) -> None:
        for queue, letters in self._queues.items():
            if self._may_look(self._from.broker.depth(letters), f"in dead letter queue {letters!r}"):
                with closing(self._from.letters.list(Filter(queue=queue))) as listed:
                    for letter in listed:
                        seen.letter(letter.key, letter.task_id, Letter(letter.id, letter.queue, letter.reason))


def _odd(found: Mapping[str, Standing]) -> list[str]:
    return [name for name, one in found.items() if not one.settled]


def _twice(before: Standing, now: Standing) -> bool:
    """Whether the same contradiction was seen in two looks, of the same execution."""
    return bool(now.contradiction) and (before.contradiction, before.fence) == (now.contradiction, now.fence)


def _of_letters(dead: _Dead, asked: bool) -> Iterator[Finding]:
    if dead.bare:
        text = f"{dead.bare} letters have no header of ours: the broker or another program put them there"
        yield Finding("letters without a header", text, mend="`guardrails dead-letters list --reason broker`", error=False)
    for what in dead.unread:
        text = f"{what} were not looked at, so no reasons and no contradictions are known of them"
        yield Finding("not looked at", text, mend="a higher --limit", error=asked)
