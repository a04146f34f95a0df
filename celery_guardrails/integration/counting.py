"""Counts events: in this process, and for the worker's main process in those that it forks.

A pool process sends what it counts through a pipe, and nothing is counted twice or lost but by SIGKILL between an event and the
write. A write of one line is atomic (POSIX: up to ``PIPE_BUF`` bytes), so all children share one pipe. It never waits: where
the pipe is full, what was counted is added up in the child and sent a moment later.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..events import Event
from .metrics import OTHER, Key, Measures

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["Counting", "Counts", "Outbox", "Pipe", "Source"]

#: Seconds after which a pool process tries again to write into a pipe that was full.
_AGAIN = 0.1
#: Bytes of one read: all that a pipe holds on Linux.
_READ = 65_536
#: Bytes that a number takes, with what is around it.
_AMOUNT = 32


class Counts:
    """Numbers that things are added to; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Key, float] = {}

    def add(self, additions: Iterable[tuple[Key, float]]) -> None:
        """Add."""
        with self._lock:
            for key, amount in additions:
                self._values[key] = self._values.get(key, 0.0) + amount

    def values(self) -> dict[Key, float]:
        """Return the numbers as they stand."""
        with self._lock:
            return dict(self._values)


class Pipe:
    """From the pool processes to the main process, which makes it before it forks them."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        os.set_blocking(self.write_end, False)
        self._rest = b""
        self._lock = threading.Lock()
        self._known: dict[bytes, Key] = {}

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to read, for so long at most."""
        poll = select.poll()  # not select(): a worker may have more than 1,024 files open
        poll.register(self.read_end, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def read(self) -> list[tuple[Key, float]]:
        """Return all that has been written; does not wait."""
        found: list[tuple[Key, float]] = []
        with self._lock:
            while True:
                try:
                    data = os.read(self.read_end, _READ)
                except BlockingIOError:
                    return found
                if not data:
                    return found
                *lines, self._rest = (self._rest + data).split(b"\n")
                found.extend(map(self._parsed, lines))

    def close_read_end(self) -> None:
        """Close it in this process, once: where a task forks this is called again, and the number may be a file of the task's."""
        if self.read_end >= 0:
            end, self.read_end = self.read_end, -1
            with contextlib.suppress(OSError):
                os.close(end)

    def _parsed(self, line: bytes) -> tuple[Key, float]:
        text, _, amount = line.rpartition(b" ")
        key = self._known.get(text)
        if key is None:
            metric, labels, part = json.loads(text)
            key = self._known[text] = Key(metric, tuple(labels), part)
        return key, float(amount)


class Outbox:
    """A pool process's side of a pipe.

    Args:
        write_end: its descriptor.
    """

    def __init__(self, write_end: int) -> None:
        self._write_end = write_end
        # A signal's handler may count while it interrupts another count.
        self._lock = threading.RLock()
        self._pending: dict[Key, float] = {}
        self._texts: dict[Key, bytes] = {}
        self._again: threading.Timer | None = None

    def send(self, additions: list[tuple[Key, float]]) -> None:
        """Write, or keep what cannot be written now."""
        with self._lock:
            if not self._pending and self._written(additions):
                return
            for key, amount in additions:
                self._pending[key] = self._pending.get(key, 0.0) + amount
            if not self._write() and self._again is None:
                self._again = threading.Timer(_AGAIN, self._try_again)
                self._again.daemon = True
                self._again.start()

    def flush(self) -> bool:
        """Write what was kept; False where the pipe is still full."""
        with self._lock:
            return self._write()

    def _try_again(self) -> None:
        with self._lock:
            self._again = None
            self.send([])

    def _written(self, additions: list[tuple[Key, float]]) -> bool:
        """Write all at once, as is nearly always possible; whether it was."""
        data = b"".join([b"%s %r\n" % (self._texts.get(key) or self._text(key), amount) for key, amount in additions])
        if len(data) > select.PIPE_BUF:
            return False
        try:
            os.write(self._write_end, data)
        except OSError:
            return False
        return True

    def _write(self) -> bool:
        for keys, line in list(self._lines()):
            try:
                os.write(self._write_end, line)
            except BlockingIOError:
                return False
            except OSError:  # the main process is gone, and with it what is counted here
                self._pending.clear()
                return True
            for key in keys:
                del self._pending[key]
        return True

    def _lines(self) -> Iterator[tuple[list[Key], bytes]]:
        keys: list[Key] = []
        data = b""
        for key, amount in self._pending.items():
            line = b"%s %r\n" % (self._text(key), amount)
            if keys and len(data) + len(line) > select.PIPE_BUF:
                yield keys, data
                keys, data = [], b""
            keys.append(key)
            data += line
        if keys:
            yield keys, data

    def _text(self, key: Key) -> bytes:
        text = self._texts.get(key)
        if text is None:
            text = _encoded(key)
            if len(text) > select.PIPE_BUF - _AMOUNT:  # 512 on macOS
                text = _encoded(key._replace(labels=(OTHER,) * len(key.labels)))
            self._texts[key] = text
        return text


def _encoded(key: Key) -> bytes:
    return json.dumps(key, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass
class Counting:
    """Listens to the events of an app.

    Args:
        rails: of the app.
        pipe: where pool processes are forked; without one they count for themselves.
    """

    rails: Guardrails
    pipe: Pipe | None = None
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._main = self._pid = os.getpid()
        self._measures = self._new_measures()
        self._outbox: Outbox | None = None

    def _new_measures(self) -> Measures:
        app = self.rails.app
        return Measures(app.tasks, app.amqp.queues)

    def __call__(self, event: Event) -> None:
        """Count an event, here or for the main process."""
        pid = os.getpid()
        if pid != self._pid:  # forked: another thread of the parent may hold its locks for ever
            self._pid, self._measures = pid, self._new_measures()
            self._outbox = Outbox(self.pipe.write_end) if self.pipe is not None else None
            self.counts = Counts()
        if self._outbox is not None:
            self._outbox.send(self._measures(event))
        else:
            self.counts.add(self._measures(event))

    def values(self) -> dict[Key, float]:
        """Return the numbers as they stand; in the main process with what the pool processes have sent."""
        self.collect()
        return self.counts.values()

    def collect(self) -> None:
        """In the main process: add up what the pool processes have sent."""
        if self.pipe is not None and os.getpid() == self._main:
            self.counts.add(self.pipe.read())

    def flush(self) -> None:
        """In a pool process that ends: send what could not be sent yet."""
        if self._outbox is not None and os.getpid() == self._pid:
            self._outbox.flush()

    def close_read_end(self) -> None:
        """In a pool process: it has no use for it."""
        if self.pipe is not None:
            self.pipe.close_read_end()


@dataclass(frozen=True)
class Source:
    """Numbers that may be shown.

    Args:
        namespace: of the app; a label of all of them.
        counts: the numbers as they stand.
        tasks: names of tasks whose counters begin with 0, so that the first increase can be seen.
        now: further numbers, looked up when somebody asks.
    """

    namespace: str
    counts: Callable[[], dict[Key, float]]
    tasks: Callable[[], Iterable[str]] = tuple
    now: Callable[[], dict[Key, float]] = dict
