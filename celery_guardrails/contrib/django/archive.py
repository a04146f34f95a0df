"""The archive of dead letters in the database: what lies there, and what an operator does with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import timezone
from typing import Any

from django.db import router, transaction
from django.db.models import Count, Max, Min, Q
from django.db.models.functions import TruncHour

from celery_guardrails.dead_letters.decoder import Decoder, KombuDecoder
from celery_guardrails.dead_letters.filters import Filter
from celery_guardrails.dead_letters.letter import DeadLetter
from celery_guardrails.dead_letters.pace import Pace
from celery_guardrails.dead_letters.redaction import Redactor, hide_secrets
from celery_guardrails.dead_letters.reports import DiscardReport, Group, ReplayReport
from celery_guardrails.dead_letters.restore import restored
from celery_guardrails.dead_letters.tally import Run
from celery_guardrails.errors import DeadLetterError, GuardrailsConfigError, PublishFailed, StoreUnavailable
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.ports import Broker, Clock, IdempotencyStore

from .audit import audited
from .models import ArchivedLetter, AuditEntry
from .rows import letter_of, moment_of, unix_of

__all__ = ["Archive", "ArchivedGroup"]

_CHUNK = 200
_TREND_HOURS = 24
_GROUP = ("reason", "error", "fingerprint")
_State, _Action = ArchivedLetter.State, AuditEntry.Action


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

    What changes letters writes an :class:`~celery_guardrails.contrib.django.models.AuditEntry`.

    Args:
        broker: to publish what is replayed; None where only looked at.
        store: says in a dry run which keys have completed meanwhile; None where there is none.
        clock: time.
        decoder: reads arguments.
        redact: what of the arguments may be shown.
        using: alias of the database; None for the one that the project's routers say.
    """

    def __init__(
        self,
        broker: Broker | None,
        store: IdempotencyStore | None,
        *,
        clock: Clock,
        decoder: Decoder,
        redact: Redactor = hide_secrets,
        using: str | None = None,
    ) -> None:
        self._broker = broker
        self._store = store
        self._clock = clock
        self._decoder = decoder
        self._redact = redact
        self.using = using or router.db_for_write(ArchivedLetter)

    @classmethod
    def of(cls, rails: Any) -> Archive:
        """Return the archive of an app's :class:`~celery_guardrails.Guardrails`."""
        return cls(rails.broker, rails.store, clock=rails.clock, decoder=KombuDecoder(rails.app.conf.accept_content))

    # -- looking ----------------------------------------------------------------------------------------------

    def rows(self, where: Filter = Filter(), *, ids: Iterable[str] = (), state: str | None = _State.WAITING) -> Any:  # noqa: B008 - frozen
        """Return the query set of the letters that match, the oldest first.

        Args:
            where: which letters; its limit is not kept here.
            ids: only these, by identifier or whole task id.
            state: ``"waiting"``, ``"replayed"``, ``"discarded"``, or None for all.
        """
        found = Q() if state is None else Q(state=state)
        asked = list(ids)
        if asked:
            found &= Q(letter_id__in=asked) | Q(task_id__in=asked)
        if where.queue is not None:
            found &= Q(queue=where.queue) | Q(dead_letter_queue=where.queue)
        if where.task is not None:
            found &= Q(task__regex=f"^{_pattern(where.task)}$")
        if where.error is not None:
            found &= Q(error__regex=rf"^(.*\.)?{_pattern(where.error)}$")
        if where.fingerprint is not None:
            found &= Q(fingerprint__startswith=where.fingerprint)
        equal = {"reason": where.reason, "key": where.key}
        times = {"died_at__gte": moment_of(where.since), "died_at__lt": moment_of(where.until)}
        found &= Q(**{name: value for name, value in {**equal, **times}.items() if value is not None})
        return ArchivedLetter.objects.using(self.using).filter(found).order_by("pk")

    def letter(self, row: ArchivedLetter) -> DeadLetter:
        """Return the dead letter of a row."""
        return letter_of(row, decoder=self._decoder, redact=self._redact)

    def list(self, where: Filter = Filter(), *, state: str | None = _State.WAITING) -> Generator[DeadLetter, None, None]:  # noqa: B008 - frozen
        """Yield the letters that match, the ones archived first first."""
        for row in self.rows(where, state=state)[: where.limit].iterator(chunk_size=_CHUNK):
            yield self.letter(row)

    def show(self, identifier: str) -> DeadLetter:
        """Return one letter, in whatever state.

        Args:
            identifier: of the letter, or the whole task id (then the letter archived last).

        Raises:
            DeadLetterError: there is no such letter.
        """
        row = self.rows(ids=[identifier], state=None).last()
        if row is None:
            raise DeadLetterError(f"there is no dead letter {identifier!r} in the archive")
        return self.letter(row)

    def groups(self, where: Filter = Filter(), *, state: str | None = _State.WAITING) -> Sequence[ArchivedGroup]:  # noqa: B008 - frozen
        """Return the letters that match in groups of one reason and one error, the largest group first.

        The database counts; nothing is held in memory but the groups.
        """
        return self.groups_of(self.rows(where, state=state), limit=where.limit)

    def groups_of(self, rows: Any, *, limit: int | None = None) -> Sequence[ArchivedGroup]:
        """Return the letters of a query set in groups, as :meth:`groups` does."""
        rows = rows.order_by()
        counted = rows.values(*_GROUP).annotate(number=Count("pk"), first=Min("died_at"), last=Max("died_at"), newest=Max("pk"))
        found = list(counted.order_by("-number", *_GROUP)[:limit])
        samples = ArchivedLetter.objects.using(self.using).only("letter_id", "message").in_bulk([each["newest"] for each in found])
        tasks, queues, trends = self._names(rows, "task"), self._names(rows, "queue"), self._trends(rows)
        groups = []
        for each in found:
            name = tuple(each[column] for column in _GROUP)
            sample = samples.get(each["newest"])
            groups.append(
                ArchivedGroup(
                    reason=each["reason"],
                    error=each["error"],
                    fingerprint=each["fingerprint"],
                    message=sample.message if sample else "",
                    count=each["number"],
                    first_seen=unix_of(each["first"]),
                    last_seen=unix_of(each["last"]),
                    tasks=tasks.get(name, ()),
                    queues=queues.get(name, ()),
                    sample=sample.letter_id if sample else "",
                    sample_pk=each["newest"],
                    trend=tuple(trends.get(name, [0] * _TREND_HOURS)),
                )
            )
        return groups

    def _names(self, rows: Any, column: str) -> dict[tuple[str, ...], tuple[str, ...]]:
        names: dict[tuple[str, ...], tuple[str, ...]] = {}
        for *group, name in rows.values_list(*_GROUP, column).distinct().order_by(*_GROUP, column):
            names[tuple(group)] = (*names.get(tuple(group), ()), name)
        return names

    def _trends(self, rows: Any) -> Mapping[tuple[str, ...], Sequence[int]]:
        now = self._clock.now()
        hour = now // 3600
        recent = rows.filter(died_at__gte=moment_of((hour - _TREND_HOURS + 1) * 3600))
        # by hours of UTC: MySQL knows other time zones only when it was told them
        tzinfo = {"tzinfo": timezone.utc} if moment_of(now).tzinfo else {}  # type: ignore[union-attr]
        counted = recent.values(*_GROUP, hour=TruncHour("died_at", **tzinfo)).annotate(number=Count("pk")).order_by()
        trends: dict[tuple[str, ...], Any] = {}
        for each in counted:
            trend = trends.setdefault(tuple(each[column] for column in _GROUP), [0] * _TREND_HOURS)
            ago = int(hour - (unix_of(each["hour"]) or 0.0) // 3600)
            if 0 <= ago < _TREND_HOURS:
                trend[-1 - ago] += each["number"]
        return trends

    # -- moving -----------------------------------------------------------------------------------------------

    def replay(
        self,
        rows: Any,
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
            rows: query set of the letters, see :meth:`rows`; those that do not wait are left alone.
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
        if self._broker is None and not dry_run:
            raise GuardrailsConfigError("this archive has no broker to publish with")
        pace, run = Pace(self._clock, rate), Run(dry_run=dry_run, already_completed=0 if dry_run and self._store else None)
        waiting = rows.filter(state=_State.WAITING)
        limit = 1 if canary else limit
        end = None if seconds is None else self._clock.now() + seconds

        def work() -> None:
            for row in _in_chunks(waiting, newest_first=canary):
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
                if end is not None and self._clock.now() >= end:
                    run.stopped = f"{seconds:g} seconds are over"
                    return

        if dry_run:
            work()
            return run.replay_report()
        with self._audited(_Action.CANARY if canary else _Action.REPLAY, waiting, who, why, selection) as entry:
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; what has been done must be told
                run.stopped = f"{type(exc).__name__}: {exc}"
            entry.letters = run.done
            report = run.replay_report()
            kept = ("skipped_max_replays", "skipped_hopeless", "failed", "stopped", "destinations")
            entry.outcome = _as_json({name: value for name, value in asdict(report).items() if name in kept and value})
        return report

    def _replay(self, row: ArchivedLetter, letter: DeadLetter, destination: str, run: Run) -> None:
        if run.dry_run:
            if run.already_completed is not None:
                run.already_completed = self._plus_completed(run.already_completed, letter)
        else:
            try:
                with transaction.atomic(using=self.using):
                    # who marks it holds its row until the end; somebody else who wants the same letter waits, and finds it replayed
                    mine = ArchivedLetter.objects.using(self.using).filter(pk=row.pk, state=_State.WAITING)
                    if not mine.update(state=_State.REPLAYED, changed_at=moment_of(self._clock.now())):
                        run.total -= 1
                        return
                    assert self._broker is not None
                    self._broker.send(restored(letter, now=self._clock.now()), destination)
            except PublishFailed as exc:
                run.fail(letter, str(exc))
                return
        run.done += 1
        run.destinations[destination] += 1
        run.reasons[letter.reason] += 1

    def discard(self, rows: Any, *, who: str, why: str = "", selection: str = "") -> DiscardReport:
        """Set letters that wait aside; :meth:`restore` takes it back, until retention deletes them.

        Args:
            rows: query set of the letters, see :meth:`rows`; those that do not wait are left alone.
            who: does it.
            why: for the audit trail.
            selection: the same: which letters these are.
        """
        changed = self._change(_Action.DISCARD, rows, _State.WAITING, _State.DISCARDED, who, why, selection)
        return DiscardReport(total=changed, discarded=changed)

    def restore(self, rows: Any, *, who: str, why: str = "", selection: str = "") -> int:
        """Let discarded letters wait again, and return how many; the arguments are those of :meth:`discard`."""
        return self._change(_Action.RESTORE, rows, _State.DISCARDED, _State.WAITING, who, why, selection)

    def _change(self, action: str, rows: Any, old: str, new: str, who: str, why: str, selection: str) -> int:
        with transaction.atomic(using=self.using), self._audited(action, rows.filter(state=old), who, why, selection) as entry:
            entry.letters = rows.order_by().filter(state=old).update(state=new, changed_at=moment_of(self._clock.now()))
        return int(entry.letters)

    def _audited(self, action: str, rows: Any, who: str, why: str, selection: str) -> AbstractContextManager[AuditEntry]:
        return audited(action, clock=self._clock, using=self.using, who=who, count=rows.count, why=why, selection=selection)

    # -- what a confirmation says --------------------------------------------------------------------------------

    def destinations(self, rows: Any) -> dict[str, int]:
        """Return how many letters of a query set would go to each task queue."""
        return Counter({each["queue"]: each["number"] for each in rows.order_by().values("queue").annotate(number=Count("pk"))})

    def _plus_completed(self, known: int, letter: DeadLetter) -> int | None:
        if self._store is None or not letter.key:
            return known
        try:
            record = self._store.lookup(letter.key)
        except StoreUnavailable:
            return None
        return known + (record is not None and record.state is RecordState.COMPLETED)


def _in_chunks(rows: Any, *, newest_first: bool) -> Iterator[ArchivedLetter]:
    """Yield rows that may change state while they go by; a database cursor would be gone with the first commit."""
    order, beyond = ("-pk", "pk__lt") if newest_first else ("pk", "pk__gt")
    chunk = list(rows.order_by(order)[:_CHUNK])
    while chunk:
        yield from chunk
        chunk = list(rows.order_by(order).filter(**{beyond: chunk[-1].pk})[:_CHUNK])


def _pattern(text: str) -> str:
    """Return a text with ``*`` and ``?`` in it as a regular expression that every database reads."""
    return "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in text)


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str) if value else ""
