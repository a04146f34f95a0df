"""When is told that a task runs beyond its limit: at once, at twice the time, at four times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Ended", "Overruns", "Running"]

#: Seconds between two reports of one task, at most.
_LONGEST = 3600.0


@dataclass(frozen=True)
class Running:
    """A task that runs.

    Args:
        seconds: for which it runs.
        limit: seconds that it may, or None.
        grace: seconds beyond the limit in which something else is expected to end it.
    """

    seconds: float
    limit: float | None
    grace: float = 0.0


@dataclass(frozen=True)
class Ended:
    """A task that ran beyond its limit and has ended: after so many ``seconds``, or a little more."""

    seconds: float
    limit: float


class Overruns:
    """Remembers which tasks were reported, and when they are the next time."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[Running, float]] = {}

    def look(self, running: Mapping[str, Running]) -> tuple[list[str], dict[str, Ended]]:
        """Return which tasks are to be reported now, and which of those that were have ended.

        Args:
            running: everything that runs now, by an identifier that is used once.
        """
        ended = {}
        for name in [name for name in self._told if name not in running]:
            last, _ = self._told.pop(name)
            ended[name] = Ended(last.seconds, last.limit or 0.0)
        due = []
        for name, task in running.items():
            if task.limit is None:
                continue
            told = self._told.get(name)
            at = task.limit + task.grace if told is None else told[1]
            if task.seconds >= at:
                due.append(name)
                at = task.seconds + min(task.seconds, _LONGEST)
            if told is not None or name in due:
                self._told[name] = (task, at)
        return due, ended

    @property
    def present(self) -> dict[str, Running]:
        """Those that run beyond their limit, as they were at the last look."""
        return {name: task for name, (task, _) in self._told.items()}
