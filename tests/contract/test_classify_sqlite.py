"""What SQLite itself raises, through ``sqlite3`` and each ORM, and what the shipped rules make of it."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sessions import WAYS, Session, kind_and_rule, open_sessions, raised_by

pytest.importorskip("sqlalchemy")
pytest.importorskip("django")

Sessions = list[Session]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "db.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL CHECK (n >= 0 AND typeof(n) = 'integer'))")
    connection.execute("INSERT INTO t VALUES (1, 0)")
    connection.commit()
    connection.close()
    return path


@pytest.fixture(params=WAYS["sqlite"])
def sessions(request: pytest.FixtureRequest, path: Path) -> Iterator[Sessions]:
    with open_sessions(request.param, f"sqlite:///{path}") as opened:
        yield opened


def rule(name: str) -> str:
    """The rule's name: older Pythons tell no result code."""
    return f"sqlite3.{name}" if sys.version_info >= (3, 11) else "sqlite3.OperationalError"


def test_a_database_that_another_writes_is_retryable(sessions: Sessions) -> None:
    one, other = sessions
    one.run("BEGIN IMMEDIATE")
    assert kind_and_rule(raised_by(other.run, "BEGIN IMMEDIATE")) == ("retryable", rule("SQLITE_BUSY"))


def test_a_snapshot_that_is_out_of_date_is_retryable(sessions: Sessions, path: Path) -> None:
    one, other = sessions
    mode = sqlite3.connect(path)
    assert mode.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    mode.close()
    one.run("BEGIN")
    one.run("SELECT n FROM t")
    other.run("UPDATE t SET n = 5 WHERE id = 1")
    other.commit()
    assert kind_and_rule(raised_by(one.run, "UPDATE t SET n = 6 WHERE id = 1")) == ("retryable", rule("SQLITE_BUSY_SNAPSHOT"))


def test_a_disk_that_is_full_is_retryable(sessions: Sessions) -> None:
    one, _ = sessions
    one.run(f"PRAGMA max_page_count = {one.run('PRAGMA page_count')}")
    error = raised_by(
        one.run, "INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM s LIMIT 9999) SELECT i, i FROM s"
    )
    assert kind_and_rule(error) == ("retryable", rule("SQLITE_FULL"))


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("INSERT INTO t VALUES (1, 1)", "IntegrityError"),
        ("INSERT INTO t VALUES (9, NULL)", "IntegrityError"),
        ("INSERT INTO t VALUES (9, -1)", "IntegrityError"),
        ("INSERT INTO t VALUES (9, 'text')", "IntegrityError"),
        ("SELECT * FROM nowhere", "SQLITE_ERROR"),
        ("SELEC 1", "SQLITE_ERROR"),
    ],
)
def test_what_the_same_statement_meets_again_is_permanent(sessions: Sessions, statement: str, name: str) -> None:
    expected = rule(name) if name.startswith("SQLITE") else f"sqlite3.{name}"
    assert kind_and_rule(raised_by(sessions[0].run, statement)) == ("permanent", expected)


@pytest.mark.parametrize("way", WAYS["sqlite"])
def test_a_file_that_is_no_database_and_one_in_no_directory_are_permanent(way: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all " * 100)

    def use(path: Path) -> None:
        with open_sessions(way, f"sqlite:///{path}", 1) as (session,):
            session.run("SELECT * FROM sqlite_master")

    assert kind_and_rule(raised_by(use, tmp_path / "text"))[0] == "permanent"
    assert kind_and_rule(raised_by(use, tmp_path / "no" / "directory"))[0] == "permanent"
