"""A MariaDB for the tests: a private server that a test may kill and start again, or one that runs."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from . import processes
from .databases import Databases, PrivateServer, first_program

__all__ = ["MARIADB_VARIABLE", "MariaDatabases", "MariaServer", "find_mariadb", "mariadb_databases", "mariadb_program"]

#: A MariaDB or MySQL of yours for the tests instead of a private server: a URL with a user who may create databases.
MARIADB_VARIABLE = "GUARDRAILS_TEST_MARIADB_URL"
_RUNNING = "mysql://root@127.0.0.1:3306/"


class MariaDatabases(Databases):
    """A MariaDB in which every test gets a database of its own."""

    _create_options = " CHARACTER SET utf8mb4"

    def _admin(self, statement: str) -> None:
        import pymysql

        parts = urlsplit(self.admin_url)
        connection = pymysql.connect(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 3306,
            user=unquote(parts.username or "root"),
            password=unquote(parts.password or ""),
            autocommit=True,
            connect_timeout=5,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)


def mariadb_program() -> Path | None:
    """Return the server, or None."""
    found = first_program(
        ("mariadbd",), "/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/opt/homebrew/opt/mariadb*/bin", "/usr/local/opt/mariadb*/bin"
    )
    return found if found is not None and _installer() is not None else None


def _installer() -> Path | None:
    return first_program(("mariadb-install-db",), "/usr/bin", "/opt/homebrew/opt/mariadb*/bin", "/usr/local/opt/mariadb*/bin")


class MariaServer(MariaDatabases, PrivateServer):
    """A private server.

    Args:
        options: further arguments, such as ``--max-connections=10``.
    """

    title = "MariaDB"

    def __init__(self, *options: str) -> None:
        program, installer = mariadb_program(), _installer()
        if program is None or installer is None:
            raise RuntimeError("MariaDB is not installed: apt-get install mariadb-server, or brew install mariadb")
        PrivateServer.__init__(self)
        self._program = program
        self._installer = installer
        # a tmpdir of its own: a server that starts removes what looks like another's left temporary tables, alive or not
        scratch = self.directory / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        self._common = [f"--datadir={self.directory / 'data'}", f"--tmpdir={scratch}", "--innodb-log-file-size=16M"]
        self._common += ["--user=root"] if os.geteuid() == 0 else []  # else it would look for a user of its own
        self._options = options

    def _initialise(self) -> None:
        normal = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        self._prepare([str(self._installer), "--no-defaults", *self._common, *normal])

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        command = [
            str(self._program),
            "--no-defaults",
            *self._common,
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.directory / 'socket'}",
            f"--pid-file={self.directory / 'pid'}",
            "--skip-name-resolve",
            "--skip-log-bin",
            # What the operating system has survives the death of a process; only that of the machine loses it.
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=32M",
            "--performance-schema=OFF",
            *self._options,
        ]
        return processes.spawn(command, log=self.directory / "server.log", cwd=self.directory)

    def _url(self, port: int) -> str:
        return f"mysql://root@127.0.0.1:{port}/"


@cache
def _running() -> str | None:
    """URL of a MariaDB that runs at the usual place and lets us in, or None."""
    if not processes.listens(3306):
        return None
    import pymysql

    try:
        MariaDatabases(_RUNNING)._admin("SELECT 1")
    except pymysql.Error:
        return None
    return _RUNNING


def find_mariadb() -> str | None:
    """Say where MariaDB comes from, or None: the variable, then installed programs, then one that runs."""
    if os.environ.get(MARIADB_VARIABLE):
        return f"the one in {MARIADB_VARIABLE}"
    program = mariadb_program()
    return str(program) if program else _running()


def mariadb_databases() -> MariaDatabases:
    """Return what :func:`find_mariadb` found, started where it is ours; ``close()`` it."""
    named = os.environ.get(MARIADB_VARIABLE)
    if named:
        return MariaDatabases(named)
    if mariadb_program() is None:
        running = _running()
        assert running is not None
        return MariaDatabases(running)
    server = MariaServer()
    server.start()
    return server
