"""What MariaDB itself raises, through PyMySQL and each ORM, and what the shipped rules make of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from celery_guardrails.policy.classify import Classifier
from tests.support.databases import query
from tests.support.sessions import WAYS, Session, deadlock, kind_and_rule, open_sessions, raised_by

pytest.importorskip("pymysql")
pytest.importorskip("sqlalchemy")
pytest.importorskip("django")

Sessions = list[Session]


@pytest.fixture(scope="module")
def url(mariadb: Any) -> Iterator[str]:
    url = mariadb.fresh_url()
    query(url, "CREATE TABLE parent (id integer PRIMARY KEY) ENGINE=InnoDB")
    query(
        url,
        "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL CHECK (n >= 0), word varchar(3), up integer REFERENCES parent (id)) "
        "ENGINE=InnoDB",
    )
    yield url
    mariadb.drop(url)


@pytest.fixture(params=WAYS["mysql"])
def sessions(request: pytest.FixtureRequest, url: str) -> Iterator[Sessions]:
    query(url, "DELETE FROM t")
    query(url, "INSERT INTO t VALUES (1, 0, NULL, NULL), (2, 0, NULL, NULL)")
    with open_sessions(request.param, url) as opened:
        for session in opened:
            session.run("SET SESSION sql_mode = 'STRICT_ALL_TABLES'")
            session.commit()
        yield opened


def test_a_deadlock_is_retryable(sessions: Sessions) -> None:
    error = deadlock(sessions, "UPDATE t SET n = n + 1 WHERE id = {}".format)
    assert kind_and_rule(error) == ("retryable", "mysql.1213")


def test_a_lock_that_is_not_had_in_time_is_retryable(sessions: Sessions) -> None:
    one, other = sessions
    other.run("UPDATE t SET n = 1 WHERE id = 1")
    assert kind_and_rule(raised_by(one.run, "SELECT * FROM t WHERE id = 1 FOR UPDATE NOWAIT")) == ("retryable", "mysql.1205")
    one.rollback()
    one.run("SET SESSION innodb_lock_wait_timeout = 1")
    assert kind_and_rule(raised_by(one.run, "UPDATE t SET n = 2 WHERE id = 1")) == ("retryable", "mysql.1205")


def test_a_row_that_changed_since_it_was_read_is_retryable(sessions: Sessions) -> None:
    one, other = sessions
    one.run("SET SESSION innodb_snapshot_isolation = ON")
    one.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    one.commit()
    one.run("SELECT n FROM t")
    other.run("UPDATE t SET n = 5 WHERE id = 1")
    other.commit()
    assert kind_and_rule(raised_by(one.run, "UPDATE t SET n = 6 WHERE id = 1")) == ("retryable", "mysql.1020")


def test_a_connection_that_the_server_ends_is_retryable_then_and_at_every_further_use(sessions: Sessions) -> None:
    one, other = sessions
    other.run(f"KILL {one.run('SELECT connection_id()')}")
    assert kind_and_rule(raised_by(one.run, "SELECT 1"))[0] == "retryable"
    assert Classifier()(raised_by(one.run, "SELECT 1")).kind == "retryable"


def test_statements_that_are_stopped_are_retryable(sessions: Sessions) -> None:
    one, _ = sessions
    one.run("SET SESSION max_statement_time = 0.01")
    slow = "SELECT count(*) FROM seq_1_to_50000000 WHERE mod(seq, 7) = 3"
    assert kind_and_rule(raised_by(one.run, slow)) == ("retryable", "mysql.1969")


def test_a_transaction_that_is_read_only_is_retryable(sessions: Sessions) -> None:
    one, _ = sessions
    one.run("SET SESSION TRANSACTION READ ONLY")
    one.commit()
    one.run("START TRANSACTION READ ONLY")
    assert kind_and_rule(raised_by(one.run, "UPDATE t SET n = 2 WHERE id = 1")) == ("retryable", "mysql.1792")


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("INSERT INTO t VALUES (1, 1, NULL, NULL)", 1062),
        ("INSERT INTO t VALUES (9, NULL, NULL, NULL)", 1048),
        ("INSERT INTO t (id) VALUES (9)", 1364),
        ("INSERT INTO t VALUES (9, -1, NULL, NULL)", 4025),
        ("INSERT INTO t VALUES (9, 1, NULL, 77)", 1452),
        ("INSERT INTO t VALUES (9, 1, 'much too long', NULL)", 1406),
        ("INSERT INTO t VALUES (99999999999, 1, NULL, NULL)", 1264),
        ("INSERT INTO t VALUES ('x', 1, NULL, NULL)", 1366),
        ("SELECT 18446744073709551615 + 1", 1690),
        ("SELECT * FROM nowhere", 1146),
        ("SELECT nothing FROM t", 1054),
        ("SELEC 1", 1064),
        ("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'", 1644),
    ],
)
def test_what_the_same_statement_meets_again_is_permanent(sessions: Sessions, statement: str, code: int) -> None:
    kind, rule = kind_and_rule(raised_by(sessions[0].run, statement))
    assert kind == "permanent"
    # of some codes Django makes an IntegrityError of its own, with no cause
    assert rule == f"mysql.{code}" or (rule == "django.IntegrityError" and code in (1690, 4025))


@pytest.mark.parametrize("way", WAYS["mysql"])
def test_a_server_that_has_no_connection_left_is_retryable_and_a_wrong_password_is_not(url: str, way: str) -> None:
    user = f"few_{way.replace('+', '_')}"
    parts = urlsplit(url)

    def error(password: str) -> Exception:
        return raised_by(connect, way, parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}").geturl())

    query(url, f"CREATE USER {user} IDENTIFIED BY 'right' WITH MAX_USER_CONNECTIONS 1")
    query(url, f"GRANT ALL ON *.* TO {user}")
    try:
        assert kind_and_rule(error("wrong")) == ("permanent", "mysql.1045")
        with open_sessions("pymysql", parts._replace(netloc=f"{user}:right@{parts.hostname}:{parts.port}").geturl(), 1):
            assert kind_and_rule(error("right"))[0] == "retryable"
    finally:
        query(url, f"DROP USER {user}")


@pytest.mark.parametrize("way", WAYS["mysql"])
def test_a_server_that_is_not_there_is_retryable(way: str) -> None:
    assert kind_and_rule(raised_by(connect, way, "mysql://nobody@127.0.0.1:1/none")) == ("retryable", "mysql.2003")


def connect(way: str, url: str) -> None:
    with open_sessions(way, url, 1):
        pass
