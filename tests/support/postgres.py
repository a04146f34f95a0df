"""A PostgreSQL for the tests: a private server that a test may kill and start again, or one that runs."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from functools import cache
from pathlib import Path

from . import processes
from .databases import Databases, PrivateServer, first_program

__all__ = ["POSTGRES_VARIABLE", "PostgresDatabases", "PostgresServer", "find_postgres", "postgres_databases", "postgres_programs"]

#: A PostgreSQL of yours for the tests instead of a private server: the URL of a database whose user may create others.
POSTGRES_VARIABLE = "GUARDRAILS_TEST_POSTGRES_URL"
_RUNNING = "postgresql://postgres@127.0.0.1:5432/postgres"


class PostgresDatabases(Databases):
    """A PostgreSQL in which every test gets a database of its own."""

    _drop_options = " WITH (FORCE)"

    def _admin(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.admin_url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)


def _unprivileged() -> str | None:
    """Return the user that the server runs as: it refuses to be root. None where this process is not root either."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    return None


def postgres_programs() -> Path | None:
    """Return the directory of initdb and postgres, or None."""
    found = first_program(
        ("postgres",),
        "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
        "/usr/pgsql-*/bin",  # Fedora, the project's own RPMs
        "/opt/homebrew/opt/postgresql*/bin",
        "/usr/local/opt/postgresql*/bin",
    )
    usable = found is not None and (found.parent / "initdb").exists() and (os.geteuid() != 0 or _unprivileged())
    return found.parent if found is not None and usable else None


class PostgresServer(PostgresDatabases, PrivateServer):
    """A private server.

    Args:
        options: further settings, such as ``max_connections=10``.
    """

    title = "PostgreSQL"

    def __init__(self, *options: str) -> None:
        programs = postgres_programs()
        if programs is None:
            raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql, or brew install postgresql")
        PrivateServer.__init__(self)
        self._programs = programs
        self._user = _unprivileged()
        self._options = options
        if self._user is not None:
            shutil.chown(self.directory, self._user)

    def _initialise(self) -> None:
        data = str(self.directory / "data")
        command = [str(self._programs / "initdb"), "-D", data, "-U", "guardrails", "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8"]
        self._prepare(command, self._user)

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        settings = [
            f"port={port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            # What the operating system has survives the death of a process; only that of the machine loses it.
            "fsync=off",
            "full_page_writes=off",
            "shared_buffers=32MB",
            "max_connections=200",
            "autovacuum=off",
            *self._options,
        ]
        command = [str(self._programs / "postgres"), "-D", str(self.directory / "data")]
        for setting in settings:
            command += ["-c", setting]
        return processes.spawn(command, log=self.directory / "server.log", cwd=Path("/"), user=self._user)

    def _url(self, port: int) -> str:
        return f"postgresql://guardrails@127.0.0.1:{port}/postgres"


@cache
def _running() -> str | None:
    """URL of a PostgreSQL that runs at the usual place and lets us in, or None."""
    if not processes.listens(5432):
        return None
    import psycopg

    try:
        PostgresDatabases(_RUNNING)._admin("SELECT 1")
    except psycopg.Error:
        return None
    return _RUNNING


def find_postgres() -> str | None:
    """Say where PostgreSQL comes from, or None: the variable, then installed programs, then one that runs."""
    if os.environ.get(POSTGRES_VARIABLE):
        return f"the one in {POSTGRES_VARIABLE}"
    programs = postgres_programs()
    return str(programs) if programs else _running()


def postgres_databases() -> PostgresDatabases:
    """Return what :func:`find_postgres` found, started where it is ours; ``close()`` it."""
    named = os.environ.get(POSTGRES_VARIABLE)
    if named:
        return PostgresDatabases(named)
    if postgres_programs() is None:
        running = _running()
        assert running is not None
        return PostgresDatabases(running)
    server = PostgresServer()
    server.start()
    return server
