"""The archive's tables in a database of the Django project."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timezone
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, connections, router, transaction
from django.db.models import Count, Max, Min, Q
from django.db.models.functions import TruncHour

from celery_guardrails.dead_letters.archive.table import GROUP, LETTER_TABLE, MOMENTS, Entry, GroupCount, State, regex_of
from celery_guardrails.dead_letters.filters import Filter

from .moments import moment_of, unix_of

__all__ = ["DjangoTable", "alias_of"]

_APP = "celery_guardrails.contrib.django"
_CHUNK = 500
#: What an archiving run asks of a row.
_PRESENT = ("pk", "letter_id", "state", "note", "taken_at")


class DjangoTable:
    """See :class:`~celery_guardrails.dead_letters.archive.table.LetterTable`; a selection is a query set.

    Args:
        using: alias of the database; None for the one that the project's routers say.
    """

    errors: tuple[type[Exception], ...] = (DatabaseError, InterfaceError)

    def __init__(self, using: str | None = None) -> None:
        try:
            installed = apps.is_installed(_APP)
        except (ImproperlyConfigured, AppRegistryNotReady) as exc:
            raise ValueError(f"Django is not set up (set DJANGO_SETTINGS_MODULE, or call django.setup() first): {exc}") from exc
        if not installed:
            raise ValueError(f"{_APP!r} has the table of the letters: put it into INSTALLED_APPS and run `python manage.py migrate`")
        from .models import ArchivedLetter, AuditEntry

        self.using = using or router.db_for_write(ArchivedLetter)
        if self.using not in connections:
            raise ValueError(f"no {self.using!r} in DATABASES; allowed are {', '.join(map(repr, connections))}")
        self.name = f"django://{self.using}"
        self._all_letters = ArchivedLetter.objects
        self._letter, self._entry = ArchivedLetter, AuditEntry

    @classmethod
    def from_url(cls, url: str) -> DjangoTable:
        """Use the database that ``django://ALIAS`` names; ``django://`` the one that the project's routers say."""
        parts = urlsplit(url)
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("django:// takes the alias of a database and nothing else, as in django://default")
        return cls(alias_of(url))

    @property
    def _letters(self) -> Any:
        return self._all_letters.using(self.using)

    def ready(self) -> bool:
        """See the port."""
        connection = connections[self.using]
        with connection.cursor() as cursor:
            return LETTER_TABLE in connection.introspection.table_names(cursor)

    def close(self) -> None:
        """See the port."""
        connections[self.using].close()

    def atomic(self) -> AbstractContextManager[Any]:
        """See the port."""
        found: AbstractContextManager[Any] = transaction.atomic(using=self.using)
        return found

    # -- looking ----------------------------------------------------------------------------------------------

    def select(self, where: Filter, *, ids: Iterable[str], state: str | None, dead_letter_queue: str | None = None) -> Any:
        """See the port."""
        found = Q() if state is None else Q(state=state)
        asked = list(ids)
        if asked:
            found &= Q(letter_id__in=asked) | Q(task_id__in=asked)
        if dead_letter_queue is not None:
            found &= Q(dead_letter_queue=dead_letter_queue)
        if where.queue is not None:
            found &= Q(queue=where.queue) | Q(dead_letter_queue=where.queue)
        if where.task is not None:
            found &= Q(task__regex=f"^{regex_of(where.task)}$")
        if where.error is not None:
            found &= Q(error__regex=rf"^(.*\.)?{regex_of(where.error)}$")
        if where.fingerprint is not None:
            found &= Q(fingerprint__startswith=where.fingerprint)
        equal = {"reason": where.reason, "key": where.key}
        times = {"died_at__gte": moment_of(where.since), "died_at__lt": moment_of(where.until)}
        found &= Q(**{name: value for name, value in {**equal, **times}.items() if value is not None})
        return self._letters.filter(found).order_by("pk")

    def only(self, rows: Any, state: str) -> Any:
        """See the port."""
        return rows.filter(state=state)

    def free(self, rows: Any) -> Any:
        """See the port."""
        return rows.exclude(state=State.WAITING, canary__isnull=False)

    def up_to(self, rows: Any, pk: int) -> Any:
        """See the port."""
        return rows.filter(pk__lte=pk)

    def chunk(self, rows: Any, *, limit: int, beyond: int | None = None, newest_first: bool = False) -> Sequence[Any]:
        """See the port."""
        order, name = ("-pk", "pk__lt") if newest_first else ("pk", "pk__gt")
        rows = rows if beyond is None else rows.filter(**{name: beyond})
        return list(rows.order_by(order)[:limit])

    def nth(self, rows: Any, number: int) -> int | None:
        """See the port."""
        found = list(rows.order_by("pk").values_list("pk", flat=True)[number : number + 1])
        return found[0] if found else None

    def count(self, rows: Any) -> int:
        """See the port."""
        return int(rows.count())

    def queues(self, rows: Any, column: str) -> Mapping[str, int]:
        """See the port."""
        return Counter({each[column]: each["number"] for each in rows.order_by().values(column).annotate(number=Count("pk"))})

    def uncertain(self, dead_letter_queue: str, *, before: float | None = None) -> Sequence[str]:
        """See the port."""
        rows = self._letters.filter(dead_letter_queue=dead_letter_queue, taken_at=None)
        rows = rows if before is None else rows.filter(archived_at__lt=moment_of(before))
        return list(rows.values_list("letter_id", flat=True))

    def groups(self, rows: Any, *, limit: int | None) -> Sequence[GroupCount]:
        """See the port."""
        counted = rows.order_by().values(*GROUP)
        counted = counted.annotate(number=Count("pk"), first=Min("died_at"), last=Max("died_at"), newest=Max("pk"))
        return [
            GroupCount(
                (each["reason"], each["error"], each["fingerprint"]),
                each["number"],
                unix_of(each["first"]),
                unix_of(each["last"]),
                each["newest"],
            )
            for each in counted.order_by("-number", *GROUP)[:limit]
        ]

    def samples(self, pks: Sequence[int]) -> Mapping[int, tuple[str, str]]:
        """See the port."""
        return {row.pk: (row.letter_id, row.message) for row in self._letters.only("letter_id", "message").filter(pk__in=list(pks))}

    def names(self, rows: Any, column: str) -> Iterable[tuple[str, str, str, str]]:
        """See the port."""
        found: Iterable[tuple[str, str, str, str]] = rows.order_by().values_list(*GROUP, column).distinct().order_by(*GROUP, column)
        return found

    def hours(self, rows: Any, since: float) -> Iterator[tuple[str, str, str, int, int]]:
        """See the port."""
        start = moment_of(since)
        # by hours of UTC: MySQL knows other time zones only when it was told them
        tzinfo = {"tzinfo": timezone.utc} if start is not None and start.tzinfo else {}
        counted = (
            rows.order_by().filter(died_at__gte=start).values(*GROUP, hour=TruncHour("died_at", **tzinfo)).annotate(number=Count("pk"))
        )
        for each in counted.order_by():
            yield each["reason"], each["error"], each["fingerprint"], int((unix_of(each["hour"]) or 0.0) // 3600), each["number"]

    # -- changing ---------------------------------------------------------------------------------------------

    def mark(self, pk: int, *, old: str, new: str, now: float) -> bool:
        """See the port."""
        return bool(self.free(self._letters.filter(pk=pk, state=old)).update(state=new, changed_at=moment_of(now)))

    def mark_canary(self, pk: int, canary: int, stage: int | None, *, now: float) -> bool:
        """Mark a letter that waits and is of this canary as replayed, as :meth:`mark` does.

        Args:
            pk: primary key.
            canary: primary key of the run.
            stage: in which it is watched; None where it proves nothing.
            now: unix time in seconds.
        """
        mine = self._letters.filter(pk=pk, state=State.WAITING, canary=canary)
        return bool(mine.update(state=State.REPLAYED, changed_at=moment_of(now), canary_stage=stage))

    def change(self, rows: Any, *, old: str, new: str, now: float) -> int:
        """See the port."""
        return int(self.free(rows.order_by().filter(state=old)).update(state=new, changed_at=moment_of(now)))

    def present(self, dead_letter_queue: str, ids: Sequence[str]) -> Sequence[Any]:
        """See the port."""
        return list(self._letters.filter(dead_letter_queue=dead_letter_queue, letter_id__in=list(ids)).only(*_PRESENT))

    def insert(self, values: Sequence[Mapping[str, Any]], *, again: Sequence[int], state: str, note: str, now: float) -> None:
        """See the port."""
        rows = [self._letter(**{name: moment_of(value) if name in MOMENTS else value for name, value in row.items()}) for row in values]
        with self.atomic():
            # a run beside this one may have been faster
            self._letters.bulk_create(rows, ignore_conflicts=True)
            if again:
                self._letters.filter(pk__in=list(again)).update(
                    state=state, note=note, changed_at=moment_of(now), canary=None, canary_stage=None
                )

    def taken(self, dead_letter_queue: str, took: Sequence[str], elsewhere: Sequence[str], *, note: str, now: float) -> None:
        """See the port."""
        rows = self._letters.filter(dead_letter_queue=dead_letter_queue)
        with self.atomic():
            rows.filter(letter_id__in=took).update(taken_at=moment_of(now))
            # a run beside this one, which read the letter before we took it, may have had the wrong idea
            rows.filter(letter_id__in=took, note=note).update(note="")
            rows.filter(letter_id__in=elsewhere, taken_at=None).update(note=note)

    def purge(self, *, before: float | None, keep: int | None, waiting: bool, dry_run: bool) -> int:
        """See the port."""
        rows = self._letters.all() if waiting else self._letters.exclude(state=State.WAITING)
        over = Q(pk__in=[])
        if before is not None:
            over |= Q(archived_at__lt=moment_of(before))
        if keep is not None:
            first = rows.order_by("-archived_at", "-pk")[keep : keep + 1].only("archived_at").first()
            if first is not None:
                over |= Q(archived_at__lt=first.archived_at) | Q(archived_at=first.archived_at, pk__lte=first.pk)
        doomed = rows.filter(over)
        if dry_run:
            return int(doomed.count())
        deleted = 0
        while chunk := list(doomed.order_by("archived_at", "pk").values_list("pk", flat=True)[:_CHUNK]):
            deleted += rows.filter(pk__in=chunk).delete()[0]
        return deleted

    # -- the trail --------------------------------------------------------------------------------------------

    def begin(self, entry: Entry) -> Any:
        """See the port."""
        row = self._entry(
            at=moment_of(entry.at),
            who=entry.who,
            action=entry.action,
            selection=entry.selection,
            why=entry.why,
            before=entry.before,
            outcome=entry.outcome,
        )
        row.save(using=self.using, force_insert=True)
        return row.pk

    def finish(self, name: Any, entry: Entry) -> None:
        """See the port."""
        rows = self._entry.objects.using(self.using).filter(pk=name)
        rows.update(after=entry.after, letters=entry.letters, outcome=entry.outcome)

    def trail(self, limit: int) -> Sequence[Entry]:
        """See the port."""
        rows = self._entry.objects.using(self.using).order_by("-pk")[:limit]
        return [
            Entry(unix_of(row.at) or 0.0, row.who, row.action, row.selection, row.why, row.before, row.after, row.letters, row.outcome)
            for row in rows
        ]


def alias_of(url: str | None) -> str | None:
    """Return the alias that a URL ``django://ALIAS`` names; None for any other, where the project's routers say which database."""
    parts = urlsplit(url or "")
    return (parts.netloc or None) if parts.scheme == "django" else None
