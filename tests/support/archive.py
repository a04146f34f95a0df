"""An archive of dead letters beside a service in memory, on any table."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from celery_guardrails.config import Settings
from celery_guardrails.dead_letters import DeadLetter, Filter, KombuDecoder
from celery_guardrails.dead_letters.archive import Archive, Everywhere, LetterTable, run_archive
from celery_guardrails.dead_letters.archive.table import Entry
from tests.support.dead_letters import Kit

__all__ = ["Desk"]


class Desk:
    """An archive beside a service in memory; begins empty.

    Args:
        table: of the archive.
        queues: task queues.
    """

    def __init__(self, table: LetterTable, *queues: str) -> None:
        self.table = table
        self.kit = Kit(*(queues or ("celery",)))
        decoder = KombuDecoder(["json"])
        self.archive = Archive(table, self.kit.broker, self.kit.store, clock=self.kit.clock, decoder=decoder)
        app = SimpleNamespace(conf=SimpleNamespace(accept_content=["json"]))
        self.rails: Any = SimpleNamespace(
            broker=self.kit.broker,
            clock=self.kit.clock,
            app=app,
            dead_letters=self.kit.service,
            archive=self.archive,
            settings=Settings(),
            store=self.kit.store,
            lookup=self.kit.store.lookup,
        )
        table.purge(before=None, keep=0, waiting=True, dry_run=False)
        self._entries = 0
        begin = type(table).begin

        def counted(entry: Entry) -> Any:
            self._entries += 1
            return begin(table, entry)

        table.begin = counted  # type: ignore[method-assign]

    def run(self, **options: Any) -> Any:
        """Move the dead letters into the archive."""
        return run_archive(self.rails, self.table, **options)

    def everywhere(self, who: str = "ann", **options: Any) -> Everywhere:
        """Return the service over queues and archive."""
        return Everywhere(self.kit.service, self.kit.broker, self.archive, who=who, **options)

    @property
    def rows(self) -> list[Any]:
        """All rows, the oldest first."""
        return list(self.archive.each(self.archive.rows(state=None)))

    @property
    def letters(self) -> list[DeadLetter]:
        """All letters of the archive, the oldest first."""
        return [self.archive.letter(row) for row in self.rows]

    @property
    def trail(self) -> list[Entry]:
        """The audit trail since this began, the oldest entry first."""
        return list(reversed(self.table.trail(self._entries)))

    def states(self) -> Counter[str]:
        """Return the number of letters by state."""
        return Counter(row.state for row in self.rows)

    def tasks(self, **filters: Any) -> list[str]:
        """Return the task ids of letters of the archive."""
        state = filters.pop("state", None)
        return [self.archive.letter(row).task_id for row in self.archive.each(self.archive.rows(Filter(**filters), state=state))]
