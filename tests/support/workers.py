"""Real ``celery worker`` processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from celery import Celery

from . import processes
from .waiting import eventually

READY = re.compile(r"\bready\.\s*$", re.MULTILINE)


class Worker:
    """One worker, in a process group of its own; made by :meth:`Workers.start`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._log = log

    def __repr__(self) -> str:
        return f"<worker {self.name} pid {self.pid}>"

    # -- what it does -------------------------------------------------------------------------------------------

    @property
    def hostname(self) -> str:
        """Its name among workers, as remote control takes it."""
        return f"{self.name}@test"

    def turn(self, app: Celery) -> None:
        """Wait until its event loop has gone round: what it had received is in the pipes of its processes."""
        for _ in range(3):
            assert app.control.ping(destination=[self.hostname], timeout=30, limit=1)

    def log(self) -> str:
        """Everything it printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_ready(self, timeout: float = 120) -> Worker:
        """Wait until it consumes."""

        def ready() -> bool:
            ended = not self.alive()
            if READY.search(self.log()):  # it may have been killed since, by its first task
                return True
            if ended:
                raise RuntimeError(f"{self!r} ended with {self._process.returncode}\n{processes.tail(self._log)}")
            return False

        eventually(ready, timeout, because=lambda: f"{self!r} is ready\n{processes.tail(self._log)}")
        return self

    def wait_log(self, pattern: str, timeout: float = 20, times: int = 1) -> list[str]:
        """Wait until the pattern is found ``times`` times in its log and return the matches."""

        def found() -> list[str]:
            matches = [match.group(0) for match in re.finditer(pattern, self.log(), re.MULTILINE)]
            return matches if len(matches) >= times else []

        return eventually(found, timeout, because=lambda: f"{times} × {pattern!r} in\n{processes.tail(self._log)}")

    def alive(self) -> bool:
        """Whether the main process runs."""
        return self._process.poll() is None

    def children(self) -> list[int]:
        """Pids of its pool processes."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        alive = []
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    alive.append(child.pid)
        return alive

    def children_up(self, app: Celery) -> list[int]:
        """Wait until every pool process takes messages, which may be after the worker is ready; return their pids."""

        def up() -> list[int]:
            answers = app.control.inspect(destination=[self.hostname], timeout=5, limit=1).stats() or {}
            pool = answers[self.hostname]["pool"]
            return pool["processes"] if pool["writes"]["inqueues"]["total"] == len(pool["processes"]) else []

        return eventually(up, 60, because=lambda: f"the processes of {self!r} are up", ignoring=(KeyError, TypeError))

    # -- what is done to it -------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send a signal to the main process."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: what every deploy sends."""
        self.signal(signal.SIGTERM)

    def wait(self, timeout: float = 30) -> int:
        """Wait until the main process has ended and return its exit code."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self!r} did not end within {timeout:g} s\n{processes.tail(self._log)}") from None

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM, then wait; return the exit code."""
        if self.alive():
            self.terminate()
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL to the main process, as the OOM killer does; returns when its children are gone too."""
        children = self.children()
        self.signal(signal.SIGKILL)
        self._process.wait(10)
        # On Linux the kernel kills the pool processes with their parent; elsewhere nobody does.
        if not sys.platform.startswith("linux"):
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        eventually(lambda: not any(map(_runs, children)), 10, because=f"the children of {self!r} are gone")

    def kill_child(self, pid: int | None = None) -> int:
        """SIGKILL to one pool process, the given one or the first, and return its pid."""
        chosen = pid if pid is not None else eventually(self.children, 10, because=f"{self!r} has children")[0]
        os.kill(chosen, signal.SIGKILL)
        return chosen

    def freeze(self) -> None:
        """SIGSTOP to the whole group: a paused virtual machine; leases run out meanwhile."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to the whole group."""
        os.killpg(self.pid, signal.SIGCONT)

    def destroy(self) -> None:
        """Leave nothing of it."""
        # Killed at once, for speed; but a process writes what coverage measured in it when it ends by itself.
        measured = any(name.startswith("COVERAGE_PROCESS_") for name in os.environ)
        processes.end(self._process, grace=10 if measured else 0)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Workers:
    """Starts workers and ends them all.

    Args:
        directory: for their logs.
        env: variables that all of them get.
    """

    def __init__(self, directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.env = dict(env or {})
        self.all: list[Worker] = []
        self._numbers = itertools.count(1)

    def start(
        self,
        app: str,
        *,
        queues: Sequence[str] = (),
        pool: str = "prefork",
        concurrency: int = 2,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        mingle: bool = False,
        loglevel: str = "INFO",
        wait: bool = True,
    ) -> Worker:
        """Start ``celery -A app worker``.

        Args:
            app: as for ``-A``; found from the root of the repository.
            queues: consumed, default: the app's own choice.
            pool: ``prefork``, ``threads``, ``gevent`` or ``solo``.
            concurrency: of the pool.
            env: further variables; a value ``""`` is passed on as it is.
            options: further options of ``celery worker``.
            mingle: let workers talk to each other at start, which takes a second, as it does by default.
            loglevel: of the log that the test can read.
            wait: return when it consumes; False to start several at once, then :meth:`Worker.wait_ready` for each.
        """
        name = f"w{next(self._numbers)}"
        command = [sys.executable, "-m", "celery", "-A", app, "worker"]
        command += ["-n", f"{name}@test", "-P", pool, "-c", str(concurrency), "-l", loglevel]
        if queues:
            command += ["-Q", ",".join(queues)]
        if not mingle:
            command += ["--without-mingle", "--without-gossip"]
        log = self.directory / f"{name}.log"
        process = processes.spawn([*command, *options], log=log, env=self._environment(env or {}))
        worker = Worker(name, process, log)
        self.all.append(worker)
        return worker.wait_ready() if wait else worker

    def start_many(self, number: int, app: str, **options: object) -> list[Worker]:
        """Start several at once, with the arguments of :meth:`start`, and wait until all consume."""
        workers = [self.start(app, **{**options, "wait": False}) for _ in range(number)]  # type: ignore[arg-type]
        return [worker.wait_ready() for worker in workers]

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        # What the surrounding shell says of Celery or Django must not reach a worker of ours.
        strangers = ("CELERY_", "TESTAPP_", "GUARDRAILS_", "DJANGO_")
        base = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
        base["PYTHONPATH"] = os.pathsep.join(filter(None, [str(processes.ROOT), os.environ.get("PYTHONPATH")]))
        base.update(PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1", NO_COLOR="1")
        return {**base, **self.env, **extra}

    def logs(self) -> list[tuple[str, str]]:
        """Return the title and the last lines of each log."""
        return [
            (f"log of {worker.name} (pid {worker.pid}, {'alive' if worker.alive() else 'ended'})", processes.tail(worker._log, 120))
            for worker in self.all
        ]

    def destroy(self) -> None:
        """Leave nothing of any of them."""
        for worker in self.all:
            worker.destroy()
