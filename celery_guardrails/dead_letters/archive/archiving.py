"""Moves dead letters out of the broker into the database, and old rows out of the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ...errors import DeadLetterError, GuardrailsConfigError
from ...ports import Broker, Clock, QueuedLetter
from ..browsing import closed_after
from ..decoder import Decoder, KombuDecoder
from ..filters import Filter
from ..halt import Halt
from ..letter import DeadLetter, read_letter
from ..reports import FAILURES_KEPT, Failure
from ..tally import Names, Run
from .rows import values_of
from .table import Action, LetterTable, Row, State
from .trail import audited

__all__ = ["ELSEWHERE", "ArchiveReport", "Archiver", "Limits", "purge", "run_archive"]

#: The letter keeps its row all the same, and waits there: Redis says the same of one that was taken while its answer was lost.
ELSEWHERE = "somebody else took it out of the dead letter queue while it was being archived: it may have been replayed"
_AGAIN = "the same message came to the dead letter queue again"
#: Seconds after which a letter that lay in its queue would have been seen there: no operator holds one for so long.
_SURELY_SEEN = 86400.0
_Found = list[tuple[QueuedLetter, DeadLetter]]


@dataclass
class ArchiveReport:
    """What a run did.

    Args:
        archived: letters moved (that would be moved, in a dry run).
        known: of them those that were in the table already: an earlier run was killed before it could take them out.
        copies: of those the ones that no run had seen taken, and whose row stays as it was.
        elsewhere: letters that have a row, with a note, and that somebody else took out of the queue in the meantime.
        failed: letters that are still in the queue.
        failures: the first of them.
        purged: rows deleted by retention (that would be deleted, in a dry run).
        stopped: why it ended before the last letter, or "".
        queues: letters by dead letter queue.
        dry_run: nothing was touched.
    """

    archived: int = 0
    known: int = 0
    copies: int = 0
    elsewhere: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    purged: int = 0
    stopped: str = ""
    queues: dict[str, int] = field(default_factory=dict)
    dry_run: bool = False

    @property
    def clean(self) -> bool:
        """Whether everything that was asked for was done."""
        return not (self.failed or self.stopped)

    def fail(self, identifier: str, why: str) -> None:
        """Count a letter that stays where it is."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(Failure(identifier, why))


OnBatch = Callable[[ArchiveReport], None]


@dataclass(frozen=True)
class Limits:
    """What retention keeps.

    Args:
        keep_days: delete letters archived longer ago; None for no limit.
        keep_count: keep so many, the ones archived last; None for no limit.
        purge_waiting: delete those that wait as well; otherwise they are spared, and not counted.

    Raises:
        GuardrailsConfigError: a limit below 0.
    """

    keep_days: float | None = None
    keep_count: int | None = None
    purge_waiting: bool = False

    def __post_init__(self) -> None:
        for name, value in (("keep-days", self.keep_days), ("keep-count", self.keep_count)):
            if value is not None and value < 0:
                raise GuardrailsConfigError(f"--{name} {value!r}: a number of at least 0 is allowed")


def run_archive(
    rails: Any,
    table: LetterTable,
    *,
    queues: Sequence[str] = (),
    batch: int = 500,
    keep_days: float | None = None,
    keep_count: int | None = None,
    purge_waiting: bool = False,
    dry_run: bool = False,
    who: str = "archive",
    on_batch: OnBatch | None = None,
    broker: Broker | None = None,
) -> ArchiveReport:
    """Move the dead letters of an app into the database, then delete what retention does not keep.

    Args:
        rails: the app's :class:`~celery_guardrails.Guardrails`.
        table: of the archive.
        queues: only these task queues (or dead letter queues); none for all that the app knows.
        batch: see :class:`Archiver`.
        keep_days: see :class:`Limits`.
        keep_count: the same.
        purge_waiting: the same.
        dry_run: move and delete nothing, only count.
        who: for the audit trail, which tells of runs that moved or deleted something.
        on_batch: called after each batch; raises :class:`~celery_guardrails.dead_letters.halt.Halt` to end the run there.
        broker: where the letters lie; None for the app's.

    Raises:
        GuardrailsConfigError: an option is wrong.
    """
    broker = rails.broker if broker is None else broker
    decoder = KombuDecoder(rails.app.conf.accept_content)
    archiver = Archiver(broker, table, clock=rails.clock, decoder=decoder, batch=batch)
    limits = Limits(keep_days, keep_count, purge_waiting)
    chosen: dict[str, str] = {}
    for name in queues or (None,):
        chosen.update(rails.dead_letters.queues(name))
    report = ArchiveReport(dry_run=dry_run)
    if dry_run:
        archiver.run(chosen, report)
        report.purged = purge(table, limits, now=rails.clock.now(), dry_run=True)
        return report
    everything = table.select(Filter(), ids=(), state=None)
    trail = {"clock": rails.clock, "who": who, "count": lambda: table.count(everything)}
    if any(broker.depth(dead) for dead in chosen.values()):
        with audited(table, Action.ARCHIVE, selection=", ".join(chosen.values()), **trail) as entry:
            archiver.run(chosen, report, on_batch=on_batch)
            entry.letters, entry.outcome = report.archived, report.stopped
    if not report.stopped and purge(table, limits, now=rails.clock.now(), dry_run=True):
        with audited(table, Action.PURGE, selection=str(limits), **trail) as entry:
            report.purged = entry.letters = purge(table, limits, now=rails.clock.now())
    return report


class Archiver:
    """Moves letters in batches: read, insert in one transaction, take out of the broker.

    A run that is killed anywhere and started again loses no letter and makes no second row of one: the dead letter queue
    and the letter's identifier are unique together, and a letter that has its row already is only taken out. Any number
    of runs may go on at once. A message that is the same as an archived one in every byte, certificate and time of death
    included, is that letter.

    Args:
        broker: where the letters lie.
        table: where they go.
        clock: time.
        decoder: reads what the message's headers do not say.
        batch: letters read, inserted and taken at a time; so many are held in memory.
        state: of the rows: ``"waiting"``, or ``"discarded"`` for letters that are set aside.

    Raises:
        GuardrailsConfigError: a batch of less than one.
    """

    def __init__(
        self, broker: Broker, table: LetterTable, *, clock: Clock, decoder: Decoder, batch: int = 500, state: str = State.WAITING
    ) -> None:
        if batch < 1:
            raise GuardrailsConfigError(f"--batch {batch!r}: a whole number of at least 1 is allowed")
        self._broker = broker
        self._table = table
        self._clock = clock
        self._decoder = decoder
        self._batch_size = batch
        self._state = state

    def run(
        self,
        queues: Mapping[str, str],
        report: ArchiveReport,
        *,
        where: Filter = Filter(),  # noqa: B008 - frozen
        chosen: Run | None = None,
        on_batch: OnBatch | None = None,
    ) -> ArchiveReport:
        """Move what lies in the dead letter queues now.

        Args:
            queues: task queues with their dead letter queues.
            report: to count in; of a dry run it only says how many letters there are.
            where: only these letters; its queue is not looked at.
            chosen: knows which letters are asked for by name; None for all.
            on_batch: called after each batch; raises :class:`~celery_guardrails.dead_letters.halt.Halt` to end the run there.
        """
        try:
            for queue, dead_letter_queue in queues.items():
                depth = self._broker.depth(dead_letter_queue)
                report.queues[dead_letter_queue] = depth if report.dry_run else 0
                if report.dry_run:
                    report.archived += depth
                elif depth:
                    self._queue(queue, dead_letter_queue, depth, report, where, chosen, on_batch)
        except Halt as exc:
            report.stopped = str(exc)
        except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; what has been done must be told
            report.stopped = f"{type(exc).__name__}: {exc}"
        return report

    def _queue(
        self,
        queue: str,
        dead_letter_queue: str,
        depth: int,
        report: ArchiveReport,
        where: Filter,
        chosen: Run | None,
        on_batch: OnBatch | None,
    ) -> None:
        names = Names()
        gone = set(self._table.uncertain(dead_letter_queue, before=self._clock.now() - _SURELY_SEEN))

        def read(queued: QueuedLetter) -> DeadLetter:
            letter = read_letter(queued.message, queue=queue, dead_letter_queue=dead_letter_queue, decoder=self._decoder)
            letter = replace(letter, id=names.unique(letter.id))
            gone.discard(letter.id)
            return letter

        with closed_after(self._broker.browse(dead_letter_queue)) as browsing:
            found = islice(browsing, depth)  # what comes in meanwhile is of the next run
            while chunk := list(islice(found, self._batch_size)):
                letters = [(queued, letter) for queued in chunk if _is_meant(letter := read(queued), where, chosen)]
                if where.limit is not None:
                    letters = letters[: max(0, where.limit - report.archived - report.elsewhere)]
                kept = self._keep(dead_letter_queue, letters, report)
                if not kept and letters:
                    raise DeadLetterError(f"the database took none of {len(letters)} letters: {report.failures[-1].why}")
                self._take(dead_letter_queue, [(queued, letter) for queued, letter in letters if letter.id in kept], kept, report)
                if on_batch is not None:
                    on_batch(report)
        if gone:  # an earlier run was killed between taking them and saying so
            self._table.taken(dead_letter_queue, list(gone), [], note=ELSEWHERE, now=self._clock.now())

    # -- into the database ------------------------------------------------------------------------------------

    def _keep(self, dead_letter_queue: str, letters: _Found, report: ArchiveReport) -> dict[str, Row | None]:
        """Commit rows for letters; returns those that have one now, with the row as it was where there was one before."""
        values: dict[str, dict[str, Any]] = {}
        now = self._clock.now()
        for _, letter in letters:
            try:
                values[letter.id] = values_of(letter, now=now, state=self._state)
            except DeadLetterError as exc:
                report.fail(letter.id, str(exc))
        # read before the transaction begins: SQLite lets no reader become a writer while somebody else writes
        present = {row.letter_id: row for row in self._table.present(dead_letter_queue, list(values))} if values else {}
        new = [row for identifier, row in values.items() if identifier not in present]
        again = [row.pk for row in present.values() if self._changes(row)]
        refused: tuple[type[Exception], ...] = (*self._table.errors, ValueError)
        try:
            self._insert(new, again, now)
        except refused:
            for row in new:  # one that the database refuses must not keep the others out
                try:
                    self._insert([row], again, now)
                except refused as exc:
                    report.fail(row["letter_id"], f"{type(exc).__name__}: {exc}")
                    del values[row["letter_id"]]
        return {identifier: present.get(identifier) for identifier in values}

    def _insert(self, values: Sequence[Mapping[str, Any]], again: Sequence[int], now: float) -> None:
        if values or again:
            self._table.insert(values, again=again, state=self._state, note=_AGAIN if self._state == State.WAITING else "", now=now)

    def _changes(self, row: Row) -> bool:
        """Whether the state of a row is not what it is to be.

        It was taken out, and replayed or discarded, and there the message is again; or it waits and is to be set aside. A
        row whose letter was never seen taken is this very letter: what was done to it meanwhile stands.
        """
        return row.state != self._state and (row.taken_at is not None or row.state == State.WAITING)

    # -- out of the broker ------------------------------------------------------------------------------------

    def _take(self, dead_letter_queue: str, letters: _Found, kept: Mapping[str, Row | None], report: ArchiveReport) -> None:
        took: list[str] = []
        elsewhere: list[str] = []
        try:
            for queued, letter in letters:
                try:
                    self._broker.take(queued)
                except DeadLetterError as exc:
                    if exc.__cause__ is not None:  # of the broker's library: nobody knows whether it was taken
                        raise
                    elsewhere.append(letter.id)
                else:
                    took.append(letter.id)
        finally:
            report.archived += len(took)
            known = [row for identifier in took if (row := kept[identifier]) is not None]
            report.known += len(known)
            report.copies += sum(row.taken_at is None and not self._changes(row) for row in known)
            report.elsewhere += len(elsewhere)
            report.queues[dead_letter_queue] += len(took)
        if took or elsewhere:
            self._table.taken(dead_letter_queue, took, elsewhere, note=ELSEWHERE, now=self._clock.now())


def _is_meant(letter: DeadLetter, where: Filter, chosen: Run | None) -> bool:
    return where.matches(letter) and (chosen is None or not chosen.asked or chosen.is_asked(letter))


def purge(table: LetterTable, limits: Limits, *, now: float, dry_run: bool = False) -> int:
    """Delete the oldest rows beyond the limits, and return how many.

    Args:
        table: of the archive.
        limits: what is kept.
        now: unix time in seconds.
        dry_run: delete nothing, only count.
    """
    before = None if limits.keep_days is None else max(0.0, now - limits.keep_days * 86400)
    if before is None and limits.keep_count is None:
        return 0
    return table.purge(before=before, keep=limits.keep_count, waiting=limits.purge_waiting, dry_run=dry_run)
