"""The audit trail: who did what to which letters, and why."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...errors import GuardrailsConfigError
from ...ports import Clock
from .table import Entry, LetterTable

__all__ = ["audited", "os_user"]


@contextmanager
def audited(
    table: LetterTable,
    action: str,
    *,
    clock: Clock,
    who: str,
    count: Callable[[], int],
    why: str = "",
    selection: str = "",
    outcome: str = "",
) -> Iterator[Entry]:
    """Write an entry before anything is done, so that one who is killed leaves a trace; and how it ended, afterwards.

    Args:
        table: keeps it.
        action: one of :class:`~celery_guardrails.dead_letters.archive.table.Action`.
        clock: time.
        who: does it.
        count: returns how many letters there are, before and after.
        why: as they said.
        selection: which letters.
        outcome: what is to be done, where that tells more than the action; the block may say how it ended.
    """
    entry = Entry(clock.now(), who[:255], action, selection, why, before=count(), outcome=outcome)
    name = table.begin(entry)
    try:
        yield entry
    except GuardrailsConfigError as exc:  # nothing was done
        entry.outcome = f"refused: {exc}"
        entry.after = entry.before
        table.finish(name, entry)
        raise
    entry.after = count()
    table.finish(name, entry)


def os_user() -> str:
    """Return who runs this process, for the trail."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return "unknown"
