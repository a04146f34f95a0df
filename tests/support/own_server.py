"""What all servers of our own have in common: they come up on a port, and a test may kill, freeze and start them again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from functools import partial
from typing import Any

import psutil

from . import processes
from .waiting import eventually

__all__ = ["OwnServer"]


class OwnServer:
    """A server of our own, down at first. Once it was up it keeps its port."""

    #: Name for people.
    title = ""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of its first process."""
        assert self._process is not None
        return self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Any:
        """Start, or start again on the same port; returns when it answers."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL: a crash."""
        raise NotImplementedError

    def restart(self) -> None:
        """Kill, and start again on the same port; it remembers what it remembers after a crash."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP to all of it: connections stay open, it accepts others, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        leader = psutil.Process(self.pid)
        for one in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    def log(self) -> str:
        """The last lines of its log."""
        raise NotImplementedError

    # -- coming up ----------------------------------------------------------------------------------------------

    def _come_up(self, seconds: float) -> None:
        """Launch it and wait until it answers; another process may take the port between its choice and the bind."""
        for attempt in range(5):
            port = self.port or processes.free_port()
            self._process = self._launch(port)
            try:
                eventually(partial(self._is_up, port), seconds, because=self.log)
            except ChildProcessError:
                if self.port or attempt == 4:
                    raise
                continue
            self.port = port
            return

    def _is_up(self, port: int) -> bool:
        """Whether it answers.

        Raises:
            ChildProcessError: it has ended.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            raise ChildProcessError(f"{self.title} ended with {self._process.returncode}\n{self.log()}")
        return self._answers(port)

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self, port: int) -> bool:
        """Whether it answers on that port; it may be starting, or recovering."""
        raise NotImplementedError
