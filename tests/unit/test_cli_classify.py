"""``guardrails classify``: what it says, and how it ends."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import GuardedTask, Guardrails
from celery_guardrails.cli import commands
from celery_guardrails.cli.stand_in import Carried, find_class, stand_in
from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.classify import Classifier
from celery_guardrails.policy.matches import full_name
from celery_guardrails.policy.rules import SHIPPED
from tests.unit.test_dead_letters_cli import make_runner

HERE = __name__


class Declined(Exception):
    """Nobody knows it."""

    def __init__(self, order: int, reason: str) -> None:
        super().__init__(order, reason)


class Outer:
    class Nested(Declined):
        pass


class Said(Exception):
    """A rule is registered for it."""


class Final(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("not to be subclassed")


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    rails = Guardrails(app, store="memory://")
    rails.rule(f"{HERE}.Said", kind="throttled", retry_after=5, name="said")

    @app.task(base=GuardedTask, name="shop.charge", shared=False, permanent=(Declined,), retryable=(KeyError,))
    def charge() -> None:
        """Never run here."""

    @app.task(name="shop.plain", shared=False)
    def plain() -> None:
        """Never run here."""

    return app


@pytest.fixture
def run(app: Celery) -> Any:
    def run(*args: str, code: int = 0) -> Any:
        result = make_runner().invoke(commands(lambda: app), ["classify", *args])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


@pytest.fixture
def data(run: Any) -> Any:
    return lambda *args: json.loads(run(*args, "--json").stdout)


# -- who says so ----------------------------------------------------------------------------------------------------


def test_a_shipped_rule_is_named_with_the_class_that_it_is_for(data: Any, run: Any) -> None:
    found = data("UnicodeDecodeError")
    assert (found["error"], found["kind"], found["rule"], found["source"]) == (
        "builtins.UnicodeDecodeError",
        "permanent",
        "builtins.ValueError",
        "shipped",
    )
    assert found["why"] == [{"error": "builtins.UnicodeDecodeError", "matched": "builtins.ValueError", "source": "shipped"}]
    assert "UnicodeDecodeError derives from builtins.ValueError, which a shipped rule is for" in run("UnicodeDecodeError").stdout


def test_the_lists_of_a_task_come_first(data: Any, run: Any) -> None:
    assert data("KeyError")["kind"] == "permanent"
    found = data("KeyError", "--task", "shop.charge")
    assert (found["kind"], found["rule"], found["source"], found["task"]) == ("retryable", "task.retryable", "task", "shop.charge")
    assert "builtins.KeyError, which one of the task's own lists names" in run("KeyError", "--task", "shop.charge").stdout
    nested = data(f"{HERE}.Outer.Nested", "--task", "shop.charge")
    assert (nested["kind"], nested["why"][0]["matched"]) == ("permanent", f"{HERE}.Declined")


def test_a_registered_rule_is_named_with_its_wait(data: Any, run: Any) -> None:
    found = data(f"{HERE}.Said")
    assert (found["kind"], found["retry_after"], found["rule"], found["source"]) == ("throttled", 5.0, "said", "registered")
    text = run(f"{HERE}.Said").stdout
    assert "registered with guardrails.rule()" in text
    assert "at least 5 s" in text


def test_our_own_errors_say_it_by_themselves(data: Any) -> None:
    found = data("celery_guardrails.PermanentError")
    assert (found["kind"], found["source"]) == ("permanent", "raised")
    assert data("celery_guardrails.QueueFull")["kind"] == "throttled"


def test_an_error_that_no_rule_is_for_gets_the_default_and_a_mend(data: Any, run: Any) -> None:
    found = data(f"{HERE}.Declined")
    assert (found["kind"], found["rule"], found["source"], found["why"]) == ("retryable", "default", "default", [])
    assert f'guardrails.rule("{HERE}.Declined", kind=...)' in run(f"{HERE}.Declined").stdout


def test_a_cause_decides_where_the_error_itself_is_unknown(data: Any, run: Any) -> None:
    found = data(f"{HERE}.Declined", "--cause", "RuntimeError", "--cause", "KeyError")
    assert (found["kind"], found["why"]) == (
        "permanent",
        [{"error": "builtins.KeyError", "matched": "builtins.KeyError", "source": "shipped"}],
    )
    assert "inside it builtins.KeyError" in run(f"{HERE}.Declined", "--cause", "KeyError").stdout


def test_what_an_orm_wraps_is_shown_with_its_wrapper(data: Any) -> None:
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("psycopg")
    found = data("sqlalchemy.exc.OperationalError", "--cause", "psycopg.errors.DeadlockDetected")
    assert (found["kind"], found["rule"]) == ("retryable", "psycopg.40P01")
    assert [each["error"] for each in found["why"]] == ["sqlalchemy.exc.OperationalError", "psycopg.errors.DeadlockDetected"]


# -- what it depends on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "looked_at", "expected"),
    [
        (
            "requests.exceptions.HTTPError",
            "response",
            {"retryable": "--status 502-504", "throttled": "--status 429", "permanent": "--status 501"},
        ),
        ("httpx.HTTPStatusError", "response", {"retryable": "--status 408", "throttled": "--status 429"}),
        ("aiohttp.ClientResponseError", "status", {"retryable": "--status 502-504", "throttled": "--status 429"}),
        ("urllib.error.HTTPError", "code", {"retryable": "--status 502-504", "permanent": "--status 501"}),
        ("botocore.exceptions.ClientError", "response", {"retryable": "--status 502-504", "throttled": "--status 429"}),
        ("stripe.StripeError", "http_status", {"retryable": "--status 502-504", "throttled": "--status 429"}),
        ("smtplib.SMTPDataError", "smtp_code", {"retryable": "--status 450-452", "permanent": "--status 550"}),
        ("psycopg.OperationalError", "sqlstate", {"retryable": "--code 40001", "permanent": "--code 23505"}),
        ("psycopg2.DatabaseError", "pgcode", {"retryable": "--code 40001", "permanent": "--code 23505"}),
        ("pymysql.err.OperationalError", "args", {"retryable": "--code 1213", "permanent": "--code 1062"}),
        ("sqlite3.OperationalError", "sqlite_errorname", {"retryable": "--code SQLITE_BUSY", "permanent": "--code SQLITE_ERROR"}),
        ("OSError", "errno", {"retryable": "--code ENOSPC", "permanent": "--code ENOENT"}),
        (
            "grpc.RpcError",
            "code",
            {"retryable": "--code UNAVAILABLE", "throttled": "--code RESOURCE_EXHAUSTED", "permanent": "--code NOT_FOUND"},
        ),
        (
            "google.api_core.exceptions.GoogleAPICallError",
            "grpc_status_code",
            {"retryable": "--code ABORTED", "permanent": "--code DATA_LOSS"},
        ),
        ("redis.exceptions.ResponseError", "message", {"retryable": "--code READONLY", "permanent": "--code WRONGTYPE"}),
        ("httpx.ConnectError", "message", {"permanent": '--message "certificate verify failed"', "retryable": "--message anything else"}),
    ],
)
def test_a_rule_that_looks_at_what_an_error_carries_says_at_what_and_what_follows(
    data: Any, run: Any, name: str, looked_at: str, expected: dict[str, str]
) -> None:
    package = name.partition(".")[0]
    if "." in name:
        pytest.importorskip("google.api_core" if package == "google" else package)
    found = data(name)
    assert looked_at in found["depends_on"]
    for kind, option in expected.items():
        assert option in found["outcomes"][kind]
        # and so it is
        flag, value = option.split(" ", 1)
        assert data(name, flag, value.partition("-")[0] if flag == "--status" else value.strip('"'))["kind"] == kind
    assert "depends on what it carries" in run(name).stdout


@pytest.mark.parametrize("name", ["KeyError", "json.JSONDecodeError", "psycopg.errors.DeadlockDetected", f"{HERE}.Declined"])
def test_a_class_that_says_it_all_depends_on_nothing(data: Any, name: str) -> None:
    if name.startswith("psycopg"):
        pytest.importorskip("psycopg")
    assert data(name)["outcomes"] == {}


def test_the_wait_of_a_response_is_told(data: Any) -> None:
    pytest.importorskip("requests")
    found = data("requests.HTTPError", "--status", "503", "--retry-after", "7")
    assert (found["kind"], found["retry_after"], found["rule"]) == ("retryable", 7.0, "http.503")
    assert data(f"{HERE}.Declined", "--status", "429")["kind"] == "throttled", "any error may carry a response"


def test_codes_of_apis(data: Any) -> None:
    pytest.importorskip("botocore")
    assert data("botocore.exceptions.ClientError", "--code", "SlowDown")["kind"] == "throttled"
    pytest.importorskip("stripe")
    assert data("stripe.InvalidRequestError", "--code", "lock_timeout", "--status", "429")["rule"] == "stripe.should_retry"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups come with Python 3.11")
def test_of_a_group_its_members_decide(data: Any, run: Any) -> None:
    assert data("ExceptionGroup")["depends_on"] == ["exceptions"]
    assert "the worst of them decides" in run("ExceptionGroup").stdout


def test_a_registered_function_that_cannot_do_with_so_little_is_passed_over_with_a_warning(app: Celery, run: Any) -> None:
    @app.guardrails.rule(name="by order")
    def by_order(error: BaseException) -> str:
        return "permanent" if error.args[0] else "retryable"

    text = run(f"{HERE}.Declined").stdout
    assert "retryable" in text
    assert "'by order' raised IndexError" in text


# -- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("nowhere.Error", "there is no module 'nowhere'"),
        ("json.Error", "json has no Error"),
        ("KeyErr", "Python has no KeyErr of its own"),
        ("json.dumps", "'json.dumps' is function dumps, not an exception class"),
        ("int", "'int' is type int, not an exception class"),
        ("json..x", "it is no dotted name"),
        ("", "it is no dotted name"),
    ],
)
def test_a_name_that_cannot_be_imported_makes_exit_code_2_with_a_mend(run: Any, name: str, mend: str) -> None:
    assert mend in run(name, code=2).stderr
    assert mend in run("KeyError", "--cause", name, code=2).stderr


def test_a_module_that_cannot_be_imported_makes_exit_code_2(run: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert "importing broken_module raised ZeroDivisionError" in run("broken_module.Error", code=2).stderr


def test_a_task_that_is_not_there_or_not_guarded_makes_exit_code_2(run: Any) -> None:
    assert "there is shop.charge" in run("KeyError", "--task", "shop.chrge", code=2).stderr
    assert "is not guarded" in run("KeyError", "--task", "shop.plain", code=2).stderr


# -- stand-ins ------------------------------------------------------------------------------------------------------


def test_every_class_that_a_shipped_rule_is_for_can_be_asked_about() -> None:
    asked = 0
    for name, rule in SHIPPED.items():
        try:
            cls = find_class(name)
        except LookupError:  # not installed here, or of another release
            continue
        error = stand_in(cls, Carried())
        asked += 1
        if isinstance(rule, Classification) and full_name(cls) == name:  # some names are another class's on some Pythons
            assert Classifier()(error) == rule, name
    assert asked > 200


def test_a_class_that_may_not_be_subclassed_has_a_stand_in_of_its_name() -> None:
    error = stand_in(Final, Carried(message="text"))
    assert (type(error).__module__, type(error).__qualname__, str(error)) == (HERE, "Final", "text")
