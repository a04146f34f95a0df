"""What an archive needs of a database, as a port: rows in and out, and the audit trail."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ..filters import Filter

__all__ = [
    "AUDIT_TABLE",
    "GROUP",
    "LETTER_TABLE",
    "MOMENTS",
    "Action",
    "Entry",
    "GroupCount",
    "LetterTable",
    "Row",
    "Selection",
    "State",
    "regex_of",
]

LETTER_TABLE = "guardrails_letter"
AUDIT_TABLE = "guardrails_audit"
#: Columns of the letters that hold a time: unix time in seconds in the values that go in.
MOMENTS = ("first_seen", "died_at", "archived_at", "changed_at")
#: Columns that make a group.
GROUP = ("reason", "error", "fingerprint")

#: Which letters, in the table's own form; made by :meth:`LetterTable.select`.
Selection = Any


class State:
    """What has become of an archived letter."""

    WAITING = "waiting"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    choices = tuple((name, name) for name in (WAITING, REPLAYED, DISCARDED))


class Action:
    """What somebody did to letters."""

    ARCHIVE = "archive"
    REPLAY = "replay"
    CANARY = "canary"
    DISCARD = "discard"
    RESTORE = "restore"
    EDIT = "edit"
    PURGE = "purge"
    choices = tuple((name, name) for name in (ARCHIVE, REPLAY, CANARY, DISCARD, RESTORE, EDIT, PURGE))


class Row(Protocol):
    """A letter as a table hands it out; those of :meth:`LetterTable.present` have the first five only."""

    pk: int
    letter_id: str
    state: str
    note: str
    #: When it was taken out of the broker, in the database's own type; None until that is known.
    taken_at: Any
    dead_letter_queue: str
    queue: str
    body: Any
    content_type: str | None
    content_encoding: str | None
    exchange: str
    routing_key: str
    headers: str
    properties: str


@dataclass(frozen=True)
class GroupCount:
    """A group as the database counts it; times are unix time in seconds.

    Args:
        name: the values of :data:`GROUP`.
        count: letters.
        first: first death, or None where unknown.
        last: last death.
        newest: primary key of the letter archived last.
    """

    name: tuple[str, str, str]
    count: int
    first: float | None
    last: float | None
    newest: int


@dataclass
class Entry:
    """One thing that somebody did: a row of the audit trail.

    Args:
        at: unix time in seconds.
        who: did it.
        action: one of :class:`Action`.
        selection: which letters.
        why: as they said.
        before: letters before.
        after: letters after; None while it is going on, and for ever where it was killed.
        letters: done.
        outcome: what else there is to say, as JSON or as a text.
    """

    at: float
    who: str
    action: str
    selection: str = ""
    why: str = ""
    before: int = 0
    after: int | None = None
    letters: int = 0
    outcome: str = ""


class LetterTable(Protocol):
    """The table of archived letters and that of the trail, in one database.

    Every method is one statement, or one transaction, and raises what the database's library raises, of :attr:`errors`.
    """

    #: For people: the URL, without a password.
    name: str
    #: What a database that is away, or refuses a row, raises.
    errors: tuple[type[Exception], ...]

    def ready(self) -> bool:
        """Whether the tables are there (made now, where the table makes them itself)."""

    def close(self) -> None:
        """Close the connections of this thread."""

    def atomic(self) -> AbstractContextManager[Any]:
        """Begin a transaction of this thread, or join the one that is going on: all or nothing of what is called in it."""

    # -- looking ----------------------------------------------------------------------------------------------

    def select(self, where: Filter, *, ids: Iterable[str], state: str | None, dead_letter_queue: str | None = None) -> Selection:
        """Return which letters match; nothing is asked yet.

        Args:
            where: which letters, but for its limit.
            ids: only these, by identifier or whole task id; none for all.
            state: of :class:`State`; None for all.
            dead_letter_queue: only those of this queue.
        """

    def only(self, rows: Selection, state: str) -> Selection:
        """Return those in one state."""

    def free(self, rows: Selection) -> Selection:
        """Return those that may be moved: all, but for letters that somebody else is about to move, such as an open canary."""

    def up_to(self, rows: Selection, pk: int) -> Selection:
        """Return those with this primary key or a lower one."""

    def chunk(self, rows: Selection, *, limit: int, beyond: int | None = None, newest_first: bool = False) -> Sequence[Row]:
        """Return the first so many, in the order in which they were archived, behind the primary key ``beyond``."""

    def nth(self, rows: Selection, number: int) -> int | None:
        """Return the primary key of the letter with this number, from 0, from the one archived first on, or None."""

    def count(self, rows: Selection) -> int:
        """Return how many there are."""

    def queues(self, rows: Selection, column: str) -> Mapping[str, int]:
        """Return how many there are by ``"queue"`` or ``"dead_letter_queue"``."""

    def uncertain(self, dead_letter_queue: str, *, before: float | None = None) -> Sequence[str]:
        """Return the identifiers of letters of a queue that may still lie there, whatever their state: nobody has seen them taken.

        Args:
            dead_letter_queue: name.
            before: only those archived before this unix time in seconds.
        """

    def groups(self, rows: Selection, *, limit: int | None) -> Sequence[GroupCount]:
        """Return the groups, the largest first."""

    def samples(self, pks: Sequence[int]) -> Mapping[int, tuple[str, str]]:
        """Return identifier and error message by primary key."""

    def names(self, rows: Selection, column: str) -> Iterable[tuple[str, str, str, str]]:
        """Yield each group with each of its ``"task"`` or ``"queue"`` once, in their order."""

    def hours(self, rows: Selection, since: float) -> Iterable[tuple[str, str, str, int, int]]:
        """Yield each group with each hour (since 1970, of UTC) in which letters died, and how many, from a unix time in seconds on."""

    # -- changing ---------------------------------------------------------------------------------------------

    def mark(self, pk: int, *, old: str, new: str, now: float) -> bool:
        """Move one letter into another state, its row ours till the transaction ends; False where it is not in the old one, or not free."""

    def change(self, rows: Selection, *, old: str, new: str, now: float) -> int:
        """Move letters into another state, and return how many were in the old one, and free."""

    def present(self, dead_letter_queue: str, ids: Sequence[str]) -> Sequence[Row]:
        """Return those of these letters that have a row."""

    def insert(self, values: Sequence[Mapping[str, Any]], *, again: Sequence[int], state: str, note: str, now: float) -> None:
        """Add letters in one transaction, but for those that have a row meanwhile.

        Args:
            values: by column, see :func:`~celery_guardrails.dead_letters.archive.rows.values_of`.
            again: primary keys of letters to be put into ``state``, with the note.
            state: see ``again``.
            note: the same.
            now: unix time in seconds.
        """

    def taken(self, dead_letter_queue: str, took: Sequence[str], elsewhere: Sequence[str], *, note: str, now: float) -> None:
        """Note that letters are out of the broker: those that we took, and with a note those that somebody else did."""

    def purge(self, *, before: float | None, keep: int | None, waiting: bool, dry_run: bool) -> int:
        """Delete letters, the oldest first, in small transactions, and return how many.

        Args:
            before: those archived before this unix time in seconds; None: none for their age.
            keep: all but so many, archived last; None: none for their number.
            waiting: those that wait are deleted and counted as well; otherwise they are neither.
            dry_run: delete nothing, only count.
        """

    # -- the trail --------------------------------------------------------------------------------------------

    def begin(self, entry: Entry) -> Any:
        """Write an entry down and return what names it."""

    def finish(self, name: Any, entry: Entry) -> None:
        """Write down how it ended: ``after``, ``letters`` and ``outcome``."""

    def trail(self, limit: int) -> Sequence[Entry]:
        """Return so many entries, the newest first."""


def regex_of(text: str) -> str:
    """Return a text with ``*`` and ``?`` in it as a regular expression that every database reads."""
    return "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in text)
