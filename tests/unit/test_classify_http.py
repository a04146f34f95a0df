"""HTTP statuses and Retry-After, whichever library they come with."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.message import Message
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.classify import Classifier
from celery_guardrails.policy.rules.http import answer, header, http_date, retry_after, status_kind
from celery_guardrails.policy.rules.table import LONGEST

NOW = 1_700_000_000.0
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        ("retryable", {408, 425, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 525, 526, 527, 530, 598, 599}),
        ("throttled", {429, 529}),
        ("permanent", {400, 401, 402, 403, 404, 405, 406, 409, 410, 411, 412, 413, 415, 418, 422, 423, 424, 426, 428, 431, 451, 499}),
        ("permanent", {501, 505, 506, 508, 510, 511}),
        (None, {-1, 0, 100, 101, 200, 201, 204, 206, 301, 302, 304, 399, 600, 999}),
    ],
)
def test_each_status_has_its_kind(kind: str | None, statuses: set[int]) -> None:
    assert {status: status_kind(status) for status in statuses} == dict.fromkeys(statuses, kind)


def test_the_table_of_statuses_is_total() -> None:
    for status in range(-10, 1100):
        assert (status_kind(status) is None) == (not 400 <= status <= 599)
        if 400 <= status < 500 and status not in (408, 425, 429):
            assert status_kind(status) == "permanent"


@pytest.mark.parametrize("status", [None, "503", 503.0, True, b"503", object()])
def test_what_is_no_status_says_nothing(status: Any) -> None:
    assert answer(status, {}, NOW) is None


def test_the_rule_is_named_after_the_status_and_a_permanent_one_carries_no_wait() -> None:
    assert answer(503, {"Retry-After": "5"}, NOW) == Classification("retryable", 5.0, "http.503")
    assert answer(429, {"Retry-After": "5"}, NOW) == Classification("throttled", 5.0, "http.429")
    assert answer(404, {"Retry-After": "5"}, NOW) == Classification("permanent", None, "http.404")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("9" * 300, LONGEST),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("١٢", None),  # digits, but not ASCII's
        ("1" * 400, None),
    ],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", " Sun, 06 Nov 1994 08:49:37 GMT "],
)
def test_an_http_date_is_read_in_its_three_forms(text: str) -> None:
    assert http_date(text) == 784111777.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sun, 06 Nov 1994",
        "Sun, 06 Nov 1994 25:00:00 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 CET",
        "1994-11-06T08:49:37Z",
        "Sun, 06 Foo 1994 08:49:37 GMT",
    ],
)
def test_what_is_no_http_date_is_none(text: str) -> None:
    assert http_date(text) is None


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31)))  # noqa: DTZ001 - hypothesis wants naive bounds
def test_every_http_date_that_the_standard_library_writes_is_read(moment: datetime) -> None:
    moment = moment.replace(microsecond=0, tzinfo=timezone.utc)
    assert http_date(format_datetime(moment, usegmt=True)) == (moment - EPOCH).total_seconds()


def test_a_date_is_compared_with_now_and_without_it_with_the_responses_own_date() -> None:
    def date(seconds: float) -> str:
        return format_datetime(EPOCH + timedelta(seconds=seconds), usegmt=True)

    assert retry_after({"Retry-After": date(NOW + 90)}, NOW) == 90.0
    assert retry_after({"Retry-After": date(NOW + 90), "Date": date(NOW)}, None) == 90.0
    assert retry_after({"Retry-After": date(NOW - 90)}, NOW) == 0.0
    assert retry_after({"Retry-After": date(NOW + 90)}, None) is None
    assert retry_after({"Retry-After": date(NOW + 90), "Date": "yesterday"}, None) is None


def test_milliseconds_come_before_seconds() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "2"}, NOW) == 1.5
    assert retry_after({"retry-after-ms": "x", "retry-after": "2"}, NOW) == 2.0


@given(value=st.text() | st.from_regex(r"[0-9.]+", fullmatch=True) | st.dates().map(str), now=st.none() | st.floats())
def test_retry_after_is_none_or_between_zero_and_a_year(value: str, now: float | None) -> None:
    wait = retry_after({"Retry-After": value}, now)
    assert wait is None or 0 <= wait <= LONGEST


def test_a_header_is_found_in_every_shape_and_case() -> None:
    message = Message()
    message["RETRY-AFTER"] = "7"
    shapes: list[Any] = [message, {"retry-after": 7}, {"Retry-After": b"7"}, [("x", "y"), ("RETRY-After", "7")]]
    assert [header(shape, "retry-after") for shape in shapes] == ["7"] * len(shapes)
    assert header(None, "retry-after") is None
    assert header({"x": "y"}, "retry-after") is None


@pytest.mark.parametrize("base", [Exception, ValueError, OSError])
def test_an_unknown_clients_error_is_judged_by_the_response_it_carries(base: type[Exception]) -> None:
    """What openai, anthropic, slack_sdk, elasticsearch and many others raise."""
    error: Any = type("ApiError", (base,), {"__module__": "somewhere"})("no")
    error.response = SimpleNamespace(status_code=429, headers={"retry-after": "3"})
    assert Classifier()(error) == Classification("throttled", 3.0, "http.429")
    error.response = SimpleNamespace(status=404)
    assert Classifier()(error).rule == "http.404"
    error.response = SimpleNamespace(status_code=200)
    assert not Classifier()(error).rule.startswith("http")
