"""The shipped rules against the real libraries, their errors raised by themselves wherever that takes no server."""

from __future__ import annotations

import errno
import json
import socket
import sqlite3
import ssl
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.classify import Classifier

#: The default is what no rule gives here, so that a rule that is missing shows.
otherwise_permanent = Classifier(default_kind="permanent")
otherwise_retryable = Classifier(default_kind="retryable")


def kind_and_rule(error: BaseException) -> tuple[str, str]:
    one, other = otherwise_permanent(error), otherwise_retryable(error)
    assert one == other, f"{error!r} fell through to the default"
    return one.kind, one.rule


def caused(error: Any, cause: BaseException) -> Any:
    error.__cause__ = cause
    return error


# -- Python's own ---------------------------------------------------------------------------------------------------


def raised_by(function: Any, *args: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function(*args)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "rule"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), "retryable", "builtins.ConnectionError"),
        (BrokenPipeError(), "retryable", "builtins.ConnectionError"),
        (TimeoutError(), "retryable", "builtins.TimeoutError"),
        (OSError(errno.ENOSPC, "full"), "retryable", "errno.ENOSPC"),
        (OSError(errno.EMFILE, "files"), "retryable", "errno.EMFILE"),
        (OSError(errno.EHOSTUNREACH, "host"), "retryable", "errno.EHOSTUNREACH"),
        (OSError(errno.EROFS, "read-only"), "permanent", "errno.EROFS"),
        (OSError(errno.EINVAL, "invalid"), "permanent", "errno.EINVAL"),
        (PermissionError(errno.EACCES, "no"), "permanent", "builtins.PermissionError"),
        (FileNotFoundError("text only"), "permanent", "builtins.FileNotFoundError"),
        (MemoryError(), "retryable", "builtins.MemoryError"),
        (EOFError(), "retryable", "builtins.EOFError"),
        (SystemExit(1), "retryable", "builtins.SystemExit"),
        (RecursionError(), "permanent", "builtins.RecursionError"),
        (NotImplementedError(), "permanent", "builtins.NotImplementedError"),
        (AssertionError(), "permanent", "builtins.AssertionError"),
        (ModuleNotFoundError(), "permanent", "builtins.ModuleNotFoundError"),
        (IndentationError(), "permanent", "builtins.SyntaxError"),
        (UnboundLocalError(), "permanent", "builtins.NameError"),
        (ValueError(), "permanent", "builtins.ValueError"),
    ],
)
def test_pythons_own_errors(error: BaseException, kind: str, rule: str) -> None:
    assert kind_and_rule(error) == (kind, rule)


def test_programming_errors_are_permanent() -> None:
    mistakes: list[Any] = [
        lambda: 1 + "1",  # type: ignore[operator]
        lambda: None.missing,  # type: ignore[attr-defined]
        lambda: {}["missing"],
        lambda: "ab"[2],
        lambda: missing,  # type: ignore[name-defined]  # noqa: F821
        lambda: 1 / 0,
        lambda: next(iter(())),
        lambda: int("x"),
        lambda: json.loads("{"),
        b"\xff".decode,
    ]
    assert {kind_and_rule(raised_by(mistake))[0] for mistake in mistakes} == {"permanent"}


@pytest.mark.parametrize("error", [RuntimeError(), Exception(), OSError("text only"), BaseException()])
def test_errors_that_say_nothing_get_the_default(error: BaseException) -> None:
    assert otherwise_permanent(error) == Classification("permanent", None, "default")
    assert otherwise_retryable(error) == Classification("retryable", None, "default")


def test_a_file_that_is_not_there_is_permanent(tmp_path: Path) -> None:
    assert kind_and_rule(raised_by((tmp_path / "none").read_text)) == ("permanent", "builtins.FileNotFoundError")


def test_a_port_that_nobody_listens_on_is_retryable() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        assert kind_and_rule(raised_by(socket.create_connection, address, 1))[0] == "retryable"


def test_names_that_do_not_resolve_are_retryable() -> None:
    assert kind_and_rule(socket.gaierror(socket.EAI_AGAIN, "again")) == ("retryable", "socket.gaierror")
    assert kind_and_rule(socket.gaierror(socket.EAI_NONAME, "none")) == ("retryable", "socket.gaierror")


def test_only_a_refused_certificate_makes_tls_permanent() -> None:
    assert kind_and_rule(ssl.SSLCertVerificationError(1, "certificate verify failed")) == ("permanent", "ssl.SSLCertVerificationError")
    assert kind_and_rule(ssl.SSLError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] no"))[0] == "permanent"
    # errno 1 is OpenSSL's here, not EPERM
    assert kind_and_rule(ssl.SSLError(1, "[SSL] record layer failure")) == ("retryable", "ssl.SSLError")
    assert kind_and_rule(ssl.SSLEOFError(8, "EOF"))[0] == "retryable"


def test_asyncio_futures_and_subprocesses() -> None:
    import asyncio
    import concurrent.futures.process
    import multiprocessing
    import queue
    import subprocess

    for error in (
        asyncio.TimeoutError(),
        asyncio.CancelledError(),
        asyncio.IncompleteReadError(b"", 3),
        concurrent.futures.TimeoutError(),
        concurrent.futures.process.BrokenProcessPool(),
        multiprocessing.TimeoutError(),
        subprocess.TimeoutExpired("true", 1),
        queue.Full(),
        raised_by(queue.Queue().get_nowait),
    ):
        assert kind_and_rule(error)[0] == "retryable", error


def test_urllib_by_status_and_by_reason() -> None:
    headers = Message()
    headers["Retry-After"] = "11"
    busy = urllib.error.HTTPError("http://x", 503, "busy", headers, None)
    assert otherwise_permanent(busy) == Classification("retryable", 11.0, "http.503")
    assert kind_and_rule(urllib.error.HTTPError("http://x", 404, "no", headers, None)) == ("permanent", "http.404")
    assert kind_and_rule(urllib.error.URLError(ConnectionRefusedError())) == ("retryable", "builtins.ConnectionError")
    assert kind_and_rule(urllib.error.URLError(ssl.SSLCertVerificationError()))[0] == "permanent"
    assert kind_and_rule(urllib.error.URLError("timed out")) == ("retryable", "urllib.URLError")
    assert kind_and_rule(urllib.error.URLError("unknown url type: foo"))[0] == "permanent"
    assert kind_and_rule(urllib.error.ContentTooShortError("short", b""))[0] == "retryable"


def test_http_client() -> None:
    import http.client

    assert kind_and_rule(http.client.RemoteDisconnected())[0] == "retryable"
    assert kind_and_rule(http.client.IncompleteRead(b""))[0] == "retryable"
    assert kind_and_rule(http.client.InvalidURL())[0] == "permanent"


def test_mail_by_reply_code() -> None:
    import ftplib
    import smtplib

    assert kind_and_rule(smtplib.SMTPDataError(451, b"later")) == ("retryable", "smtp.451")
    assert kind_and_rule(smtplib.SMTPDataError(554, b"spam")) == ("permanent", "smtp.554")
    assert kind_and_rule(smtplib.SMTPConnectError(-1, "closed"))[0] == "retryable"
    assert kind_and_rule(smtplib.SMTPAuthenticationError(535, b"no"))[0] == "permanent"
    assert kind_and_rule(smtplib.SMTPServerDisconnected())[0] == "retryable"
    assert kind_and_rule(smtplib.SMTPRecipientsRefused({"a@b": (550, b"no")}))[0] == "permanent"
    assert kind_and_rule(smtplib.SMTPRecipientsRefused({"a@b": (550, b"no"), "c@d": (450, b"later")})) == ("retryable", "smtp.450")
    assert kind_and_rule(smtplib.SMTPNotSupportedError())[0] == "permanent"
    assert kind_and_rule(ftplib.error_temp())[0] == "retryable"
    assert kind_and_rule(ftplib.error_perm())[0] == "permanent"


# -- Celery, kombu, redis: always installed -------------------------------------------------------------------------


def test_celery() -> None:
    from celery import exceptions as celery

    for error in (
        celery.SoftTimeLimitExceeded(),
        celery.TimeLimitExceeded(5),
        celery.WorkerLostError(),
        celery.TimeoutError(),
        celery.BackendStoreError("no"),
    ):
        assert kind_and_rule(error)[0] == "retryable", error
    for error in (celery.NotRegistered("x"), celery.MaxRetriesExceededError(), celery.ImproperlyConfigured(), celery.InvalidTaskError()):
        assert kind_and_rule(error)[0] == "permanent", error
    assert kind_and_rule(celery.SoftTimeLimitExceeded()) == ("retryable", "celery.SoftTimeLimitExceeded")


def test_kombu_and_amqp() -> None:
    from amqp import exceptions as amqp
    from kombu import exceptions as kombu
    from kombu.serialization import dumps, loads

    for error in (
        kombu.OperationalError(),
        kombu.ConnectionLimitExceeded(),
        amqp.ConnectionForced(),
        amqp.RecoverableConnectionError(),
        amqp.ResourceLocked(),
        amqp.NoConsumers(),
        amqp.InternalError(),
        amqp.UnexpectedFrame(),
        amqp.MessageNacked(),
    ):
        assert kind_and_rule(error)[0] == "retryable", error
    for error in (amqp.NotFound(), amqp.PreconditionFailed(), amqp.AccessRefused(), amqp.NotAllowed(), amqp.ContentTooLarge()):
        assert kind_and_rule(error)[0] == "permanent", error
    assert kind_and_rule(raised_by(dumps, object(), "json")) == ("permanent", "kombu.EncodeError")
    assert kind_and_rule(raised_by(loads, b"{", "application/json", "utf-8")) == ("permanent", "kombu.DecodeError")
    assert kind_and_rule(raised_by(loads, b"", "application/x-python-serialize", "binary", ("json",)))[1] == "kombu.ContentDisallowed"


def test_redis() -> None:
    from redis import exceptions as redis
    from redis.sentinel import MasterNotFoundError

    for error in (
        redis.ConnectionError(),
        redis.TimeoutError(),
        redis.BusyLoadingError(),
        redis.ReadOnlyError(),
        redis.TryAgainError(),
        redis.ClusterDownError("down"),
        redis.RedisClusterException(),
        redis.LockError(),
        redis.WatchError(),
        MasterNotFoundError(),
        redis.ResponseError("LOADING the dataset"),
        redis.ResponseError("MISCONF no snapshot"),
        redis.ResponseError("OOM command not allowed"),
    ):
        assert kind_and_rule(error)[0] == "retryable", error
    for error in (
        redis.ResponseError("WRONGTYPE Operation against a key"),
        redis.DataError(),
        redis.AuthenticationError(),
        redis.NoPermissionError(),
        redis.ConnectionError("Error 1: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    ):
        assert kind_and_rule(error)[0] == "permanent", error


def test_redis_that_nobody_serves() -> None:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        once = Retry(NoBackoff(), 0)
        client = redis.Redis(port=listener.getsockname()[1], socket_connect_timeout=1, retry=once)
        assert kind_and_rule(raised_by(client.ping)) == ("retryable", "redis.ConnectionError")


# -- databases ------------------------------------------------------------------------------------------------------


def test_sqlite(tmp_path: Path) -> None:
    one, other = (sqlite3.connect(tmp_path / "db", timeout=0) for _ in range(2))
    try:
        one.execute("CREATE TABLE t (a INTEGER PRIMARY KEY)")
        one.execute("INSERT INTO t VALUES (1)")
        assert kind_and_rule(raised_by(other.execute, "INSERT INTO t VALUES (2)"))[0] == "retryable"
        one.commit()
        assert kind_and_rule(raised_by(one.execute, "INSERT INTO t VALUES (1)")) == ("permanent", "sqlite3.IntegrityError")
        assert kind_and_rule(raised_by(one.execute, "SELECT * FROM missing"))[0] == "permanent"
        assert kind_and_rule(raised_by(one.execute, "SELECT ?", ()))[0] == "permanent"
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("database is locked", "retryable"),
        ("database table is locked: t", "retryable"),
        ("disk I/O error", "retryable"),
        ("database or disk is full", "retryable"),
        ("no such table: t", "permanent"),
        ('near "x": syntax error', "permanent"),
    ],
)
def test_sqlite_by_text_where_there_is_no_code(text: str, kind: str) -> None:
    assert kind_and_rule(sqlite3.OperationalError(text)) == (kind, "sqlite3.OperationalError")


def test_psycopg_3() -> None:
    psycopg = pytest.importorskip("psycopg")
    for code, kind in {
        "40001": "retryable",
        "40P01": "retryable",
        "55P03": "retryable",
        "57P01": "retryable",
        "57014": "retryable",
        "53300": "retryable",
        "08006": "retryable",
        "25006": "retryable",
        "23505": "permanent",
        "23502": "permanent",
        "22001": "permanent",
        "42P01": "permanent",
        "40002": "permanent",
        "P0001": "permanent",
        "28P01": "permanent",
    }.items():
        assert kind_and_rule(psycopg.errors.lookup(code)("no")) == (kind, f"psycopg.{code}")
    assert kind_and_rule(psycopg.OperationalError("connection refused")) == ("retryable", "psycopg.OperationalError")
    assert kind_and_rule(psycopg.InterfaceError("the connection is closed"))[0] == "retryable"
    assert kind_and_rule(psycopg.ProgrammingError("no results"))[0] == "permanent"


def test_psycopg_2() -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    assert kind_and_rule(psycopg2.errors.DeadlockDetected())[0] == "retryable"
    assert kind_and_rule(psycopg2.errors.UniqueViolation())[0] == "permanent"
    assert kind_and_rule(psycopg2.OperationalError("gone")) == ("retryable", "psycopg2.OperationalError")


def test_pymysql() -> None:
    err = pytest.importorskip("pymysql.err")
    for code in (1040, 1205, 1213, 2003, 2006, 2013, 1290):
        assert kind_and_rule(err.OperationalError(code, "no")) == ("retryable", f"mysql.{code}")
    for cls, code in ((err.IntegrityError, 1062), (err.IntegrityError, 1048), (err.ProgrammingError, 1064), (err.OperationalError, 1045)):
        assert kind_and_rule(cls(code, "no")) == ("permanent", f"mysql.{code}")
    assert kind_and_rule(err.InterfaceError(0, "")) == ("retryable", "mysql.InterfaceError")
    assert kind_and_rule(err.DataError("odd"))[0] == "permanent"


def test_sqlalchemy(tmp_path: Path) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    exc, orm_exc = pytest.importorskip("sqlalchemy.exc"), pytest.importorskip("sqlalchemy.orm.exc")
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 0})
    with engine.connect() as one, engine.connect() as other:
        one.execute(sqlalchemy.text("CREATE TABLE t (a INTEGER PRIMARY KEY)"))
        one.commit()
        one.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
        assert kind_and_rule(raised_by(other.execute, sqlalchemy.text("INSERT INTO t VALUES (2)")))[0] == "retryable"
        assert kind_and_rule(raised_by(one.execute, sqlalchemy.text("INSERT INTO t VALUES (1)"))) == ("permanent", "sqlite3.IntegrityError")
    engine.dispose()
    assert kind_and_rule(exc.IntegrityError("s", {}, Exception("odd driver"))) == ("permanent", "sqlalchemy.IntegrityError")
    assert kind_and_rule(exc.OperationalError("s", {}, None)) == ("retryable", "sqlalchemy.OperationalError")
    lost = exc.ProgrammingError("s", {}, Exception("x"), connection_invalidated=True)
    assert kind_and_rule(lost) == ("retryable", "sqlalchemy.connection_invalidated")
    asyncpg = type("PostgresError", (Exception,), {"sqlstate": "40001"})()
    assert kind_and_rule(exc.ProgrammingError("s", {}, asyncpg)) == ("retryable", "sqlstate.40001")
    assert kind_and_rule(exc.StatementError("no", "s", {}, TypeError()))[0] == "permanent"
    assert kind_and_rule(exc.TimeoutError("pool"))[0] == "retryable"
    assert kind_and_rule(exc.ArgumentError("no"))[0] == "permanent"
    assert kind_and_rule(orm_exc.StaleDataError("row"))[0] == "retryable"
    assert otherwise_permanent(exc.NoResultFound()).rule == "default"


def test_django() -> None:
    utils, core = pytest.importorskip("django.db.utils"), pytest.importorskip("django.core.exceptions")
    busy = sqlite3.OperationalError("database is locked")
    assert kind_and_rule(caused(utils.OperationalError(), busy)) == ("retryable", "sqlite3.OperationalError")
    assert kind_and_rule(caused(utils.OperationalError(), sqlite3.OperationalError("no such table: t")))[0] == "permanent"
    assert kind_and_rule(utils.OperationalError("gone")) == ("retryable", "django.OperationalError")
    assert kind_and_rule(utils.IntegrityError("twice")) == ("permanent", "django.IntegrityError")
    for cls in (core.ValidationError, core.ImproperlyConfigured, core.PermissionDenied, core.FieldError):
        assert kind_and_rule(cls("no"))[0] == "permanent", cls
    assert otherwise_permanent(core.ObjectDoesNotExist()).rule == "default"


def test_django_over_psycopg_and_pymysql() -> None:
    utils = pytest.importorskip("django.db.utils")
    psycopg, err = pytest.importorskip("psycopg"), pytest.importorskip("pymysql.err")
    assert kind_and_rule(caused(utils.OperationalError(), psycopg.errors.lookup("40P01")())) == ("retryable", "psycopg.40P01")
    assert kind_and_rule(caused(utils.InternalError(), psycopg.errors.lookup("25006")())) == ("retryable", "psycopg.25006")
    assert kind_and_rule(caused(utils.OperationalError(), err.OperationalError(1213, "deadlock"))) == ("retryable", "mysql.1213")
    assert kind_and_rule(caused(utils.OperationalError(), err.OperationalError(1045, "denied"))) == ("permanent", "mysql.1045")
