"""The ledger of effects: what the bodies of tasks really did, whatever the messages and results say."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .waiting import eventually

START, EFFECT, END = "start", "effect", "end"


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Args:
        event: ``"start"``, ``"effect"``, ``"end"`` or a task's own word.
        key: what the effect is on, e.g. an order.
        run: identifies one run of one body.
        pid: of the process.
        time: seconds of the machine's monotonic clock, comparable between processes.
        fields: whatever else the task wrote (fence, attempt, task_id …).
    """

    event: str
    key: str
    run: str
    pid: int
    time: float
    fields: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """One run of one body, as far as the ledger saw it; ``ended`` is False where the process died first."""

    key: str
    run: str
    pid: int
    start: float
    end: float
    ended: bool


class Run:
    """What a body writes into while it runs."""

    def __init__(self, ledger: Ledger, key: str, fields: dict[str, Any]) -> None:
        self.id = uuid.uuid4().hex
        self._ledger = ledger
        self._key = key
        self._fields = fields

    def record(self, event: str, **fields: Any) -> None:
        """Write a line."""
        self._ledger.record(event, self._key, run=self.id, **{**self._fields, **fields})

    def effect(self, **fields: Any) -> None:
        """Do the effect that must not be done twice."""
        self.record(EFFECT, **fields)


class Ledger:
    """An append-only file of JSON lines.

    A line is one ``write`` to a file opened for appending, so lines of many processes do not mix, and what was written
    survives the SIGKILL of the writer.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    # -- the tasks' side ----------------------------------------------------------------------------------------

    def record(self, event: str, key: str, *, run: str = "", **fields: Any) -> None:
        """Append a line."""
        line = {"event": event, "key": key, "run": run, "pid": os.getpid(), "time": time.monotonic(), "fields": fields}
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(line, default=repr) + "\n").encode())
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def run(self, key: str, **fields: Any) -> Iterator[Run]:
        """Frame a body: writes ``start``, and ``end`` when it is left in any way but the death of the process."""
        run = Run(self, key, fields)
        run.record(START)
        try:
            yield run
        finally:
            run.record(END)

    # -- the tests' side ----------------------------------------------------------------------------------------

    def entries(self, *, event: str | None = None, key: str | None = None) -> list[Entry]:
        """Return the lines in order, those of one event or key only if asked."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return []
        lines = text[: text.rfind("\n") + 1].splitlines()  # a reader may see the beginning of a line that is being written
        entries = [Entry(**json.loads(line)) for line in lines]
        return [entry for entry in entries if event in (None, entry.event) and key in (None, entry.key)]

    def count(self, key: str | None = None, event: str = EFFECT) -> int:
        """Return how often it happened, to one key or in all."""
        return len(self.entries(event=event, key=key))

    def counts(self, event: str = EFFECT) -> Counter[str]:
        """Return how often it happened to each key."""
        return Counter(entry.key for entry in self.entries(event=event))

    def repeated(self) -> dict[str, int]:
        """Return the keys whose effect was done more than once: empty is what guards are for."""
        return {key: times for key, times in self.counts().items() if times > 1}

    def spans(self, key: str | None = None) -> list[Span]:
        """Return the runs; one whose process died ends with its last line."""
        runs: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries(key=key):
            if entry.run:
                runs[entry.run].append(entry)
        return [
            Span(lines[0].key, run, lines[0].pid, lines[0].time, lines[-1].time, any(line.event == END for line in lines))
            for run, lines in runs.items()
        ]

    def overlaps(self, key: str | None = None) -> list[tuple[Span, Span]]:
        """Return pairs of runs of one key that were going on at the same time."""
        spans = sorted(self.spans(key), key=lambda span: (span.key, span.start))
        pairs = []
        for number, first in enumerate(spans):
            for second in spans[number + 1 :]:
                if second.key != first.key or second.start >= first.end:
                    break
                pairs.append((first, second))
        return pairs

    def wait(self, event: str, key: str | None = None, times: int = 1, timeout: float = 20.0) -> list[Entry]:
        """Wait until it happened ``times`` times and return the lines."""

        def enough() -> list[Entry]:
            found = self.entries(event=event, key=key)
            return found if len(found) >= times else []

        return eventually(enough, timeout, because=lambda: f"{times} × {event} of {key or 'any key'}\n{self}")

    def __str__(self) -> str:
        lines = [f"{e.time:.3f} pid {e.pid} {e.event} {e.key} {e.fields or ''}".rstrip() for e in self.entries()]
        return "ledger:\n" + "\n".join(f"  {line}" for line in lines or ["(empty)"])
