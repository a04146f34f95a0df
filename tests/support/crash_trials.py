"""Tasks whose processes die at chosen lines, and what has to be true of them afterwards.

First a task goes well and the lines that it reaches are noted; then, for each of them, another one of its kind goes the same
way and its process is killed right there, once.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_guardrails.policy.lease import RecordState

from .crashing import HEADER
from .deployment import Deployment
from .ledger import Entry
from .waiting import consistently, eventually

#: Transport options for Redis: seconds until what a dead worker held comes back.
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


@dataclass(frozen=True)
class Point:
    """A place to die at.

    Args:
        kind: of the task.
        attempt: in which it dies, 0-based.
        where: file, line, and which time.
        after: what had happened already: ``"body"``, ``"effect"``, ``"complete"``, …
    """

    kind: str
    attempt: int
    where: str
    after: frozenset[str]

    def open(self, what: str, record: str) -> bool:
        """Whether an effect is done at this line, and perhaps not yet remembered: ``record`` has not returned."""
        return what in self.after and record not in self.after


def points_of(kind: str, entry: Entry) -> list[Point]:
    """Return every line that a task without a death came through."""
    attempt, marks = entry.fields["attempt"], entry.fields["marks"]
    return [
        Point(kind, attempt, where, frozenset(what for what, at in marks if at <= number))
        for number, where in enumerate(entry.fields["reached"])
    ]


def chosen(points: list[Point], sample: int | None) -> list[Point]:
    """Return so many of them, evenly chosen; all where ``sample`` is None."""
    if sample is None or len(points) <= sample:
        return points
    return [points[int(number * len(points) / sample)] for number in range(sample)]


class Trial:
    """Sends tasks that die, and looks at what became of them.

    Args:
        app: of ``apps/crashing.py``.
        side: ``"child"`` or ``"main"``: the process that dies.
        until: main only: the function at whose end the lines of a task end.
    """

    def __init__(self, app: Deployment, side: str, until: str = "") -> None:
        self.app, self.side, self.until = app, side, until
        self.points: dict[str, Point] = {}
        self._results: dict[str, Any] = {}

    def lines(self, kind: str, times: int = 1, **options: Any) -> list[Entry]:
        """Let a task of a kind go well and return the lines that its attempts came through."""
        name = f"noted-{self.side}-{kind}-{self.until}-{self.app.queue}"
        self._send(kind, name, {}, options)
        return self.app.ledger.wait("lines", name, times=times)

    def send(self, points: list[Point], *, in_turn: bool = False, **options: Any) -> None:
        """Publish a task for each point; ``in_turn``: when the one before has died, or at least had the time to."""
        for point in points:
            name = f"{self.side}-{point.kind}-{self.until}-{len(self.points)}-{self.app.queue}"
            self.points[name] = point
            self._send(point.kind, name, {"point": point.where, "attempt": point.attempt}, options)
            if in_turn:
                with contextlib.suppress(AssertionError):
                    eventually((self.app.ledger.path.parent / f"died-{name}").exists, 3)

    def _send(self, kind: str, name: str, spec: dict[str, Any], options: dict[str, Any]) -> None:
        headers = {HEADER: {"side": self.side, "name": name, "until": self.until, **spec}}
        self._results[name] = self.app.task(kind).apply_async((name,), headers=headers, **options)

    def wait(self, timeout: float) -> None:
        """Wait until every task has ended, and nothing more happens."""
        pending = [name for name, point in self.points.items() if point.kind != "doomed"]
        doomed = len(self.points) - len(pending)

        def ended() -> bool:
            while pending:  # they end nearly in order; a result comes after the record, and again after a death in between
                record = self.app.guardrails.lookup(pending[-1])
                if record is None or record.state is not RecordState.COMPLETED or not self._results[pending[-1]].ready():
                    return False
                pending.pop()
            return self.app.dead() >= doomed

        eventually(ended, timeout, every=0.3, because=lambda: f"{len(pending)} have not completed: {pending[-1:]}, {self.points}"[:2000])
        eventually(lambda: self.app.depth() == 0, 30, because="the queue is empty")
        size = self.app.ledger.path.stat().st_size
        # copies that wait for a lease, a backoff or a visibility timeout come back within these seconds
        consistently(lambda: self.app.ledger.path.stat().st_size == size, 3.5, every=0.5, because="nothing runs any more")

    def check(self, *, atomic: Callable[[], Counter[str]] | None = None) -> None:
        """Look at every promise for every line.

        Args:
            atomic: counts the effects by name, where they commit with their completion.

        Raises:
            AssertionError: with the first lines at which one was broken.
        """
        happened: dict[str, Counter[str]] = {event: Counter() for event in ("dies", "effect", "step")}
        for entry in self.app.ledger.entries():
            happened.setdefault(entry.event, Counter())[entry.key] += 1
        missed = [point for name, point in self.points.items() if not happened["dies"][name]]
        # What the main process does beside a task depends on the moment.
        allowed = len(self.points) / (10 if self.side == "child" else 3)
        assert len(missed) <= allowed, f"{len(missed)} of {len(self.points)} lines were not reached again: {missed[:5]}"
        letters = Counter(str(letter.headers["id"]) for letter in self.app.letters())
        effects = atomic() if atomic is not None else happened["effect"]
        wrong = []
        for name, point in self.points.items():
            result = self._results[name]
            dead, doomed = letters[result.id], point.kind == "doomed"
            good = (1 <= dead <= 2 and not effects[name]) if doomed else not dead
            if not doomed:
                # the main process takes its child along, wherever that is
                twice = atomic is None and (self.side == "main" or point.open("effect", "complete"))
                good &= effects[name] == 1 or (effects[name] == 2 and twice)
            if point.kind == "stepped":
                good &= happened["step"][name] == 1 or (happened["step"][name] == 2 and point.open("step", "save_step"))
            if not good or result.state != ("FAILURE" if doomed else "SUCCESS"):
                wrong.append(f"{point}: {effects[name]} effects, {happened['step'][name]} steps, {dead} letters, {result.state}")
        assert not wrong, "\n".join([f"{len(wrong)} of {len(self.points)}", *wrong[:20]])
        window = [name for name, point in self.points.items() if point.open("effect", "complete")]
        if self.side == "main":
            assert sum(effects[name] == 2 for name in self.points) <= len(self.points) / 10, "the child did it once, and was done with it"
        elif atomic is None:
            assert any(effects[name] == 2 for name in window), "an effect is never repeated: do the processes die at all?"
