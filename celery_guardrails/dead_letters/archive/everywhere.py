"""The service behind the commands where there is an archive: letters in the queues and in the archive alike."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

from ...errors import DeadLetterError
from ...ports import Broker
from ..exchange import Export, ImportReport
from ..filters import Filter
from ..halt import Halt
from ..letter import DeadLetter
from ..reports import DiscardReport, Group, OnProgress, Progress, ReplayReport
from ..service import DeadLetters
from ..tally import Run
from .archive import Archive, note_replay
from .archiving import Archiver, ArchiveReport
from .places import Places
from .table import Action, State
from .trail import audited

__all__ = ["Everywhere", "RestoreReport"]


@dataclass(frozen=True)
class RestoreReport:
    """What became of the letters that were chosen.

    Args:
        total: discarded letters that were chosen.
        restored: those that wait again (would wait, in a dry run).
        missing: identifiers that were asked for and are of no discarded letter.
        dry_run: nothing was touched.
    """

    total: int = 0
    restored: int = 0
    missing: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def clean(self) -> bool:
        """Whether everything that was asked for was done."""
        return not self.missing


class Everywhere:
    """Looks after the letters in the queues and in the archive; what changes letters is on the audit trail.

    Args:
        queues: the service over the queues alone.
        broker: has the queues.
        archive: has the other letters.
        who: for the trail.
        why: the same.
        queued: the letters in the queues, too.
        archived: those in the archive, too.
        state: of the letters of the archive that are looked at; None for all.
        template: ``guardrails_dead_letter_queue``.
    """

    def __init__(
        self,
        queues: DeadLetters,
        broker: Broker,
        archive: Archive,
        *,
        who: str,
        why: str = "",
        queued: bool = True,
        archived: bool = True,
        state: str | None = State.WAITING,
        template: str = "{queue}.dead",
    ) -> None:
        self._queues = queues
        self._broker = broker
        self._archive = archive
        self._who = who
        self._why = why
        self._queued = queued and state in (None, State.WAITING)
        self._archived = archived
        self._state = state
        self._template = template

    def _over(self, where: Filter = Filter(), ids: Sequence[str] = (), *, free: bool = False) -> DeadLetters:  # noqa: B008 - frozen
        narrow = Places(
            self._broker,
            self._archive,
            where=where,
            ids=ids,
            state=self._state,
            queued=self._queued,
            archived=self._archived,
            free=free,
            template=self._template,
        )
        return self._queues.over(narrow, whole=Places(self._broker, self._archive, template=self._template))

    # -- looking ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """See :class:`~celery_guardrails.dead_letters.DeadLetters`, as for the others."""
        return self._queues.now()

    def queues(self, name: str | None = None) -> Mapping[str, str]:
        """See there."""
        return self._over().queues(name)

    def count(self, where: Filter = Filter()) -> int:  # noqa: B008 - frozen
        """See there."""
        return self._over(where).count(where)

    def list(self, where: Filter = Filter()) -> Generator[DeadLetter, None, None]:  # noqa: B008 - frozen
        """See there; of each queue those in the archive first."""
        return self._over(where).list(where)

    def groups(self, where: Filter = Filter()) -> Sequence[Group]:  # noqa: B008 - frozen
        """See there; the database counts its own."""
        every = replace(where, limit=None)
        counted = self._archive.groups(every, state=self._state) if self._archived else ()
        gathered = self._queues.over(self._only_queued(), whole=self._broker).groups(every) if self._queued else ()
        merged: dict[tuple[str, str, str], Group] = {}
        for group in chain(counted, gathered):
            name = (group.reason, group.error, group.fingerprint)
            merged[name] = _merged(merged[name], group) if name in merged else _plain(group)
        return sorted(merged.values(), key=lambda group: (-group.count, group.reason, group.error))[: where.limit]

    def _only_queued(self) -> Places:
        return Places(self._broker, self._archive, archived=False, template=self._template)

    def show(self, identifier: str) -> DeadLetter:
        """See there: one that waits, wherever it lies, or one of the archive that does not."""
        if self._archived:
            try:
                return self._archive.show(identifier, state=State.WAITING)
            except DeadLetterError:
                pass
        if not self._queued:
            return self._archive.show(identifier)
        try:
            return self._queues.over(self._only_queued(), whole=self._broker).show(identifier)
        except DeadLetterError as exc:
            if not self._archived:
                raise
            try:
                return self._archive.show(identifier)
            except DeadLetterError:
                raise DeadLetterError(f"{exc}, and there is none in the archive") from None

    def export(self, where: Filter = Filter(), *, ids: Iterable[str] = ()) -> Export:  # noqa: B008 - frozen
        """See there."""
        ids = tuple(ids)
        return self._over(where, ids).export(where, ids=ids)

    # -- moving -----------------------------------------------------------------------------------------------

    def import_(self, lines: Iterable[bytes | str], **options: Any) -> ImportReport:
        """See there; letters that wait in the archive are there already, too."""
        return self._over().import_(lines, **options)

    def replay(
        self,
        where: Filter = Filter(),  # noqa: B008 - frozen
        *,
        ids: Iterable[str] = (),
        dry_run: bool = False,
        canary: bool = False,
        **options: Any,
    ) -> ReplayReport:
        """See there. A letter of the archive is published in the transaction that marks it as replayed."""
        ids = tuple(ids)
        service = self._over(where, ids, free=True)
        if dry_run:
            return service.replay(where, ids=ids, dry_run=True, canary=canary, **options)
        before = service.count(where)
        report = None
        with audited(
            self._archive.table,
            Action.EDIT if options.get("edit") else Action.CANARY if canary else Action.REPLAY,
            clock=self._archive.clock,
            who=self._who,
            # the second time it is counted what is left of the first
            count=lambda: before - (0 if report is None else report.replayed),
            why=self._why,
            selection=self._selection(where, ids),
        ) as entry:
            report = service.replay(where, ids=ids, canary=canary, **options)
            note_replay(entry, report)
        return report

    def discard(
        self,
        where: Filter = Filter(),  # noqa: B008 - frozen
        *,
        ids: Iterable[str] = (),
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> DiscardReport:
        """Set letters aside, in the archive; :meth:`restore` takes it back, until retention deletes them.

        Those in the queues are moved into the archive, in confirmed batches: killed, it is simply done again.

        Args:
            where: which letters.
            ids: only these, by identifier or whole task id.
            dry_run: move nothing, only count.
            on_progress: called after each batch.
            should_stop: asked between batches; True ends it there, and the report says "interrupted".
        """
        ids = tuple(ids)
        if dry_run:
            return self._over(where, ids, free=True).discard(where, ids=ids, dry_run=True)
        before = self._over(where, ids, free=True).count(where)
        run = Run(dry_run=False, depth=before, on_progress=on_progress)
        run.ask(ids)
        trail = {"who": self._who, "why": self._why, "selection": self._selection(where, ids)}
        count = lambda: before - run.done  # noqa: E731 - what was there, and what is left of it
        with audited(self._archive.table, Action.DISCARD, clock=self._archive.clock, count=count, **trail) as entry:
            try:
                if self._archived:
                    self._discard_archived(where, ids, run)
                if self._queued and (where.limit is None or run.done < where.limit) and not run.all_found:
                    self._discard_queued(where, run, should_stop)
            except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; what has been done must be told
                run.stopped = f"{type(exc).__name__}: {exc}"
            entry.letters, entry.outcome = run.done, run.stopped
        return run.discard_report()

    def _discard_archived(self, where: Filter, ids: Sequence[str], run: Run) -> None:
        table = self._archive.table
        rows = self._archive.first(table.free(self._archive.rows(where, ids=ids)), where.limit)
        if ids:
            for row in self._archive.each(rows):
                run.is_asked(self._archive.letter(row))
        run.done = run.total = table.change(rows, old=State.WAITING, new=State.DISCARDED, now=self._archive.clock.now())

    def _discard_queued(self, where: Filter, run: Run, should_stop: Callable[[], bool] | None) -> None:
        clock, decoder = self._archive.clock, self._archive.decoder
        before, report = run.done, ArchiveReport()
        left = replace(where, limit=None if where.limit is None else where.limit - before)
        archiver = Archiver(self._broker, self._archive.table, clock=clock, decoder=decoder, state=State.DISCARDED)

        def on_batch(report: ArchiveReport) -> None:
            if run.on_progress is not None:
                run.on_progress(Progress(before + report.archived, run.depth, before + report.archived, 0, report.failed))
            if left.limit is not None and report.archived + report.elsewhere >= left.limit:
                raise Halt("")
            if should_stop is not None and should_stop():
                raise Halt("interrupted")

        archiver.run(self._queues.queues(where.queue), report, where=left, chosen=run, on_batch=on_batch)
        done = report.archived - report.copies  # a copy's row was discarded, and counted, already
        run.done += done
        run.total += done + report.elsewhere + report.failed
        run.failed += report.failed
        run.failures += report.failures
        run.stopped = report.stopped

    def restore(self, where: Filter = Filter(), *, ids: Iterable[str] = (), dry_run: bool = False) -> RestoreReport:  # noqa: B008 - frozen
        """Let discarded letters wait again.

        Args:
            where: which letters.
            ids: only these, by identifier or whole task id.
            dry_run: change nothing, only count.
        """
        ids, run = tuple(ids), Run(dry_run=dry_run)
        rows = self._archive.first(self._archive.rows(where, ids=ids, state=State.DISCARDED), where.limit)
        if run.ask(ids):
            for row in self._archive.each(rows):
                run.is_asked(self._archive.letter(row))
        number = self._archive.table.count(rows)
        if not dry_run and number:
            number = self._archive.restore(rows, who=self._who, why=self._why, selection=self._selection(where, ids))
        return RestoreReport(number, number, tuple(sorted(run.asked - run.found)), dry_run)

    def _selection(self, where: Filter, ids: Sequence[str]) -> str:
        said = [f"{field.name} = {value}" for field in fields(where) if (value := getattr(where, field.name)) is not None]
        if ids:
            said.append(f"{len(ids)} named: {', '.join(ids[:20])}{' …' if len(ids) > 20 else ''}")
        places = [name for name, there in (("queues", self._queued), ("archive", self._archived)) if there]
        return f"{', '.join(said) or 'all'}; in {' and '.join(places)}"


def _plain(group: Group) -> Group:
    return Group(**{field.name: getattr(group, field.name) for field in fields(Group)})


def _merged(one: Group, other: Group) -> Group:
    """Return two groups of the same name as one."""
    newer = other if (other.last_seen or 0.0) >= (one.last_seen or 0.0) else one
    return replace(
        newer,
        count=one.count + other.count,
        first_seen=min(_known(one.first_seen, other.first_seen), default=None),
        last_seen=max(_known(one.last_seen, other.last_seen), default=None),
        tasks=tuple(sorted({*one.tasks, *other.tasks})),
        queues=tuple(sorted({*one.queues, *other.queues})),
    )


def _known(*moments: float | None) -> Iterator[float]:
    return (moment for moment in moments if moment is not None)
