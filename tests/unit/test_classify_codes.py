"""The codes by which databases and servers say what is the matter, each with its kind: a code that is forgotten is seen here."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.classify import Classifier
from celery_guardrails.policy.rules.grpc import STATUS
from celery_guardrails.policy.rules.mysql import code_kind
from celery_guardrails.policy.rules.psycopg import sqlstate_kind

otherwise_permanent = Classifier(default_kind="permanent")
otherwise_retryable = Classifier(default_kind="retryable")


def fake(name: str, *args: Any, base: type[BaseException] = Exception, **attributes: Any) -> BaseException:
    module, _, cls = name.rpartition(".")
    return type(cls, (base,), {"__module__": module, **attributes})(*args)


def told(error: BaseException) -> tuple[str, str] | None:
    """Kind and rule, or None where no rule knows the error."""
    one, other = otherwise_permanent(error), otherwise_retryable(error)
    return (one.kind, one.rule) if one == other else None


MYSQL = {
    "retryable": {
        *(1205, 1213, 1614, 3058, 1206, 3572, 1020, 1412),
        *(1040, 1203, 1226, 1637, 1037, 1038, 1041, 1021),
        *(1053, 1077, 1079, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 4031, 1043, 1047),
        *(1317, 3024, 1969, 1290, 1792, 1836),
    },
    "permanent": {
        *(1044, 1045, 1142, 1143, 1227, 1370, 1698, 1524),
        *(1046, 1049, 1050, 1051, 1052, 1054, 1060, 1061, 1064, 1091, 1103, 1109, 1136, 1146, 1149, 1305, 1318, 1366),
        *(1022, 1048, 1062, 1153, 1169, 1216, 1217, 1264, 1265, 1292, 1364, 1406, 1451, 1452, 1557, 1586, 1690, 3819, 4025),
        *(1644, 2020, 2031, 2034, 2054, 2058, 2059),
    },
}


def test_every_code_of_mysql_has_its_kind() -> None:
    for code in [*range(900, 2000), *range(3000, 5000)]:
        expected = [kind for kind, codes in MYSQL.items() if code in codes]
        assert code_kind(code) == (expected[0] if expected else None), code
    for code in range(1990, 3010):
        expected_kind = "permanent" if code in MYSQL["permanent"] else "retryable" if 2000 <= code <= 2999 else None
        assert code_kind(code) == expected_kind, code


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (fake("pymysql.err.OperationalError", 1213, "x"), ("retryable", "mysql.1213")),
        (fake("pymysql.err.OperationalError", 1064, "x"), ("permanent", "mysql.1064")),
        (fake("pymysql.err.OperationalError", 1, "x"), ("retryable", "mysql.OperationalError")),
        (fake("pymysql.err.OperationalError"), ("retryable", "mysql.OperationalError")),
        (fake("pymysql.err.OperationalError", "x", errno=1064), ("permanent", "mysql.1064")),
        (fake("pymysql.err.OperationalError", "x", errno="1064"), ("retryable", "mysql.OperationalError")),
        (fake("pymysql.err.InternalError", "x"), ("retryable", "mysql.InternalError")),
        (fake("pymysql.err.Error", "x"), None),
        (fake("pymysql.err.Error", 1213), ("retryable", "mysql.1213")),
        (fake("pymysql.err.DataError", "x"), ("permanent", "mysql.DataError")),
    ],
)
def test_an_error_of_mysql_goes_by_its_code_and_then_by_its_class(error: BaseException, answer: Any) -> None:
    assert told(error) == answer


CLASSES = {
    "retryable": "08 40 53 57 58 72",
    "permanent": "03 09 0A 0B 0F 0L 0P 0Z 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 42 44 54 55 F0 P0",
}
SINGLE = {
    "retryable": "55P03 55006 25006 25P03 25P04 26000 XX000 HV00N",
    "permanent": "40002 57P04 53400 XX001 XX002",
}


def test_every_class_of_sqlstates_has_its_kind() -> None:
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    kinds = {each: kind for kind, classes in CLASSES.items() for each in classes.split()}
    for each in (one + two for one in letters for two in letters):
        assert sqlstate_kind(f"{each}ZZZ") == kinds.get(each)


@pytest.mark.parametrize("kind", list(SINGLE))
def test_single_sqlstates_have_another_kind_than_their_class(kind: str) -> None:
    assert {sqlstate_kind(code) for code in SINGLE[kind].split()} == {kind}


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (fake("psycopg.Error", sqlstate="40001"), ("retryable", "psycopg.40001")),
        (fake("psycopg.Error", sqlstate=None), None),
        (fake("psycopg.Error", sqlstate="ZZ000"), None),
        (fake("psycopg.Error", sqlstate=40001), None),
        (fake("psycopg2.Error", pgcode="23505"), ("permanent", "psycopg2.23505")),
        (fake("psycopg2.IntegrityError", pgcode=None), ("permanent", "psycopg2.IntegrityError")),
        (fake("psycopg2.OperationalError", pgcode="23505"), ("permanent", "psycopg2.23505")),
    ],
)
def test_an_error_of_postgresql_goes_by_its_sqlstate_and_then_by_its_class(error: BaseException, answer: Any) -> None:
    assert told(error) == answer


@pytest.mark.parametrize("name", ["BUSY", "LOCKED", "IOERR", "FULL", "PROTOCOL", "NOMEM", "INTERRUPT", "BUSY_SNAPSHOT", "IOERR_READ"])
def test_what_sqlite_cannot_do_now(name: str) -> None:
    assert told(fake("sqlite3.OperationalError", sqlite_errorname=f"SQLITE_{name}")) == ("retryable", f"sqlite3.SQLITE_{name}")


@pytest.mark.parametrize("name", ["ERROR", "READONLY", "CANTOPEN", "SCHEMA", "CORRUPT"])
def test_what_sqlite_can_never_do(name: str) -> None:
    error = fake("sqlite3.OperationalError", "database is locked", sqlite_errorname=f"SQLITE_{name}")
    assert told(error) == ("permanent", f"sqlite3.SQLITE_{name}")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(
            (text, "retryable")
            for text in (
                "database is locked",
                "database table is locked: t",
                "disk I/O error",
                "database or disk is full",
                "locking protocol",
                "out of memory",
                "interrupted",
            )
        ),
        ("no such table: t", "permanent"),
        ("", "permanent"),
    ],
)
def test_before_python_3_11_sqlite_has_its_text_only(text: str, kind: str) -> None:
    assert told(fake("sqlite3.OperationalError", text)) == (kind, "sqlite3.OperationalError")


@pytest.mark.parametrize("package", ["redis", "valkey"])
def test_the_first_word_of_a_reply_of_redis_says_whether_to_come_again(package: str) -> None:
    words = "LOADING BUSY TRYAGAIN CLUSTERDOWN MASTERDOWN READONLY NOREPLICAS MISCONF OOM UNBLOCKED".split()
    for word in words:
        for text in (f"{word} now", f"{word}: now", word):
            assert told(fake(f"{package}.exceptions.ResponseError", text)) == ("retryable", "redis.ResponseError")
    for text in ("ERR LOADING", "WRONGTYPE x", "loading", "", "BUSYGROUP x"):
        assert told(fake(f"{package}.exceptions.ResponseError", text)) == ("permanent", "redis.ResponseError")


@pytest.mark.parametrize("package", ["redis", "valkey"])
@pytest.mark.parametrize(
    "before",
    [
        "Command # 1 (SET key x) of pipeline caused error: ",
        "Command # 12 (SET key (of pipeline caused error: ) of\npipeline) of pipeline caused error: ",
        "ERR Error running script (call to f_c92947): @user_script:1: -",
        "Error running script (call to f_c92947): @user_script: 1: -",
    ],
)
def test_inside_a_pipeline_or_an_old_servers_script_the_word_stands_behind_others(package: str, before: str) -> None:
    for word, kind in (("NOREPLICAS", "retryable"), ("MISCONF", "retryable"), ("WRONGTYPE", "permanent"), ("ERR", "permanent")):
        assert told(fake(f"{package}.exceptions.ResponseError", f"{before}{word} and more")) == (kind, "redis.ResponseError")
    # what somebody wrote into a key is no word of the server's
    assert told(fake(f"{package}.exceptions.ResponseError", f"ERR no {before}OOM"))[0] == "permanent"  # type: ignore[index]


GRPC = {
    "retryable": "UNAVAILABLE DEADLINE_EXCEEDED ABORTED INTERNAL UNKNOWN CANCELLED",
    "throttled": "RESOURCE_EXHAUSTED",
    "permanent": (
        "INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED UNAUTHENTICATED FAILED_PRECONDITION OUT_OF_RANGE "
        "UNIMPLEMENTED DATA_LOSS"
    ),
}


def test_every_status_of_grpc_has_its_kind() -> None:
    assert {name: kind for kind, names in GRPC.items() for name in names.split()} == STATUS


ERRNO = {
    "retryable": (
        "ECONNREFUSED ECONNRESET ECONNABORTED EPIPE ETIMEDOUT ENETUNREACH EHOSTUNREACH EADDRINUSE EAGAIN EINTR ENOBUFS ENOMEM "
        "EMFILE ENFILE ENOSPC EDQUOT EBUSY EDEADLK ENOLCK EIO ESTALE"
    ),
    "permanent": "ENOENT EACCES EPERM EEXIST ENOTDIR EISDIR ENOTEMPTY EINVAL ENAMETOOLONG ELOOP EROFS EXDEV EFBIG EBADF ENOSYS ERANGE",
}


@pytest.mark.parametrize("kind", list(ERRNO))
def test_an_error_of_the_system_goes_by_its_number(kind: str) -> None:
    for name in ERRNO[kind].split():
        error = fake("shop.DiskError", base=OSError)
        error.errno = getattr(errno, name)  # type: ignore[attr-defined]
        found = told(error)
        assert found is not None, name
        assert found[0] == kind, name
        assert found[1].startswith("errno.E")


@pytest.mark.parametrize("number", [None, "2", 2.0, 99_999, [], True])
def test_an_error_of_the_system_without_a_number_that_is_known_says_nothing(number: Any) -> None:
    error = fake("shop.DiskError", base=OSError)
    error.errno = number  # type: ignore[attr-defined]
    assert told(error) == (("permanent", "errno.EPERM") if number is True else None)


# -- TLS: only a refused certificate is for ever --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("botocore.exceptions.SSLError", "botocore.SSLError"),
        ("urllib3.exceptions.SSLError", "urllib3.SSLError"),
        ("requests.exceptions.SSLError", "requests.SSLError"),
        ("httpx.ConnectError", "httpx.ConnectError"),
        ("httpcore.ConnectError", "httpx.ConnectError"),
        ("stripe._error.APIConnectionError", "stripe.APIConnectionError"),
        ("stripe.error.APIConnectionError", "stripe.APIConnectionError"),
        ("redis.exceptions.ConnectionError", "redis.ConnectionError"),
    ],
)
def test_of_a_failed_handshake_only_a_refused_certificate_is_permanent(name: str, rule: str) -> None:
    assert told(fake(name, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")) == ("permanent", rule)
    assert told(fake(name, "certificate verify failed")) == ("permanent", rule)
    assert told(fake(name, "CERTIFICATE_VERIFY_FAILED")) == ("permanent", rule)
    assert told(fake(name, "EOF occurred in violation of protocol")) == ("retryable", rule)


# -- errors that wrap another ---------------------------------------------------------------------------------------

DRIVERS = fake("pymysql.err.OperationalError", 1064, "syntax")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("OperationalError", "retryable"),
        ("InterfaceError", "retryable"),
        ("IntegrityError", "permanent"),
        ("DataError", "permanent"),
        ("ProgrammingError", "permanent"),
        ("NotSupportedError", "permanent"),
        ("Error", None),
    ],
)
def test_djangos_database_errors_go_by_their_cause_and_then_by_their_class(name: str, kind: str | None) -> None:
    error = fake(f"django.db.utils.{name}", "x")
    assert told(error) == (None if kind is None else (kind, f"django.{name}"))
    error.__cause__ = DRIVERS
    # its own cause, also where another rule would have found it later
    assert told(error) == ("permanent", "mysql.1064")
    error.__cause__ = fake("sqlite3.OperationalError", "database is locked")
    assert told(error) == ("retryable", "sqlite3.OperationalError")


@pytest.mark.parametrize(
    ("attributes", "answer"),
    [
        ({}, ("retryable", "sqlalchemy.OperationalError")),
        ({"orig": DRIVERS}, ("permanent", "mysql.1064")),
        ({"orig": DRIVERS, "connection_invalidated": True}, ("retryable", "sqlalchemy.connection_invalidated")),
        ({"orig": DRIVERS, "connection_invalidated": False}, ("permanent", "mysql.1064")),
        ({"orig": SimpleNamespace(sqlstate="42601")}, ("permanent", "sqlstate.42601")),
        ({"orig": fake("asyncpg.X", sqlstate="42601")}, ("permanent", "sqlstate.42601")),
        ({"orig": SimpleNamespace(sqlstate="ZZ000")}, ("retryable", "sqlalchemy.OperationalError")),
    ],
)
def test_sqlalchemys_errors_go_by_the_connection_the_drivers_error_and_their_class(attributes: Any, answer: tuple[str, str]) -> None:
    assert told(fake("sqlalchemy.exc.OperationalError", "x", **attributes)) == answer


def test_a_statement_error_without_a_drivers_error_says_nothing() -> None:
    assert told(fake("sqlalchemy.exc.StatementError", "x")) is None


@pytest.mark.parametrize("name", ["requests.exceptions.HTTPError", "httpx.HTTPStatusError"])
@pytest.mark.parametrize("base", [Exception, ValueError])
def test_a_clients_error_goes_by_its_response(name: str, base: type[BaseException]) -> None:
    response = SimpleNamespace(status_code=503, headers={"Retry-After": "4"})
    found = otherwise_permanent(fake(name, "x", base=base, response=response))
    assert found == Classification("retryable", 4.0, "http.503")
