"""The loops of one execution: where each of them goes on, when that is saved, when the body has to leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any, TypeVar

from .errors import GuardrailsConfigError
from .tether import HandOver, Tether

__all__ = ["Loops", "T"]

T = TypeVar("T")


class Loops:
    """What one run of a body knows of its loops.

    Args:
        tether: of the execution.
        began: unix time in seconds at which the execution began.
        deadline: of the execution.
    """

    def __init__(self, tether: Tether, began: float, deadline: float | None) -> None:
        self._tether = tether
        self._began = began
        self._deadline = deadline
        self._cursors: dict[str, Any] = dict(tether.resume().cursors)
        #: Loops that resume() runs, and those whose first cursor has been looked at.
        self._begun: set[str] = set()
        self._checked: set[str] = set()
        self._items = 0
        self._unsaved = False
        self._saved_at = tether.now()
        #: Why this body has to leave, once it has been told.
        self.left = ""

    def cursor(self, name: str) -> Any:
        """Return where a loop goes on; None at its beginning."""
        return self._cursors.get(name)

    def run(self, rows_after: Callable[[Any], Iterable[tuple[Any, T]]], name: str, every: float, most: float | None) -> Iterator[T]:
        """Yield the items of a loop; see :meth:`celery_guardrails.execution.Execution.resume`."""
        if name in self._begun:
            raise GuardrailsConfigError(
                f"resume(name={name!r}) runs a second time in one task, and would begin where the first has ended: "
                "give each loop a name of its own"
            )
        self._begun.add(name)
        return self._run(iter(rows_after(self.cursor(name))), name, every, most)

    def _run(self, rows: Iterator[tuple[Any, T]], name: str, every: float, most: float | None) -> Iterator[T]:
        try:
            for row in rows:
                try:
                    cursor, item = row
                except (TypeError, ValueError) as exc:
                    raise GuardrailsConfigError(f"resume(): rows_after yielded {row!r:.200}: it must yield pairs (cursor, item)") from exc
                if self._tether.stopping():  # the row may have been long in coming
                    self._leave("stopped")
                yield item
                self.done(cursor, name, every, most)
            self.flush(patient=False)  # what comes behind the loop may fail, and the loop is not run again for it
        finally:
            close = getattr(rows, "close", None)
            if close is not None:
                close()

    def done(self, cursor: Any, name: str, every: float, most: float | None) -> None:
        """Take note that everything up to ``cursor`` is handled; save it where it is time to, leave where that is asked for."""
        if name not in self._checked:
            self._tether.check({**self._cursors, name: cursor})
            self._checked.add(name)
        # a cursor that can be changed may be changed for the next row before it is saved
        self._cursors[name] = deepcopy(cursor) if isinstance(cursor, (list, dict)) else cursor
        self._items += 1
        self._unsaved = True
        now = self._tether.now()
        why = self._why(now, most)
        if why:
            self._leave(why)
        if not 0 <= now - self._saved_at < every:  # below 0: the clock was set back
            self.flush(patient=False)

    def flush(self, *, patient: bool) -> None:
        """Save what is not saved yet; a store that does not answer is asked again the next time."""
        if not self._unsaved:
            return
        self._saved_at = self._tether.now()
        if self._tether.keep(self._cursors, self._items, patient=patient):
            self._unsaved, self._items = False, 0

    def _leave(self, why: str) -> None:
        self.flush(patient=True)
        try:
            self._tether.hand_over(why)
        except HandOver:
            self.left = why
            raise

    def _why(self, now: float, most: float | None) -> str:
        if self._tether.stopping():
            return "stopped"
        if self._deadline is not None and now >= self._deadline:
            return "deadline"
        limit = self._tether.hand_over_seconds if most is None else most
        return "time is up" if limit is not None and now - self._began >= limit else ""
