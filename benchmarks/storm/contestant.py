"""One contestant: its worker processes, and what is left of it in Redis at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import RedisServer, eventually, processes

from .plan import CONCURRENCY, QUEUE, WORKERS

#: By name: the title in picture and tables.
CONTESTANTS = {
    "celery": "Celery, autoretry_for",
    "dramatiq": "dramatiq, Retries",
    "guardrails": "celery-guardrails, resource",
    "guardrails-bare": "celery-guardrails, no resource",
    "guardrails-slots": "celery-guardrails, max_concurrency",
}
#: What runs where nothing else is asked for.
DEFAULT = ("celery", "dramatiq", "guardrails")

_NAMES = re.compile(rb"storm-\d{6}")
_READY = {"dramatiq": "is ready for action"}


@dataclass(frozen=True)
class Left:
    """What lies in the broker when the workers have stopped, by task name.

    Args:
        waiting: in a queue, delayed, or taken by a worker and not acknowledged.
        dead: kept as a dead letter.
    """

    waiting: frozenset[str]
    dead: frozenset[str]


class Contestant:
    """The fleet of one contestant.

    Args:
        name: of :data:`CONTESTANTS`.
        directory: for logs.
        redis: broker and store are two fresh databases of this server.
        dependency: URL of the dependency.
    """

    def __init__(self, name: str, directory: Path, redis: RedisServer, dependency: str) -> None:
        self.name = name
        self.directory = directory
        self._redis = redis
        self._broker = redis.fresh_url()
        self._environ = {
            "STORM_CONTESTANT": name,
            "STORM_BROKER": self._broker,
            "STORM_STORE": redis.fresh_url(),
            "STORM_DEPENDENCY": dependency,
            "STORM_GIVEN_UP": str(directory / "given-up"),
        }
        self._workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all workers and wait until they consume."""
        self._workers = [self._spawn(f"worker{number}", self._command(number)) for number in range(WORKERS)]
        for number in range(WORKERS):
            eventually(lambda number=number: self._ready(number), 60, because=lambda number=number: self._tail(number))

    def _command(self, number: int) -> list[str]:
        if self.name == "dramatiq":
            return ["dramatiq", "benchmarks.storm.dramatiq_app", "-p", "1", "-t", str(CONCURRENCY)]
        command = ["celery", "-A", "benchmarks.storm.celery_app", "worker", "-n", f"{self.name}{number}@storm", "-Q", QUEUE]
        return [*command, "-P", "prefork", "-c", str(CONCURRENCY), "-l", "INFO"]

    def _spawn(self, log: str, command: list[str]) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(processes.ROOT), os.environ.get("PYTHONPATH")]))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "GUARDRAILS_", "dramatiq_"))}
        environ.update(self._environ, PYTHONPATH=path, PYTHONUNBUFFERED="1", NO_COLOR="1")
        return processes.spawn([sys.executable, "-m", *command], log=self.directory / f"{log}.log", env=environ)

    def _ready(self, number: int) -> bool:
        self.check()
        return _READY.get(self.name, "ready.") in self._tail(number)

    def _tail(self, number: int) -> str:
        return processes.tail(self.directory / f"worker{number}.log")

    def publish(self, *, start: float, seconds: float, rate: float) -> subprocess.Popen[bytes]:
        """Start the publisher; its log is ``published`` in the directory."""
        options: dict[str, Any] = {"start": start, "seconds": seconds, "rate": rate, "log": self.directory / "published"}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return self._spawn("publisher", ["benchmarks.storm.publisher", *arguments])

    def check(self) -> None:
        """Raise unless every worker still runs."""
        for number, worker in enumerate(self._workers):
            if worker.poll() is not None:
                raise RuntimeError(f"worker {number} of {self.name} ended\n{self._tail(number)}")

    def stop(self) -> None:
        """SIGTERM to all workers at once; what has not ended by itself within 10 s is killed."""
        for worker in self._workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self._workers:
            processes.end(worker, grace=10)

    def left(self) -> Left:
        """Look into Redis; once the workers have stopped."""
        waiting, dead = set(), set()
        for key, value in self._values():
            # guardrails' dead letter queue, dramatiq's dead letters
            (dead if key.endswith((b".dead", b".XQ.msgs")) else waiting).update(_NAMES.findall(value))
        given_up = self.directory / "given-up"
        noted = set(given_up.read_text(encoding="utf-8").split()) if given_up.exists() else set()
        names = frozenset(name.decode() for name in dead)
        return Left(frozenset(name.decode() for name in waiting), names | noted)

    def _values(self) -> Iterator[tuple[bytes, bytes]]:
        with self._redis.client(int(self._broker.rsplit("/", 1)[1])) as client:
            for key in client.scan_iter(count=1000):
                kind = client.type(key)
                if kind == b"list":
                    values = client.lrange(key, 0, -1)
                elif kind == b"hash":
                    values = client.hvals(key)
                else:  # indexes of the others
                    continue
                for value in values:
                    yield key, value
