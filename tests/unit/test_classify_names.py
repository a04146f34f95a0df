"""The shipped rules by name alone: nothing is imported for them, so classes shaped like a library's are enough.

What needs no library here keeps every rule tested where the library is not installed; and where it is, every name that a
rule is for must be a class of it.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.policy.classification import KINDS, Classification
from celery_guardrails.policy.classify import Classifier
from celery_guardrails.policy.rules import SHIPPED
from celery_guardrails.policy.rules.grpc import metadata_wait
from celery_guardrails.policy.rules.mysql import code_kind
from celery_guardrails.policy.rules.psycopg import sqlstate_kind

classify = Classifier(default_kind="permanent")

#: Names of other releases than those the tests run with, or that only exist on some Pythons.
ELSEWHERE = {
    "asyncio.exceptions.TimeoutError",  # Python 3.10
    "concurrent.futures._base.TimeoutError",
    "asyncio.exceptions.BrokenBarrierError",  # Python 3.11
    "redis.exceptions.ValkeyClusterException",  # valkey's name
    "sqlalchemy.exc.AmbiguousColumnError",  # SQLAlchemy 2.1
    "redis.exceptions.OutOfMemoryError",  # redis 5
    "redis.exceptions.ExternalAuthProviderError",  # redis 5.3
    "redis.exceptions.CrossSlotTransactionError",  # redis 6
    "redis.exceptions.InvalidPipelineStack",
    "botocore.exceptions.FlexibleChecksumError",
    "botocore.exceptions.CapacityNotAvailableError",
    "google.api_core.exceptions.TransferStalledError",
    "google.api_core.exceptions.MissingStatusHeaderError",
}


def fake(name: str, *args: Any, base: type[BaseException] = Exception, **attributes: Any) -> BaseException:
    """Make an error of a class that is called by a library's name."""
    module, _, cls = name.rpartition(".")
    error = type(cls, (base,), {"__module__": module})(*args)
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_rule_is_reached_by_the_name_of_its_class_and_of_its_subclasses(name: str) -> None:
    rule = SHIPPED[name]
    if name.startswith("builtins."):
        error: Any = getattr(importlib.import_module("builtins"), name[9:])()
    else:
        error = fake(name)
    found = classify(error)
    if isinstance(rule, Classification):
        assert found == rule
        assert classify(fake("mine.Special", base=type(error))) == rule
    assert found.kind in KINDS


def test_every_name_is_a_class_of_its_library_where_that_is_installed() -> None:
    wrong = []
    for name in SHIPPED:
        module, _, cls = name.rpartition(".")
        try:
            home = importlib.import_module(module)
        except ImportError:
            continue
        found = getattr(home, cls, None)
        if module == "valkey.exceptions" and found is None:
            continue  # the fork follows redis-py's names, years later
        if module.startswith("MySQLdb") and getattr(found, "__module__", "").startswith("pymysql"):
            continue  # a test of this process has had PyMySQL stand in for it
        if name not in ELSEWHERE and (found is None or f"{found.__module__}.{found.__qualname__}" != name):
            wrong.append(f"{name} is {found!r}")
    assert wrong == []


def test_no_rule_is_written_twice() -> None:
    from celery_guardrails.policy import rules

    modules = [value for value in vars(rules).values() if hasattr(value, "RULES")]
    assert sum(len(module.RULES) for module in modules) == len(SHIPPED)


def test_classifying_imports_none_of_the_libraries() -> None:
    libraries = "celery kombu amqp redis django flask click requests httpx aiohttp urllib3 botocore google grpc stripe psycopg sqlalchemy"
    script = (
        "import sys, types\n"
        # the package itself imports Celery: take its rooms without it
        "root = types.ModuleType('celery_guardrails'); root.__path__ = [sys.argv[1]]; sys.modules['celery_guardrails'] = root\n"
        "from celery_guardrails.policy.classify import Classifier\n"
        "Classifier()(ConnectionError()); Classifier()(type('APIError', (Exception,), {'__module__': 'stripe.error'})())\n"
        "print(*(name for name in sys.argv[2:] if name in sys.modules))\n"
    )
    package = importlib.import_module("celery_guardrails").__path__[0]
    command = [sys.executable, "-S", "-c", script, package, *libraries.split()]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (fake("stripe.error.RateLimitError", headers={"Retry-After": "5"}), Classification("throttled", 5.0, "stripe.RateLimitError")),
        (fake("stripe.error.CardError", http_status=402), Classification("permanent", None, "stripe.CardError")),
        (fake("stripe.error.APIError", http_status=503), Classification("retryable", None, "http.503")),
        (fake("stripe.error.StripeError", http_status=404), Classification("permanent", None, "http.404")),
        (fake("valkey.exceptions.ConnectionError"), Classification("retryable", None, "redis.ConnectionError")),
        (fake("valkey.exceptions.ResponseError", "READONLY You can't"), Classification("retryable", None, "redis.ResponseError")),
        (fake("valkey.exceptions.ResponseError", "ERR syntax"), Classification("permanent", None, "redis.ResponseError")),
        (fake("MySQLdb.OperationalError", 1213, "deadlock"), Classification("retryable", None, "mysql.1213")),
        (fake("MySQLdb._exceptions.IntegrityError", 1062, "twice"), Classification("permanent", None, "mysql.1062")),
        (fake("mysql.connector.errors.DatabaseError"), Classification("permanent", None, "default")),
        (fake("mysql.connector.errors.InternalError", "x", errno=1205), Classification("retryable", None, "mysql.1205")),
        (fake("mysql.connector.errors.InterfaceError", "x", errno=2003), Classification("retryable", None, "mysql.2003")),
        (fake("psycopg2.OperationalError", pgcode="40P01"), Classification("retryable", None, "psycopg2.40P01")),
        (
            fake("psycopg2.errors.UniqueViolation", base=type(fake("psycopg2.Error")), pgcode="23505"),
            Classification("permanent", None, "psycopg2.23505"),
        ),
        (fake("psycopg.OperationalError", sqlstate=None), Classification("retryable", None, "psycopg.OperationalError")),
        (
            fake("sqlite3.OperationalError", sqlite_errorname="SQLITE_BUSY_SNAPSHOT"),
            Classification("retryable", None, "sqlite3.SQLITE_BUSY_SNAPSHOT"),
        ),
        (fake("sqlite3.OperationalError", sqlite_errorname="SQLITE_ERROR"), Classification("permanent", None, "sqlite3.SQLITE_ERROR")),
        (
            fake("sqlalchemy.exc.OperationalError", orig=fake("MySQLdb.OperationalError", 1040)),
            Classification("retryable", None, "mysql.1040"),
        ),
        (fake("sqlalchemy.exc.InternalError", orig=None), Classification("permanent", None, "default")),
        (
            fake("botocore.exceptions.ClientError", response={"Error": {"Code": "Throttling"}}),
            Classification("throttled", None, "botocore.Throttling"),
        ),
        (
            fake("botocore.exceptions.ClientError", response={"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 500}}),
            Classification("retryable", None, "http.500"),
        ),
        (
            fake("google.api_core.exceptions.TooManyRequests", base=type(fake("google.api_core.exceptions.GoogleAPICallError")), code=429),
            Classification("throttled", None, "http.429"),
        ),
        (fake("google.api_core.exceptions.Aborted", code=409), Classification("retryable", None, "grpc.ABORTED")),
        (fake("google.auth.exceptions.GoogleAuthError", retryable=True), Classification("retryable", None, "google.GoogleAuthError")),
        (fake("grpc.RpcError", code=lambda: SimpleNamespace(name="UNAVAILABLE")), Classification("retryable", None, "grpc.UNAVAILABLE")),
        (fake("grpc.RpcError", code=lambda: SimpleNamespace(name="NOT_FOUND")), Classification("permanent", None, "grpc.NOT_FOUND")),
        (
            fake("grpc.RpcError", code=lambda: SimpleNamespace(name="RESOURCE_EXHAUSTED")),
            Classification("throttled", None, "grpc.RESOURCE_EXHAUSTED"),
        ),
        (
            fake("httpx.HTTPStatusError", response=SimpleNamespace(status_code=429, headers=[("Retry-After", "1")])),
            Classification("throttled", 1.0, "http.429"),
        ),
        (fake("httpcore.ConnectError", "refused"), Classification("retryable", None, "httpx.ConnectError")),
        (fake("aiohttp.client_exceptions.ClientResponseError", status=502, headers=None), Classification("retryable", None, "http.502")),
        (
            fake("urllib3.exceptions.MaxRetryError", reason=fake("urllib3.exceptions.InvalidHeader")),
            Classification("permanent", None, "urllib3.InvalidHeader"),
        ),
        (fake("requests.exceptions.HTTPError", response=None), Classification("permanent", None, "default")),
        (fake("django.db.utils.OperationalError"), Classification("retryable", None, "django.OperationalError")),
        (fake("billiard.exceptions.SoftTimeLimitExceeded"), Classification("retryable", None, "celery.SoftTimeLimitExceeded")),
    ],
    ids=lambda value: type(value).__module__ + "." + type(value).__name__ if isinstance(value, BaseException) else value.rule,
)
def test_an_error_is_known_by_the_shape_of_its_library(error: BaseException, expected: Classification) -> None:
    assert classify(error) == expected


def test_a_wrapped_error_that_wraps_itself_ends() -> None:
    error = fake("sqlalchemy.exc.OperationalError")
    error.orig = error  # type: ignore[attr-defined]
    assert classify(error) == Classification("retryable", None, "sqlalchemy.OperationalError")


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        ("retryable", "08000 08006 08P01 40000 40001 40P01 53000 53100 53200 53300 55P03 57014 57P01 57P02 57P03 57P05 58030 25006 XX000"),
        ("permanent", "0A000 21000 22001 22P02 23502 23503 23505 23514 23P01 25P02 28P01 3D000 40002 42601 42P01 53400 57P04 P0001 XX001"),
        (None, "00000 99999 ZZ000 X"),
    ],
)
def test_each_sqlstate_has_its_kind(kind: str | None, codes: str) -> None:
    assert {code: sqlstate_kind(code) for code in codes.split()} == dict.fromkeys(codes.split(), kind)


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        ("retryable", {1020, 1040, 1053, 1205, 1213, 1226, 1290, 1317, 1836, 2002, 2003, 2006, 2013, 2014, 2055, 3024, 3572, 4031}),
        ("permanent", {1044, 1045, 1048, 1054, 1062, 1064, 1146, 1264, 1406, 1451, 1452, 1644, 2059, 3819}),
        (None, {0, 1, 1105, 9999}),
    ],
)
def test_each_mysql_code_has_its_kind(kind: str | None, codes: set[int]) -> None:
    assert {code: code_kind(code) for code in codes} == dict.fromkeys(codes, kind)


@pytest.mark.parametrize(
    ("key", "value", "wait"),
    [
        ("grpc-retry-pushback-ms", "250", 0.25),
        ("grpc-retry-pushback-ms", b"250", 0.25),
        ("grpc-retry-pushback-ms", "-1", None),
        ("grpc-retry-pushback-ms", "soon", None),
        ("google.rpc.retryinfo-bin", bytes.fromhex("0a020805"), 5.0),
        ("google.rpc.retryinfo-bin", bytes.fromhex("0a0808051080cab5ee01"), 5.5),
        ("google.rpc.retryinfo-bin", b"", None),
        ("google.rpc.retryinfo-bin", b"\xff" * 30, None),
        ("google.rpc.retryinfo-bin", bytes.fromhex("0a0b08ffffffffffffffffff01"), None),  # minus one second
        ("grpc-status-details-bin", b"junk", None),
        ("other", "1", None),
    ],
)
def test_the_wait_of_grpc_metadata_is_read_byte_by_byte(key: str, value: Any, wait: float | None) -> None:
    found = metadata_wait(SimpleNamespace(trailing_metadata=lambda: ((key, value),)))
    assert found == (None if wait is None else pytest.approx(wait))
