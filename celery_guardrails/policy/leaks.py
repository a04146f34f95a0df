"""What a task leaves behind in its process: threads, child processes, open files, memory.

A run that leaves something behind is no leak: a library opens its connection, a pool starts its threads, a module is
imported; and the next run may come by another branch, with connections of its own (a task in groups and chords has been seen to
open sockets in its 1st, 2nd, 20th and 21st run, and none ever after). A task is named when nearly *every* run leaves something
that still lives, or so many did that no start-up explains it, or run after run ends with more memory than any before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["CHILDREN", "FILES", "MEMORY", "THREADS", "Leak", "LeakWatch", "Snapshot", "Suspect"]

THREADS, CHILDREN, FILES, MEMORY = "threads", "child processes", "open files", "memory"

#: Runs of a task after its start-up that are looked at together, and how many of them must have set a record. What a library
#: keeps of its largest input sets records, too, but ever more seldom: of the 9th to the 16th input of random size 0.7 on average.
_WINDOW, _RECORDS = 8, 6
#: Runs of a task in which its memory may grow as it likes.
_START_UP = 12
#: Of threads, child processes and files: so many runs more than those that must have left something are looked at together...
_SPARED = 2
#: ...or, however far they lie apart, so many times as many runs must have.
_SPARSE = 4
#: Suspects of one task and kind that are kept: the oldest of them tell enough.
_MOST = 256
#: Names that go with a leak.
_NAMES = 5


@dataclass(frozen=True)
class Snapshot:
    """What a process has at one moment; None is what the system does not say.

    Args:
        threads: identifiers that the system gives to no other thread soon.
        children: process identifiers.
        files: descriptors.
        memory: resident, in bytes.
    """

    threads: frozenset[int] | None = None
    children: frozenset[int] | None = None
    files: frozenset[int] | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Suspect:
    """One thing that was there after a run and not before.

    Args:
        number: of the descriptor, thread or process.
        mark: tells it from a later one of the same number.
        name: for people.
    """

    number: int
    mark: str
    name: str


@dataclass(frozen=True)
class Leak:
    """What a task leaves behind.

    Args:
        kind: one of :data:`THREADS`, :data:`CHILDREN`, :data:`FILES`, :data:`MEMORY`.
        amount: how many still live; of memory, bytes.
        runs: of the task in this process that left them.
        names: of the last few.
    """

    kind: str
    amount: int
    runs: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == MEMORY:
            return f"memory: {self.amount / 2**20:.0f} MiB added by {self.runs} runs in this process"
        shown = ", ".join(self.names) + (", …" if self.amount > len(self.names) else "")
        return f"{self.kind}: {self.amount} of {self.runs} runs in this process still live ({shown})"


@dataclass
class _Left:
    """What the runs of one task have left of one kind."""

    #: Number of the run → what it left.
    runs: dict[int, list[Suspect]] = field(default_factory=dict)
    told: int = 0

    @property
    def alive(self) -> int:
        return sum(map(len, self.runs.values()))

    @property
    def all(self) -> list[Suspect]:
        """The last first."""
        return [item for _, run in sorted(self.runs.items(), reverse=True) for item in run]

    def add(self, run: int, suspects: list[Suspect]) -> None:
        again = {item.number for item in suspects}  # what had the number before has gone: this one was not there before the run
        self._keep(lambda item: item.number not in again)
        if suspects and self.alive < _MOST:
            self.runs[run] = suspects

    def keep(self, here: Mapping[int, str]) -> None:
        self._keep(lambda item: here.get(item.number) == item.mark)

    def _keep(self, wanted: Callable[[Suspect], bool]) -> None:
        self.runs = {run: kept for run, items in self.runs.items() if (kept := [item for item in items if wanted(item)])}

    def leaks(self, ran: int, least: int) -> bool:
        lately = sum(run > ran - least - _SPARED for run in self.runs)
        return (lately >= least or len(self.runs) >= _SPARSE * least) and self.alive >= 2 * self.told


@dataclass
class _Memory:
    """How the memory has grown with the runs of one task, in bytes."""

    runs: int = 0
    high: int = 0
    grown: int = 0
    records: int = 0
    window: int = 0
    told: int = 0

    def ran(self, before: int, after: int, warm_up: int) -> None:
        self.runs += 1
        growth = min(after - before, after - self.high)
        self.high = max(self.high, after)
        if self.runs <= warm_up:
            return
        self.window = (self.window << 1 | (growth > 0)) & (1 << _WINDOW) - 1
        if growth > 0:
            self.records += 1
            self.grown += growth

    def freed(self, size: int) -> None:
        self.high -= size
        self.grown -= min(size, self.grown)


class LeakWatch:
    """Remembers, in one process, what the runs of each task left behind.

    Args:
        runs: that must each have left something which still lives before the task is named: nearly all of the last ones, or four
            times as many in all.
        memory: bytes that a task's runs must have added.
    """

    def __init__(self, *, runs: int = 5, memory: int = 64 * 2**20) -> None:
        self._runs = runs
        self._memory = memory
        self._ran: dict[str, int] = {}
        self._left: dict[str, dict[str, _Left]] = {}
        self._grown: dict[str, _Memory] = {}

    @staticmethod
    def new(before: Snapshot, after: Snapshot) -> Iterator[tuple[str, list[int]]]:
        """Yield what a run left: the kind and as many of the new numbers, the highest, as there are more than before.

        A connection that was closed and opened again is none: there are as many as there were.
        """
        for kind, had, has in (
            (THREADS, before.threads, after.threads),
            (CHILDREN, before.children, after.children),
            (FILES, before.files, after.files),
        ):
            if had is not None and has is not None and len(has) > len(had):
                yield kind, sorted(has - had)[len(had) - len(has) :]

    def ran(self, task: str) -> None:
        """Note that a task has run."""
        self._ran[task] = self._ran.get(task, 0) + 1

    def left(self, task: str, kind: str, suspects: list[Suspect]) -> None:
        """Note what the last run of a task left."""
        self._left.setdefault(task, {}).setdefault(kind, _Left()).add(self._ran.get(task, 0), suspects)

    def grew(self, task: str, before: int | None, after: int | None) -> bool:
        """Note the memory before and after a run of a task; whether it is suspected now."""
        if before is None or after is None:
            return False
        seen = self._grown.setdefault(task, _Memory())
        seen.ran(before, after, _START_UP)
        return self._heavy(seen)

    def freed(self, task: str, size: int) -> None:
        """Note that collecting garbage after a run of a task gave bytes back."""
        if task in self._grown:
            self._grown[task].freed(max(size, 0))

    def suspects(self, task: str) -> dict[str, list[int]]:
        """Return the numbers of what a task is suspected of, by kind: who looks says which of them still live."""
        return {kind: [item.number for item in left.all] for kind, left in self._left.get(task, {}).items()}

    def leaks(self, task: str, marks: Mapping[str, Mapping[int, str]]) -> list[Leak]:
        """Return what a task leaks that nobody was told of, and forget what has gone.

        It is named once, and again when there is twice as much.

        Args:
            task: its name.
            marks: by kind, the marks of those :meth:`suspects` that still live.
        """
        found = []
        for kind, left in self._left.get(task, {}).items():
            left.keep(marks.get(kind, {}))
            if left.leaks(self._ran.get(task, 0), self._runs):
                found.append(Leak(kind, left.alive, len(left.runs), tuple(item.name for item in left.all[:_NAMES])))
        seen = self._grown.get(task)
        if seen is not None and self._heavy(seen):
            found.append(Leak(MEMORY, seen.grown, seen.records))
        return found

    def _heavy(self, seen: _Memory) -> bool:
        return seen.window.bit_count() >= _RECORDS and seen.grown >= max(self._memory, 2 * seen.told)

    def told(self, task: str, leak: Leak) -> None:
        """Note that somebody was told."""
        if leak.kind == MEMORY:
            self._grown[task].told = leak.amount
        else:
            self._left[task][leak.kind].told = leak.amount
