"""The archive of dead letters: moved out of the broker into a database, found, replayed, discarded and restored there.

What it does is here, the same for every database; a table (:class:`~celery_guardrails.dead_letters.archive.table.LetterTable`)
knows how rows get in and out, and lives in ``contrib``.
"""

from __future__ import annotations

from .archive import Archive, ArchivedGroup
from .archiving import Archiver, ArchiveReport, Limits, purge, run_archive
from .everywhere import Everywhere
from .opening import open_table
from .table import Action, LetterTable, State

__all__ = [
    "Action",
    "Archive",
    "ArchiveReport",
    "ArchivedGroup",
    "Archiver",
    "Everywhere",
    "LetterTable",
    "Limits",
    "State",
    "open_table",
    "purge",
    "run_archive",
]
