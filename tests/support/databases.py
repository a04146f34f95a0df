"""Database servers for the tests: what a private PostgreSQL and a private MariaDB have in common."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil

from . import processes
from .own_server import OwnServer
from .waiting import eventually

__all__ = ["Databases", "PrivateServer", "first_program", "query"]


def first_program(names: tuple[str, ...], *patterns: str) -> Path | None:
    """Return the first program of one of these names: on the path, then in directories given as patterns below ``/``, newest first."""
    for name in names:
        found = shutil.which(name)
        if found:
            return Path(found).resolve()  # the programs that belong to it are beside it
    for pattern in patterns:
        for directory in sorted(Path("/").glob(pattern.lstrip("/")), key=_version, reverse=True):
            for name in names:
                if os.access(directory / name, os.X_OK):
                    return directory / name
    return None


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Ask a database of any kind and return the rows; ``sqlite:////path`` names a file."""
    parts = urlsplit(url)
    connection: Any
    if parts.scheme == "postgresql":
        import psycopg

        connection = psycopg.connect(url, autocommit=True)
    elif parts.scheme == "mysql":
        import pymysql

        connection = pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username or "root"),
            password=unquote(parts.password or ""),
            database=parts.path[1:],
            autocommit=True,
        )
    else:
        connection = sqlite3.connect(parts.path[1:], timeout=20)
    with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def _version(path: Path) -> list[int]:
    return [int(digits) for part in path.parts if (digits := "".join(filter(str.isdigit, part)))]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # one whose parent is gone may be a zombie for seconds
    except psutil.NoSuchProcess:
        return False


class Databases:
    """A server that runs, in which every test gets a database of its own.

    Args:
        admin_url: of a database that is there, with a user who may create others.
    """

    def __init__(self, admin_url: str) -> None:
        self.admin_url = admin_url
        self._made: list[str] = []

    def fresh_url(self) -> str:
        """URL of a new, empty database."""
        name = f"guardrails_{secrets.token_hex(5)}"
        self._admin(f"CREATE DATABASE {name}{self._create_options}")
        self._made.append(name)
        return urlsplit(self.admin_url)._replace(path=f"/{name}").geturl()

    def drop(self, url: str) -> None:
        """Throw a database of :meth:`fresh_url` away, whoever is connected to it."""
        name = urlsplit(url).path[1:]
        self._made.remove(name)
        self._admin(f"DROP DATABASE IF EXISTS {name}{self._drop_options}")

    def close(self) -> None:
        """Throw away what is left of the databases."""
        for name in list(self._made):
            self.drop(f"//-/{name}")

    _create_options = ""
    _drop_options = ""

    def _admin(self, statement: str) -> None:
        """Run a statement as administrator, outside of a transaction."""
        raise NotImplementedError


class PrivateServer(OwnServer, Databases):
    """A server of our own on a loopback port, with its data in a directory of its own; a test may kill and start it again."""

    def __init__(self) -> None:
        OwnServer.__init__(self)
        Databases.__init__(self, "")
        # Not pytest's: that one only root may enter, and PostgreSQL refuses to be root.
        self.directory = Path(tempfile.mkdtemp(prefix="guardrails-"))

    def start(self) -> None:
        """Start, or start again on the same port with the same data; returns when it answers."""
        if not (self.directory / "data").exists():
            self._initialise()
        self._come_up(60)

    def _answers(self, port: int) -> bool:
        if not processes.listens(port):
            return False
        self.admin_url = self._url(port)
        try:
            self._admin("SELECT 1")
        except Exception:  # noqa: BLE001 - the driver's own error: it is starting, or recovering
            return False
        return True

    def _initialise(self) -> None:
        """Make the data directory."""
        raise NotImplementedError

    def _url(self, port: int) -> str:
        raise NotImplementedError

    def _prepare(self, command: list[str], user: str | None = None) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", user=user, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}")

    def kill(self) -> None:
        """SIGKILL to all of it: a crash. What was committed is there after :meth:`start`."""
        if self._process is None:
            return
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
        processes.end(self._process)
        for one in family:  # PostgreSQL's have process groups of their own, and it does not start again beside them
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        eventually(lambda: not any(map(_runs, family)), 10, because=f"{self.title} is gone")

    def close(self) -> None:
        """End it and throw its data away."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """The last lines of its log."""
        return processes.tail(self.directory / "server.log")
