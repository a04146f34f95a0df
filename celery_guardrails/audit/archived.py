"""What an audit asks of an archive of dead letters."""

from __future__ import annotations

from collections.abc import Mapping

from ..dead_letters.archive import Archive
from ..dead_letters.archive.rows import message_of
from ..dead_letters.archive.table import State
from ..dead_letters.filters import Filter
from ..dead_letters.letter import read_letter
from .standing import Letter

__all__ = ["ArchivedLetters"]


class ArchivedLetters:
    """The letters of an archive that have not been replayed.

    Args:
        archive: has them.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def counts(self) -> Mapping[str, int]:
        """Return how many letters are in which state."""
        table = self._archive.table
        return {state: table.count(table.select(Filter(), ids=(), state=state)) for state, _ in State.choices}

    def letters(self, name: str) -> tuple[Letter, ...]:
        """Return those of one idempotency key or task id; what was replayed is alive again, or dead once more."""
        table = self._archive.table
        found = {}
        for state in (State.WAITING, State.DISCARDED):
            for rows in (table.select(Filter(key=name), ids=(), state=state), table.select(Filter(), ids=(name,), state=state)):
                for row in self._archive.each(rows):
                    letter = read_letter(
                        message_of(row), queue=row.queue, dead_letter_queue=row.dead_letter_queue, decoder=self._archive.decoder
                    )
                    found[row.pk] = Letter(row.letter_id, row.queue, letter.reason, "archive", row.state)
        return tuple(found.values())
