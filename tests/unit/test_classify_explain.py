"""Who gave the answer, and what it was found by."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.errors import PermanentError
from celery_guardrails.policy.classify import Classifier, Explanation


def named(name: str, *bases: type[BaseException], **attributes: Any) -> Any:
    module, _, cls = name.rpartition(".")
    return type(cls, bases or (Exception,), {"__module__": module, **attributes})("x")


def path(explanation: Explanation) -> list[tuple[str, str, str]]:
    return [(type(reason.error).__name__, reason.source, reason.matched) for reason in explanation.reasons]


def caused(error: Any, cause: BaseException) -> Any:
    error.__cause__ = cause
    return error


def test_the_class_that_the_rule_is_for_is_told() -> None:
    found = Classifier().explain(UnicodeDecodeError("utf-8", b"", 0, 1, "no"))
    assert path(found) == [("UnicodeDecodeError", "shipped", "builtins.ValueError")]
    assert found.classification == Classifier()(ValueError())


def test_the_default_has_no_reason() -> None:
    assert path(Classifier().explain(RuntimeError())) == []


def test_the_lists_the_errors_themselves_and_registered_rules_are_told() -> None:
    classifier = Classifier()
    classifier.rule(KeyError, kind="poison", name="mine")
    assert path(classifier.explain(KeyError(), retryable="builtins.LookupError")) == [("KeyError", "task", "builtins.LookupError")]
    assert path(classifier.explain(KeyError())) == [("KeyError", "registered", "mine")]
    permanent = caused(RuntimeError(), PermanentError())
    assert path(classifier.explain(permanent)) == [("PermanentError", "raised", "celery_guardrails.errors.PermanentError")]


def test_of_a_wrapped_error_the_wrapper_is_told_first() -> None:
    driver = named("psycopg.OperationalError", sqlstate="40P01")
    wrapper = named("sqlalchemy.exc.OperationalError", orig=driver)
    expected = [
        ("OperationalError", "shipped", "sqlalchemy.exc.OperationalError"),
        ("OperationalError", "shipped", "psycopg.OperationalError"),
    ]
    assert path(Classifier().explain(wrapper)) == expected
    assert path(Classifier().explain(caused(RuntimeError(), wrapper))) == expected


def test_the_wait_that_is_looked_for_besides_leaves_no_trace() -> None:
    response = SimpleNamespace(status_code=503, headers={"Retry-After": "4"})
    found = Classifier().explain(named("requests.exceptions.HTTPError", response=response), retryable="requests.*")
    assert found.classification.retry_after == 4.0
    assert path(found) == [("HTTPError", "task", "requests.exceptions.HTTPError")]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups come with Python 3.11")
def test_of_a_group_the_member_that_decides_is_told_and_no_other() -> None:
    group: Any = ExceptionGroup  # noqa: F821 - of 3.11
    found = Classifier().explain(group("", [ConnectionError(), KeyError(), TimeoutError(), TypeError()]))
    assert path(found) == [("KeyError", "shipped", "builtins.KeyError")]
    assert path(Classifier().explain(group("", [RuntimeError()]))) == []
    nested = caused(RuntimeError(), group("", [ConnectionError(), group("", [KeyError()])]))
    assert path(Classifier().explain(nested)) == [("KeyError", "shipped", "builtins.KeyError")]
    with_lists = Classifier().explain(group("", [KeyError()]), retryable="builtins.ExceptionGroup")
    assert path(with_lists) == [("ExceptionGroup", "task", "builtins.ExceptionGroup")]


def test_an_error_that_cannot_be_looked_at_gets_the_default_and_no_reason() -> None:
    class Meta(type):
        def __hash__(cls) -> int:
            raise RuntimeError

    error = Meta("Odd", (Exception,), {})()
    with pytest.warns(RuntimeWarning, match="could not be classified"):
        found = Classifier("permanent").explain(error)
    assert (found.classification.kind, found.reasons) == ("permanent", ())


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (KeyError(), ()),
        (named("psycopg.OperationalError"), ("sqlstate", "pgcode")),
        (named("psycopg.OperationalError", sqlstate="40001"), ("sqlstate",)),
        (named("httpx.ConnectError"), ("message",)),
        (named("requests.exceptions.HTTPError"), ("response",)),
        (named("requests.exceptions.HTTPError", OSError), ("response", "errno")),
        (named("requests.exceptions.InvalidURL"), ()),
        (named("shop.ApiError", response=SimpleNamespace(status_code=503, headers={})), ()),
        (named("smtplib.SMTPResponseException", ConnectionError), ("smtp_code",)),
    ],
)
def test_what_the_rules_for_its_class_ask_an_error_for(error: BaseException, asked: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Classifier().looks_at(error) == asked
