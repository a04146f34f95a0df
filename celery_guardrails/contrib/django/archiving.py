"""Moves dead letters out of the broker into the database, and old rows out of the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from django.db import DatabaseError, router, transaction
from django.db.models import Q

from celery_guardrails.dead_letters.decoder import Decoder, KombuDecoder
from celery_guardrails.dead_letters.letter import DeadLetter, read_letter
from celery_guardrails.dead_letters.reports import FAILURES_KEPT, Failure
from celery_guardrails.dead_letters.tally import Names
from celery_guardrails.errors import DeadLetterError, GuardrailsConfigError
from celery_guardrails.ports import Broker, Clock, QueuedLetter

from .audit import audited
from .models import ArchivedLetter, AuditEntry
from .rows import moment_of, row_of

__all__ = ["ELSEWHERE", "ArchiveReport", "Archiver", "Limits", "purge", "run_archive"]

#: The letter keeps its row all the same, and waits there: Redis says the same of one that was taken while its answer was lost.
ELSEWHERE = "somebody else took it out of the dead letter queue while it was being archived: it may have been replayed"
_AGAIN = "the same message came to the dead letter queue again"
_CHUNK = 500
_State = ArchivedLetter.State
_Found = list[tuple[QueuedLetter, DeadLetter]]


@dataclass
class ArchiveReport:
    """What a run did.

    Args:
        archived: letters moved (that would be moved, in a dry run).
        known: of them those that were in the table already: an earlier run was killed before it could take them out.
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
    *,
    queues: Sequence[str] = (),
    batch: int = 500,
    keep_days: float | None = None,
    keep_count: int | None = None,
    purge_waiting: bool = False,
    dry_run: bool = False,
    who: str = "archive_dead_letters",
    using: str | None = None,
) -> ArchiveReport:
    """Move the dead letters of an app into the database, then delete what retention does not keep.

    Args:
        rails: the app's :class:`~celery_guardrails.Guardrails`.
        queues: only these task queues (or dead letter queues); none for all that the app knows.
        batch: see :class:`Archiver`.
        keep_days: see :func:`purge`.
        keep_count: the same.
        purge_waiting: the same.
        dry_run: move and delete nothing, only count.
        who: for the audit trail, which tells of runs that moved or deleted something.
        using: alias of the database; None for the one that the project's routers say.

    Raises:
        GuardrailsConfigError: an option is wrong.
    """
    alias = using or router.db_for_write(ArchivedLetter)
    decoder = KombuDecoder(rails.app.conf.accept_content)
    archiver = Archiver(rails.broker, clock=rails.clock, decoder=decoder, using=alias, batch=batch)
    limits = Limits(keep_days, keep_count, purge_waiting)
    chosen: dict[str, str] = {}
    for name in queues or (None,):
        chosen.update(rails.dead_letters.queues(name))
    report = ArchiveReport(dry_run=dry_run)
    if dry_run:
        archiver.run(chosen, report)
        report.purged = purge(limits, now=rails.clock.now(), dry_run=True, using=alias)
        return report
    trail = {"clock": rails.clock, "using": alias, "who": who, "count": ArchivedLetter.objects.using(alias).count}
    if any(rails.broker.depth(dead) for dead in chosen.values()):
        with audited(AuditEntry.Action.ARCHIVE, selection=", ".join(chosen.values()), **trail) as entry:
            archiver.run(chosen, report)
            entry.letters, entry.outcome = report.archived, report.stopped
    if not report.stopped and purge(limits, now=rails.clock.now(), dry_run=True, using=alias):
        with audited(AuditEntry.Action.PURGE, selection=str(limits), **trail) as entry:
            report.purged = entry.letters = purge(limits, now=rails.clock.now(), using=alias)
    return report


class Archiver:
    """Moves letters in batches: read, insert in one transaction, take out of the broker.

    A run that is killed anywhere and started again loses no letter and makes no second row of one: the dead letter queue
    and the letter's identifier are unique together, and a letter that has its row already is only taken out. Any number
    of runs may go on at once. A message that is the same as an archived one in every byte, certificate and time of death
    included, is that letter.

    Args:
        broker: where the letters lie.
        clock: time.
        decoder: reads what the message's headers do not say.
        using: alias of the database; None for the one that the project's routers say.
        batch: letters read, inserted and taken at a time; so many are held in memory.

    Raises:
        GuardrailsConfigError: a batch of less than one.
    """

    def __init__(self, broker: Broker, *, clock: Clock, decoder: Decoder, using: str | None = None, batch: int = 500) -> None:
        if batch < 1:
            raise GuardrailsConfigError(f"--batch {batch!r}: a whole number of at least 1 is allowed")
        self._broker = broker
        self._clock = clock
        self._decoder = decoder
        self._using = using or router.db_for_write(ArchivedLetter)
        self._batch_size = batch

    def run(
        self, queues: Mapping[str, str], report: ArchiveReport, *, on_progress: Callable[[ArchiveReport], None] | None = None
    ) -> ArchiveReport:
        """Move what lies in the dead letter queues now.

        Args:
            queues: task queues with their dead letter queues.
            report: to count in; of a dry run it only says how many letters there are.
            on_progress: called after each batch.
        """
        try:
            for queue, dead_letter_queue in queues.items():
                depth = self._broker.depth(dead_letter_queue)
                report.queues[dead_letter_queue] = depth if report.dry_run else 0
                if report.dry_run:
                    report.archived += depth
                elif depth:
                    self._queue(queue, dead_letter_queue, depth, report, on_progress)
        except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; what has been done must be told
            report.stopped = f"{type(exc).__name__}: {exc}"
        return report

    def _queue(
        self, queue: str, dead_letter_queue: str, depth: int, report: ArchiveReport, on_progress: Callable[[ArchiveReport], None] | None
    ) -> None:
        names = Names()
        with _closed_after(self._broker.browse(dead_letter_queue)) as browsing:
            found = islice(browsing, depth)  # what comes in meanwhile is of the next run
            while chunk := list(islice(found, self._batch_size)):
                letters: _Found = []
                for queued in chunk:
                    letter = read_letter(queued.message, queue=queue, dead_letter_queue=dead_letter_queue, decoder=self._decoder)
                    letters.append((queued, replace(letter, id=names.unique(letter.id))))
                kept = self._keep(dead_letter_queue, letters, report)
                if not kept and letters:
                    raise DatabaseError(f"the database took none of {len(letters)} letters: {report.failures[-1].why}")
                self._take(dead_letter_queue, [(queued, letter) for queued, letter in letters if letter.id in kept], kept, report)
                if on_progress is not None:
                    on_progress(report)

    # -- into the database ------------------------------------------------------------------------------------

    def _rows(self, dead_letter_queue: str) -> Any:
        return ArchivedLetter.objects.using(self._using).filter(dead_letter_queue=dead_letter_queue)

    def _keep(self, dead_letter_queue: str, letters: _Found, report: ArchiveReport) -> dict[str, ArchivedLetter | None]:
        """Commit rows for letters; returns those that have one now, with the row as it was where there was one before."""
        rows: dict[str, ArchivedLetter] = {}
        now = self._clock.now()
        for _, letter in letters:
            try:
                rows[letter.id] = row_of(letter, now=now)
            except DeadLetterError as exc:
                report.fail(letter.id, str(exc))
        # read before the transaction begins: SQLite lets no reader become a writer while somebody else writes
        fields = ("pk", "letter_id", "state", "note", "taken_at")
        present = {row.letter_id: row for row in self._rows(dead_letter_queue).filter(letter_id__in=list(rows)).only(*fields)}
        new = [row for identifier, row in rows.items() if identifier not in present]
        again = [row.pk for row in present.values() if _came_again(row)]
        try:
            self._insert(new, again, now)
        except (DatabaseError, ValueError):
            for row in new:  # one that the database refuses must not keep the others out
                try:
                    self._insert([row], again, now)
                except (DatabaseError, ValueError) as exc:
                    report.fail(row.letter_id, f"{type(exc).__name__}: {exc}")
                    del rows[row.letter_id]
        return {identifier: present.get(identifier) for identifier in rows}

    def _insert(self, rows: Sequence[ArchivedLetter], again: Sequence[int], now: float) -> None:
        with transaction.atomic(using=self._using):
            # a run beside this one may have been faster
            ArchivedLetter.objects.using(self._using).bulk_create(rows, ignore_conflicts=True)
            if again:
                found = ArchivedLetter.objects.using(self._using).filter(pk__in=again)
                found.update(state=_State.WAITING, note=_AGAIN, changed_at=moment_of(now))

    # -- out of the broker ------------------------------------------------------------------------------------

    def _take(self, dead_letter_queue: str, letters: _Found, kept: Mapping[str, ArchivedLetter | None], report: ArchiveReport) -> None:
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
            report.known += sum(kept[identifier] is not None for identifier in took)
            report.elsewhere += len(elsewhere)
            report.queues[dead_letter_queue] += len(took)
        rows = self._rows(dead_letter_queue)
        with transaction.atomic(using=self._using):
            rows.filter(letter_id__in=took).update(taken_at=moment_of(self._clock.now()))
            # a run beside this one, which read the letter before we took it, may have had the wrong idea
            rows.filter(letter_id__in=took, note=ELSEWHERE).update(note="")
            rows.filter(letter_id__in=elsewhere, taken_at=None).update(note=ELSEWHERE)


def _came_again(row: ArchivedLetter) -> bool:
    """Whether a row is of an earlier copy: it was taken out, and replayed or discarded, and there the message is again."""
    return row.state != _State.WAITING and row.taken_at is not None


def purge(limits: Limits, *, now: float, dry_run: bool = False, using: str | None = None) -> int:
    """Delete the oldest rows beyond the limits, and return how many.

    Args:
        limits: what is kept.
        now: unix time in seconds.
        dry_run: delete nothing, only count.
        using: alias of the database; None for the one that the project's routers say.
    """
    alias = using or router.db_for_write(ArchivedLetter)
    rows = ArchivedLetter.objects.using(alias)
    rows = rows.all() if limits.purge_waiting else rows.exclude(state=_State.WAITING)
    over = Q(pk__in=[])
    if limits.keep_days is not None:
        over |= Q(archived_at__lt=moment_of(max(0.0, now - limits.keep_days * 86400)))
    if limits.keep_count is not None:
        first = rows.order_by("-archived_at", "-pk")[limits.keep_count : limits.keep_count + 1].only("archived_at").first()
        if first is not None:
            over |= Q(archived_at__lt=first.archived_at) | Q(archived_at=first.archived_at, pk__lte=first.pk)
    doomed = rows.filter(over)
    if dry_run:
        return int(doomed.count())
    deleted = 0
    while chunk := list(doomed.order_by("archived_at", "pk").values_list("pk", flat=True)[:_CHUNK]):
        deleted += rows.filter(pk__in=chunk).delete()[0]
    return deleted


@contextlib.contextmanager
def _closed_after(found: Iterator[QueuedLetter]) -> Iterator[Iterator[QueuedLetter]]:
    """Close the broker's iterator at the end, which puts back what was not taken."""
    try:
        yield found
    finally:
        close = getattr(found, "close", None)
        if close is not None:
            close()
