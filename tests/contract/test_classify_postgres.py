"""What PostgreSQL itself raises, through each driver and each ORM, and what the shipped rules make of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from celery_guardrails.policy.classify import Classifier
from tests.support.databases import query
from tests.support.sessions import WAYS, Session, deadlock, kind_and_rule, open_sessions, raised_by

pytest.importorskip("psycopg")
pytest.importorskip("psycopg2")
pytest.importorskip("sqlalchemy")
pytest.importorskip("django")

Sessions = list[Session]


@pytest.fixture(scope="module")
def url(postgres: Any) -> Iterator[str]:
    url = postgres.fresh_url()
    execute(url, "CREATE TABLE parent (id integer PRIMARY KEY)")
    execute(
        url, "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL CHECK (n >= 0), word varchar(3), up integer REFERENCES parent)"
    )
    yield url
    postgres.drop(url)


def execute(url: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.fixture(params=WAYS["postgresql"])
def sessions(request: pytest.FixtureRequest, url: str) -> Iterator[Sessions]:
    execute(url, "TRUNCATE t")
    execute(url, "INSERT INTO t VALUES (1, 0), (2, 0)")
    with open_sessions(request.param, url) as opened:
        yield opened


def code_of(error: BaseException) -> str:
    """The SQLSTATE in the name of the rule."""
    kind, rule = kind_and_rule(error)
    return f"{kind} {rule.rpartition('.')[2]}"


def test_a_deadlock_is_retryable(sessions: Sessions) -> None:
    for session in sessions:
        session.run("SET deadlock_timeout = '20ms'")
    assert code_of(deadlock(sessions, "UPDATE t SET n = n + 1 WHERE id = {}".format)) == "retryable 40P01"


def test_a_serialization_failure_is_retryable_at_the_statement_and_at_the_commit(sessions: Sessions) -> None:
    one, other = sessions
    one.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    one.run("SELECT n FROM t")
    other.run("UPDATE t SET n = 5 WHERE id = 1")
    other.commit()
    assert code_of(raised_by(one.run, "UPDATE t SET n = 6 WHERE id = 1")) == "retryable 40001"
    one.rollback()
    for session, row in ((one, 1), (other, 2)):  # write skew: each reads what the other writes
        session.run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        session.run("SELECT sum(n) FROM t")
        session.run(f"UPDATE t SET n = n + 1 WHERE id = {row}")
    one.commit()
    assert code_of(raised_by(other.commit)) == "retryable 40001"


def test_a_connection_that_the_server_ends_is_retryable_then_and_at_every_further_use(sessions: Sessions, url: str) -> None:
    one, _ = sessions
    pid = one.run("SELECT pg_backend_pid()")
    query(url, f"SELECT pg_terminate_backend({pid}, 5000)")
    assert kind_and_rule(raised_by(one.run, "SELECT 1"))[0] == "retryable"
    assert Classifier()(raised_by(one.run, "SELECT 1")).kind == "retryable"


def test_locks_and_time_limits_are_retryable(sessions: Sessions) -> None:
    one, other = sessions
    other.run("UPDATE t SET n = 1 WHERE id = 1")
    assert code_of(raised_by(one.run, "SELECT * FROM t WHERE id = 1 FOR UPDATE NOWAIT")) == "retryable 55P03"
    one.rollback()
    one.run("SET LOCAL lock_timeout = '10ms'")
    assert code_of(raised_by(one.run, "UPDATE t SET n = 2 WHERE id = 1")) == "retryable 55P03"
    one.rollback()
    one.run("SET LOCAL statement_timeout = '10ms'")
    assert code_of(raised_by(one.run, "SELECT pg_sleep(5)")) == "retryable 57014"


def test_a_session_that_was_idle_for_too_long_is_retryable(sessions: Sessions) -> None:
    one, _ = sessions
    one.run("SET idle_in_transaction_session_timeout = '10ms'")
    time.sleep(0.2)
    assert kind_and_rule(raised_by(one.run, "SELECT 1"))[0] == "retryable"


def test_a_server_that_is_read_only_now_is_retryable(sessions: Sessions) -> None:
    one, _ = sessions
    one.run("SET TRANSACTION READ ONLY")
    assert code_of(raised_by(one.run, "UPDATE t SET n = 2 WHERE id = 1")) == "retryable 25006"


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("INSERT INTO t VALUES (1, 1)", "23505"),
        ("INSERT INTO t VALUES (9, NULL)", "23502"),
        ("INSERT INTO t VALUES (9, -1)", "23514"),
        ("INSERT INTO t VALUES (9, 1, 'a', 77)", "23503"),
        ("INSERT INTO t VALUES (9, 1, 'much too long')", "22001"),
        ("INSERT INTO t VALUES (99999999999, 1)", "22003"),
        ("SELECT 'x'::integer", "22P02"),
        ("SELECT 1 / 0", "22012"),
        ("SELECT '2024-13-41'::date", "22008"),
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT nothing FROM t", "42703"),
        ("SELEC 1", "42601"),
        ("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$", "P0001"),
    ],
)
def test_what_the_same_statement_meets_again_is_permanent(sessions: Sessions, statement: str, code: str) -> None:
    assert code_of(raised_by(sessions[0].run, statement)) == f"permanent {code}"


@pytest.mark.parametrize("way", WAYS["postgresql"])
def test_a_server_that_has_no_connection_left_is_retryable(url: str, way: str) -> None:
    role = f"few_{way.replace('+', '_')}"
    execute(url, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")
    limited = urlsplit(url)._replace(netloc=f"{role}@{urlsplit(url).hostname}:{urlsplit(url).port}").geturl()
    try:
        assert kind_and_rule(raised_by(connect, way, limited))[0] == "retryable"
    finally:
        execute(url, f"DROP ROLE {role}")


@pytest.mark.parametrize("way", WAYS["postgresql"])
def test_a_server_that_is_not_there_is_retryable(way: str) -> None:
    assert kind_and_rule(raised_by(connect, way, "postgresql://nobody@127.0.0.1:1/none"))[0] == "retryable"


def connect(way: str, url: str) -> None:
    with open_sessions(way, url, 1):
        pass
