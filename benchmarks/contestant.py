"""One variant with its worker: its queue is filled while the worker stands still, then the draining is timed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support import eventually, processes

from .app import TASK, make_app

_numbers = itertools.count()
_keys = itertools.count()


@dataclass(frozen=True)
class Round:
    """One round of one variant.

    Args:
        publish: microseconds of one ``apply_async``.
        rate: tasks a second while the queue was drained.
        main: CPU microseconds a task in the worker's main process.
        children: CPU microseconds a task in its pool processes.
    """

    publish: float
    rate: float
    main: float
    children: float


class Contestant:
    """A publisher and, where asked for, a prefork worker with two processes.

    Args:
        variant: of :data:`benchmarks.app.VARIANTS`.
        directory: for its log and its count of effects.
        broker: URL.
        store: URL; of no use to the plain variant.
        backend: URL of the result backend, or "" to ignore results.
        settings: further Celery settings.
        title: in tables.
    """

    def __init__(
        self,
        variant: str,
        directory: Path,
        *,
        broker: str,
        store: str,
        backend: str = "",
        settings: dict[str, Any] | None = None,
        title: str = "",
    ) -> None:
        self.variant = variant
        self.title = title or variant
        self.name = f"{variant}{next(_numbers)}"
        self._log = directory / f"{self.name}.log"
        self._effects = directory / f"{self.name}.effects"
        self._environ = {
            "BENCH_VARIANT": variant,
            "BENCH_BROKER": broker,
            "BENCH_STORE": store,
            "BENCH_BACKEND": backend,
            "BENCH_QUEUE": self.name,
            "BENCH_EFFECTS": str(self._effects),
            "BENCH_SETTINGS": json.dumps(settings or {}),
        }
        self.app = make_app(self._environ)
        self._task = self.app.tasks[TASK]
        self._process: subprocess.Popen[bytes] | None = None

    # -- the worker -------------------------------------------------------------------------------------------------

    def start(self, warm_up: int = 300) -> Contestant:
        """Start the worker, let it run some tasks, and stop it in its tracks."""
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "-P", "prefork", "-c", "2", "-l", "WARNING"]
        command += ["-n", f"{self.name}@bench", "--without-mingle", "--without-gossip", "--without-heartbeat"]
        path = os.pathsep.join(filter(None, [str(processes.ROOT), os.environ.get("PYTHONPATH")]))
        self._process = processes.spawn(command, log=self._log, env={**os.environ, "PYTHONPATH": path, **self._environ})
        before = self.effects
        for _ in range(warm_up):
            self._task.apply_async((next(_keys),))
        eventually(lambda: self._alive() and self.effects >= before + warm_up, 60, because=lambda: processes.tail(self._log))
        time.sleep(0.3)  # its last acks
        self._signal(signal.SIGSTOP)
        return self

    def stop(self) -> None:
        """End the worker and close the publisher."""
        if self._process is not None:
            processes.end(self._process)
        self.app.close()

    def _alive(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the worker of {self.name} ended\n{processes.tail(self._log)}")
        return True

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    # -- what is measured -------------------------------------------------------------------------------------------

    @property
    def effects(self) -> int:
        """How often the task's body has run."""
        try:
            return self._effects.stat().st_size
        except FileNotFoundError:
            return 0

    def publish(self, tasks: int, *, first: int | None = None) -> float:
        """Publish tasks with keys that nobody used, or from ``first`` on; return the microseconds that each took."""
        send = self._task.apply_async
        numbers = list(itertools.islice(_keys, tasks)) if first is None else range(first, first + tasks)
        start = time.perf_counter()
        for number in numbers:
            send((number,))
        return (time.perf_counter() - start) / tasks * 1e6

    def drain(self, tasks: int, *, effects: int | None = None) -> tuple[float, float, float]:
        """Let the worker go until the bodies of ``effects`` tasks have run; return rate and CPU of main and children."""
        assert self._process is not None
        wanted = tasks if effects is None else effects
        before, cpu = self.effects, self._cpu()
        start = time.perf_counter()
        self._signal(signal.SIGCONT)
        while self.effects - before < wanted:
            time.sleep(0.004)
            if time.perf_counter() - start > 120:
                raise RuntimeError(f"{self.name}: {self.effects - before} of {wanted} tasks after 120 s\n{processes.tail(self._log)}")
        rate = wanted / (time.perf_counter() - start) if wanted else 0.0
        time.sleep(0.3)  # the last acks
        main, children = (after - was for after, was in zip(self._cpu(), cpu, strict=True))
        self._signal(signal.SIGSTOP)
        if self.effects - before != wanted:
            raise RuntimeError(f"{self.name}: {self.effects - before} effects of {wanted} tasks")
        return rate, main / tasks * 1e6, children / tasks * 1e6

    def skim(self, tasks: int) -> None:
        """Let the worker go until it has taken ``tasks`` messages whose bodies do not run."""
        before = self.effects
        self._signal(signal.SIGCONT)
        eventually(lambda: not self._waiting(), 120, because=lambda: processes.tail(self._log))
        time.sleep(0.5)  # the last ones
        self._signal(signal.SIGSTOP)
        if self.effects != before:
            raise RuntimeError(f"{self.name}: {self.effects - before} of {tasks} duplicates ran")

    def _waiting(self) -> int:
        with self.app.connection_for_write() as connection:
            return int(connection.default_channel._size(self.name))

    def round(self, tasks: int) -> Round:
        """Fill the queue, drain it."""
        publish = self.publish(tasks)
        return Round(publish, *self.drain(tasks))

    def purge(self) -> None:
        """Empty the queue."""
        with self.app.connection_for_write() as connection:
            connection.default_channel.queue_purge(self.name)

    def _cpu(self) -> tuple[float, float]:
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        return _seconds(main), sum(_seconds(child) for child in main.children(recursive=True))


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
