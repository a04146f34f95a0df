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
        #: What was reported: as it was at the last look, its limit, and at how many seconds it is reported again.
        self._told: dict[str, tuple[Running, float, float]] = {}

    def look(self, running: Mapping[str, Running]) -> tuple[list[str], dict[str, Ended]]:
        """Return which tasks are to be reported now, and which of those that were have ended.

        Args:
            running: everything that runs now, by an identifier that is used once.
        """
        ended = {}
        for name in [name for name in self._told if name not in running]:
            last, limit, _ = self._told.pop(name)
            ended[name] = Ended(last.seconds, limit)
        due = []
        for name, task in running.items():
            if task.limit is None:
                continue
            told = name in self._told
            again = self._told[name][2] if told else task.limit + task.grace
            if task.seconds >= again:
                due.append(name)
                self._told[name] = (task, task.limit, task.seconds + min(task.seconds, _LONGEST))
            elif told:
                self._told[name] = (task, task.limit, again)
        return due, ended

    @property
    def present(self) -> dict[str, Running]:
        """Those that run beyond their limit, as they were at the last look."""
        return {name: task for name, (task, _, _) in self._told.items()}
