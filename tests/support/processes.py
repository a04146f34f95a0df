"""Processes that a test starts, and that are gone when it ends, however it ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Root of the repository: the working directory and the import path of every process that is started here.
ROOT = Path(__file__).resolve().parents[2]

# Reads "+pgid" and "-pgid" lines; at the end of its input, so also when pytest itself was killed, it kills what is left.
_REAPER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class _Reaper:
    """Survives this process for a moment, to end the process groups it leaves behind."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def _tell(self, line: str) -> None:
        if self._process is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", _REAPER], stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
            )
            atexit.register(self._close)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")

    def _close(self) -> None:
        if self._process is not None and self._owner == os.getpid() and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait(timeout=10)

    def watch(self, group: int) -> None:
        self._tell(f"+{group}")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}")


_reaper = _Reaper()


def spawn(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT, user: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a process group of its own, its output appended to ``log``.

    Args:
        command: program and arguments.
        log: file for standard output and standard error.
        env: the whole environment; None for this process's own.
        cwd: working directory.
        user: whom it runs as, where this process is root and the program refuses to be.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            start_new_session=True,
        )
    _reaper.watch(process.pid)
    return process


def end(process: subprocess.Popen[bytes], *, grace: float = 0.0, how: int = signal.SIGTERM) -> int:
    """End a process of :func:`spawn` and everything in its group, and return its exit code.

    Args:
        process: to end.
        grace: seconds it gets after the signal ``how`` before it is killed; 0 kills at once.
        how: the polite signal.
    """
    if process.poll() is None and grace > 0:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)  # a stopped process does not see the next one
            process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    # The group outlives its leader where children do: a process group's id is not used again while it has members.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait(timeout=30)
    _reaper.forget(process.pid)
    return code


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free a moment ago.

    It is below those that the system gives to outgoing connections (32768 and above on Linux): of these another may be
    opened before the server has started that is to listen here, and a server that was killed could not come back to it.
    """
    for port in random.SystemRandom().sample(range(10_240, 32_768), 1_000):
        if is_free(port):
            return port
    raise RuntimeError("none of a thousand TCP ports of the loopback interface is free")


def is_free(port: int) -> bool:
    """Whether a server could listen on that TCP port of the loopback interface."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(port: int, host: str = "127.0.0.1", timeout: float = 0.5) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def tail(path: Path, lines: int = 60) -> str:
    """Return the last lines of a file, or "" where there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
