"""Sessions of a database over its drivers, SQLAlchemy and Django, with one face: what they raise is what the tests are after."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from celery_guardrails.policy.classify import Classifier

from . import django as dj

__all__ = ["WAYS", "Session", "deadlock", "kind_and_rule", "open_sessions", "raised_by"]

#: Ways into each kind of database.
WAYS = {
    "postgresql": ("psycopg", "psycopg2", "sqlalchemy+psycopg", "sqlalchemy+psycopg2", "django"),
    "mysql": ("pymysql", "sqlalchemy+pymysql", "django"),
    "sqlite": ("sqlite3", "sqlalchemy", "django"),
}

_ALIASES = itertools.count()
_OTHERWISE = (Classifier(default_kind="permanent"), Classifier(default_kind="retryable"))


def kind_and_rule(error: BaseException) -> tuple[str, str]:
    """Return what the shipped rules say of an error; one that none of them knows is an error itself."""
    one, other = (classify(error) for classify in _OTHERWISE)
    assert one == other, f"{error!r} fell through to the default"
    return one.kind, one.rule


def raised_by(function: Callable[..., object], *args: object) -> Exception:
    """Return the error that a call raises."""
    try:
        function(*args)
    except Exception as error:  # noqa: BLE001 - which one is the question
        return error
    raise AssertionError(f"{function} raised nothing")


class Session:
    """One connection, in a transaction from its first statement on.

    Args:
        cursor: returns a new cursor of the driver's form.
        commit: ends the transaction.
        rollback: ends it the other way.
    """

    def __init__(self, cursor: Callable[[], Any], commit: Callable[[], Any], rollback: Callable[[], Any]) -> None:
        self._cursor = cursor
        self.commit = commit
        self.rollback = rollback

    def run(self, statement: str) -> Any:
        """Run a statement and return the first value of its first row, where it has rows."""
        with closing(self._cursor()) as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]


@contextmanager
def open_sessions(way: str, url: str, number: int = 2) -> Iterator[list[Session]]:
    """Connect several times to a database.

    Args:
        way: one of :data:`WAYS`.
        url: of a database of ours, as the servers give it, or ``sqlite:////path``.
        number: of sessions.
    """
    with ExitStack() as stack:
        if way == "django":
            yield [_django(stack, url) for _ in range(number)]
        elif way.startswith("sqlalchemy"):
            yield _sqlalchemy(stack, way, url, number)
        else:
            yield [_driver(stack, way, url) for _ in range(number)]


def _driver(stack: ExitStack, way: str, url: str) -> Session:
    parts = urlsplit(url)
    connection: Any
    if way == "psycopg":
        import psycopg

        connection = psycopg.connect(url)
    elif way == "psycopg2":
        import psycopg2

        connection = psycopg2.connect(url)
    elif way == "sqlite3":
        import sqlite3

        connection = sqlite3.connect(parts.path[1:], timeout=0.05, check_same_thread=False)
    else:
        import pymysql

        user, password = unquote(parts.username or "root"), unquote(parts.password or "")
        connection = pymysql.connect(host=parts.hostname, port=parts.port or 3306, user=user, password=password, database=parts.path[1:])
    stack.callback(_quietly, connection.close)
    return Session(connection.cursor, connection.commit, connection.rollback)


def _sqlalchemy(stack: ExitStack, way: str, url: str, number: int) -> list[Session]:
    import sqlalchemy as sa

    driver = way.partition("+")[2]
    scheme = urlsplit(url).scheme
    options = {} if driver else {"connect_args": {"timeout": 0.05, "check_same_thread": False}}
    engine = sa.create_engine(url.replace(f"{scheme}:", f"{scheme}+{driver}:", 1) if driver else url, **options)
    stack.callback(engine.dispose)
    sessions: list[Session] = []
    for _ in range(number):
        connection = engine.connect()
        stack.callback(_quietly, connection.close)
        sessions.append(_OfSQLAlchemy(connection))
    return sessions


class _OfSQLAlchemy(Session):
    def __init__(self, connection: Any) -> None:
        super().__init__(lambda: None, connection.commit, connection.rollback)
        self._connection = connection

    def run(self, statement: str) -> Any:
        result = self._connection.exec_driver_sql(statement)
        row = result.fetchone() if result.returns_rows else None
        return row and row[0]


def _django(stack: ExitStack, url: str) -> Session:
    from django.db import connections

    options = {"OPTIONS": {"timeout": 0.05}} if url.startswith("sqlite") else {}
    alias = stack.enter_context(dj.database(f"session{next(_ALIASES)}", url, migrate=False, **options))
    wrapper = connections[alias]
    wrapper.inc_thread_sharing()
    wrapper.set_autocommit(False)
    return Session(wrapper.cursor, wrapper.commit, wrapper.rollback)


def _quietly(close: Callable[[], object]) -> None:
    with suppress(Exception):
        close()


def deadlock(sessions: Sequence[Session], lock: Callable[[int], str]) -> Exception:
    """Let two sessions wait for each other, and return the error of the one that the server chose.

    Args:
        sessions: two.
        lock: returns the statement that locks row 1 or 2.
    """
    one, other = sessions
    one.run(lock(1))
    other.run(lock(2))

    def second(session: Session, row: int) -> Exception | None:
        try:
            session.run(lock(row))
        except Exception as error:  # noqa: BLE001 - which one is the question
            session.rollback()  # the other goes on
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        errors = [each for each in pool.map(second, (one, other), (2, 1)) if each is not None]
    assert len(errors) == 1, errors
    return errors[0]
