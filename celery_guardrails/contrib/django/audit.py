"""The audit trail: who did what to which letters, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery_guardrails.ports import Clock

from .models import AuditEntry
from .rows import moment_of

__all__ = ["audited"]


@contextmanager
def audited(
    action: str, *, clock: Clock, using: str, who: str, count: Callable[[], int], why: str = "", selection: str = ""
) -> Iterator[AuditEntry]:
    """Write an entry before anything is done, so that one who is killed leaves a trace; and how it ended, afterwards.

    Args:
        action: one of :class:`AuditEntry.Action`.
        clock: time.
        using: alias of the database.
        who: does it.
        count: returns how many letters there are, before and after.
        why: as they said.
        selection: which letters.
    """
    entry = AuditEntry(at=moment_of(clock.now()), who=who[:255], action=action, selection=selection, why=why, before=count())
    entry.save(using=using, force_insert=True)
    yield entry
    entry.after = count()
    entry.save(using=using, update_fields=["after", "letters", "outcome"])
