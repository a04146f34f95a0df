"""The archive of dead letters: what lies there, and what an operator does with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice

from ...errors import DeadLetterError, GuardrailsConfigError, PublishFailed, StoreUnavailable
from ...policy.lease import RecordState
from ...ports import Broker, Clock, IdempotencyStore
from ..decoder import Decoder
from ..filters import Filter
from ..letter import DeadLetter
from ..pace import Pace
from ..redaction import Redactor, hide_secrets
from ..reports import DiscardReport, Group, ReplayReport
from ..restore import restored
from ..tally import Run
from ..tasks import Tasks, names_of, no_tasks
from .rows import letter_of
from .table import Action, Entry, LetterTable, Row, Selection, State
from .trail import audited

__all__ = ["Archive", "ArchivedGroup"]

_CHUNK = 200
_TREND_HOURS = 24
#: What of a report the trail keeps.
_KEPT = ("skipped_max_replays", "skipped_hopeless", "failed", "stopped", "destinations")


@dataclass(frozen=True)
class ArchivedGroup(Group):
    """A group of archived letters.

    Args:
        sample_pk: primary key of the letter named in ``sample``.
        trend: deaths in each of the last 24 hours, the oldest first.
    """

    sample_pk: int
    trend: tuple[int, ...]


class Archive:
    """Looks after archived letters: list, groups, show, replay, discard, restore.

    What changes letters writes an entry of the audit trail.

    Args:
        table: keeps them.
        broker: to publish what is replayed; None where only looked at.
        store: says in a dry run which keys have completed meanwhile; None where there is none.
        clock: time.
        decoder: reads arguments.
        redact: what of the arguments and errors may be shown.
        tasks: finds what the app knows of a task: the names of positional arguments, and what an edit must fit.
    """

    def __init__(
        self,
        table: LetterTable,
        broker: Broker | None,
        store: IdempotencyStore | None,
        *,
        clock: Clock,
        decoder: Decoder,
        redact: Redactor = hide_secrets,
        tasks: Tasks = no_tasks,
    ) -> None:
        self.table = table
        self.clock = clock
        self.decoder = decoder
        self.broker = broker
        self.store = store
        self.redact = redact
        self.tasks = tasks
        self._argument_names = names_of(tasks)

    # -- looking ----------------------------------------------------------------------------------------------

    def rows(self, where: Filter = Filter(), *, ids: Iterable[str] = (), state: str | None = State.WAITING) -> Selection:  # noqa: B008 - frozen
        """Return which letters match, in the form of the table (a query set in Django).

        Args:
            where: which letters; its limit is not kept here.
            ids: only these, by identifier or whole task id.
            state: ``"waiting"``, ``"replayed"``, ``"discarded"``, or None for all.
        """
        return self.table.select(where, ids=ids, state=state)

    def first(self, rows: Selection, limit: int | None) -> Selection:
        """Return so many of a selection at most, the ones archived first."""
        last = None if limit is None else self.table.nth(rows, limit - 1)
        return rows if last is None else self.table.up_to(rows, last)

    def letter(self, row: Row) -> DeadLetter:
        """Return the dead letter of a row."""
        return letter_of(row, decoder=self.decoder, redact=self.redact, names=self._argument_names)

    def list(self, where: Filter = Filter(), *, state: str | None = State.WAITING) -> Generator[DeadLetter, None, None]:  # noqa: B008 - frozen
        """Yield the letters that match, the ones archived first first."""
        for row in islice(self.each(self.rows(where, state=state)), where.limit):
            yield self.letter(row)

    def show(self, identifier: str, *, state: str | None = None) -> DeadLetter:
        """Return one letter.

        Args:
            identifier: of the letter, or the whole task id (then the letter archived last).
            state: it must be in; None for any.

        Raises:
            DeadLetterError: there is no such letter.
        """
        for row in self.table.chunk(self.rows(ids=[identifier], state=state), limit=1, newest_first=True):
            return self.letter(row)
        raise DeadLetterError(f"there is no dead letter {identifier!r} in the archive")

    def groups(self, where: Filter = Filter(), *, state: str | None = State.WAITING) -> Sequence[ArchivedGroup]:  # noqa: B008 - frozen
        """Return the letters that match in groups of one reason and one error, the largest group first.

        The database counts; nothing is held in memory but the groups.
        """
        return self.groups_of(self.rows(where, state=state), limit=where.limit)

    def groups_of(self, rows: Selection, *, limit: int | None = None) -> Sequence[ArchivedGroup]:
        """Return the letters of a selection in groups, as :meth:`groups` does."""
        found = self.table.groups(rows, limit=limit)
        samples = self.table.samples([each.newest for each in found])
        tasks, queues, trends = self._names(rows, "task"), self._names(rows, "queue"), self._trends(rows)
        groups = []
        for each in found:
            reason, error, fingerprint = each.name
            identifier, message = samples.get(each.newest, ("", ""))
            groups.append(
                ArchivedGroup(
                    reason=reason,
                    error=error,
                    fingerprint=fingerprint,
                    message=str(self.redact(message)),
                    count=each.count,
                    first_seen=each.first,
                    last_seen=each.last,
                    tasks=tasks.get(each.name, ()),
                    queues=queues.get(each.name, ()),
                    sample=identifier,
                    sample_pk=each.newest,
                    trend=tuple(trends.get(each.name, [0] * _TREND_HOURS)),
                )
            )
        return groups

    def _names(self, rows: Selection, column: str) -> dict[tuple[str, ...], tuple[str, ...]]:
        names: dict[tuple[str, ...], tuple[str, ...]] = {}
        for *group, name in self.table.names(rows, column):
            names[tuple(group)] = (*names.get(tuple(group), ()), name)
        return names

    def _trends(self, rows: Selection) -> Mapping[tuple[str, ...], Sequence[int]]:
        this_hour = int(self.clock.now() // 3600)
        trends: dict[tuple[str, ...], list[int]] = {}
        for reason, error, fingerprint, hour, number in self.table.hours(rows, (this_hour - _TREND_HOURS + 1) * 3600.0):
            trend = trends.setdefault((reason, error, fingerprint), [0] * _TREND_HOURS)
            ago = this_hour - hour
            if 0 <= ago < _TREND_HOURS:
                trend[-1 - ago] += number
        return trends

    def each(self, rows: Selection, *, newest_first: bool = False) -> Iterator[Row]:
        """Yield rows that may change state while they go by; a database cursor would be gone with the first commit."""
        beyond = None
        while chunk := self.table.chunk(rows, limit=_CHUNK, beyond=beyond, newest_first=newest_first):
            yield from chunk
            beyond = chunk[-1].pk

    # -- moving -----------------------------------------------------------------------------------------------

    def replay(
        self,
        rows: Selection,
        *,
        who: str,
        why: str = "",
        selection: str = "",
        dry_run: bool = False,
        canary: bool = False,
        rate: float | None = None,
        to_queue: str | None = None,
        max_replays: int = 3,
        hopeless: bool = False,
        limit: int | None = None,
        seconds: float | None = None,
    ) -> ReplayReport:
        """Publish letters into their task queues, with their task id and key, and a fresh count of attempts.

        Each is published with a confirm inside of the transaction that marks it as replayed: two operators replay each
        letter once, and a crash in between repeats it and never loses it (its key keeps it from running twice).

        Args:
            rows: which letters, see :meth:`rows`; those that do not wait, or that an open canary has chosen, are left alone.
            who: does it.
            why: for the audit trail.
            selection: the same: which letters these are.
            dry_run: move nothing, only count.
            canary: only one, the newest.
            rate: letters a second, evenly spaced; None for as fast as it goes.
            to_queue: put them all into this task queue.
            max_replays: leave letters alone that have been replayed so often before.
            hopeless: do not leave those alone that can only die again (undecodable, invalid, no task message at all).
            limit: so many at most.
            seconds: stop after so long.

        Raises:
            GuardrailsConfigError: an option is wrong.
        """
        if isinstance(max_replays, bool) or not isinstance(max_replays, int) or max_replays < 1:
            raise GuardrailsConfigError(f"max_replays = {max_replays!r}: a whole number of at least 1 is allowed")
        if self.broker is None and not dry_run:
            raise GuardrailsConfigError("this archive has no broker to publish with")
        pace, run = Pace(self.clock, rate), Run(dry_run=dry_run, already_completed=0 if dry_run and self.store else None)
        waiting = self.table.free(self.table.only(rows, State.WAITING))
        limit = 1 if canary else limit
        end = None if seconds is None else self.clock.now() + seconds

        def work() -> None:
            for row in self.each(waiting, newest_first=canary):
                letter = self.letter(row)
                run.total += 1
                if letter.replays >= max_replays:
                    run.skipped_max_replays += 1
                    continue
                if letter.hopeless and not hopeless:
                    run.skipped_hopeless += 1
                    continue
                if not dry_run:
                    pace.wait()
                self._replay(row, letter, to_queue or letter.queue, run)
                if run.done == limit:
                    return
                if end is not None and self.clock.now() >= end:
                    run.stopped = f"{seconds:g} seconds are over"
                    return

        if dry_run:
            work()
            return run.replay_report()
        with self.audited(Action.CANARY if canary else Action.REPLAY, waiting, who, why, selection) as entry:
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; what has been done must be told
                run.stopped = f"{type(exc).__name__}: {exc}"
            report = run.replay_report()
            note_replay(entry, report)
        return report

    def _replay(self, row: Row, letter: DeadLetter, destination: str, run: Run) -> None:
        if run.dry_run:
            if run.already_completed is not None:
                run.already_completed = self._plus_completed(run.already_completed, letter)
        else:
            try:
                if not self.send(row, letter, destination):
                    run.total -= 1
                    return
            except PublishFailed as exc:
                run.fail(letter, str(exc))
                return
        run.done += 1
        run.destinations[destination] += 1
        run.reasons[letter.reason] += 1

    def send(self, row: Row, letter: DeadLetter, destination: str, *, mark: Callable[[], bool] | None = None) -> bool:
        """Publish a letter inside of the transaction that marks its row as replayed; whether it still waited, and was nobody's.

        Args:
            row: the letter's.
            letter: what is published; another one than the row's where it was edited.
            destination: task queue.
            mark: marks the row, where there is more to be marked than that it was replayed; returns whether it could.

        Raises:
            PublishFailed: it waits on.
            GuardrailsConfigError: this archive has no broker.
        """
        if self.broker is None:
            raise GuardrailsConfigError("this archive has no broker to publish with")
        with self.table.atomic():
            # who marks it holds its row until the end; somebody else who wants the same letter waits, and finds it replayed
            if not (mark() if mark is not None else self._mark(row)):
                return False
            self.broker.send(restored(letter, now=self.clock.now()), destination)
        return True

    def _mark(self, row: Row) -> bool:
        return self.table.mark(row.pk, old=State.WAITING, new=State.REPLAYED, now=self.clock.now())

    def discard(self, rows: Selection, *, who: str, why: str = "", selection: str = "") -> DiscardReport:
        """Set letters that wait aside; :meth:`restore` takes it back, until retention deletes them.

        Args:
            rows: which letters, see :meth:`rows`; those that do not wait, or that an open canary has chosen, are left alone.
            who: does it.
            why: for the audit trail.
            selection: the same: which letters these are.
        """
        changed = self._change(Action.DISCARD, rows, State.WAITING, State.DISCARDED, who, why, selection)
        return DiscardReport(total=changed, discarded=changed)

    def restore(self, rows: Selection, *, who: str, why: str = "", selection: str = "") -> int:
        """Let discarded letters wait again, and return how many; the arguments are those of :meth:`discard`."""
        return self._change(Action.RESTORE, rows, State.DISCARDED, State.WAITING, who, why, selection)

    def _change(self, action: str, rows: Selection, old: str, new: str, who: str, why: str, selection: str) -> int:
        with self.table.atomic(), self.audited(action, self.table.free(self.table.only(rows, old)), who, why, selection) as entry:
            entry.letters = self.table.change(rows, old=old, new=new, now=self.clock.now())
        return entry.letters

    def audited(
        self, action: str, rows: Selection, who: str, why: str = "", selection: str = "", outcome: str = ""
    ) -> AbstractContextManager[Entry]:
        """Write an entry of the trail around what is done to letters, see :func:`~celery_guardrails.dead_letters.archive.trail.audited`."""
        count = lambda: self.table.count(rows)  # noqa: E731 - the same selection is counted before and after
        return audited(self.table, action, clock=self.clock, who=who, count=count, why=why, selection=selection, outcome=outcome)

    # -- what a confirmation says --------------------------------------------------------------------------------

    def destinations(self, rows: Selection) -> Mapping[str, int]:
        """Return how many letters of a selection would go to each task queue."""
        return self.table.queues(rows, "queue")

    def _plus_completed(self, known: int, letter: DeadLetter) -> int | None:
        if self.store is None or not letter.key:
            return known
        try:
            record = self.store.lookup(letter.key)
        except StoreUnavailable:
            return None
        return known + (record is not None and record.state is RecordState.COMPLETED)


def note_replay(entry: Entry, report: ReplayReport) -> None:
    """Write into an entry of the trail what a replay did."""
    entry.letters = report.replayed
    kept = {name: value for name, value in asdict(report).items() if name in _KEPT and value}
    if report.edits:
        kept["edited"] = report.edited
    entry.outcome = json.dumps(kept, default=str) if kept else ""
