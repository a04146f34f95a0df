"""HTTP-dates and statuses at their edges."""

from __future__ import annotations

import calendar
import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.policy.rules.http import answer, header, http_date, of_response, retry_after, status_kind
from celery_guardrails.policy.rules.table import LONGEST, seconds

NAMES = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def unix(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    return float(calendar.timegm((year, month, day, hour, minute, second)))


def test_every_month_of_six_hundred_years_is_where_the_calendar_has_it() -> None:
    for year in range(1800, 2401):
        for month, name in enumerate(NAMES, 1):
            assert http_date(f"Mon, 28 {name} {year} 01:02:03 GMT") == unix(year, month, 28, 1, 2, 3)


@pytest.mark.parametrize("day", range(1, 32))
def test_every_day_of_a_long_month(day: int) -> None:
    assert http_date(f"Mon, {day:02} Jan 2024 00:00:00 GMT") == unix(2024, 1, day)


@pytest.mark.parametrize(
    ("short", "year"), [("00", 2000), ("24", 2024), ("69", 2069), ("70", 1970), ("71", 1971), ("94", 1994), ("99", 1999)]
)
def test_a_year_of_two_digits_lies_between_1970_and_2069(short: str, year: int) -> None:
    assert http_date(f"Sunday, 06-Nov-{short} 08:49:37 GMT") == unix(year, 11, 6, 8, 49, 37)


@pytest.mark.parametrize(
    ("day", "clock", "sound"),
    [
        ("00", "00:00:00", False),
        ("01", "00:00:00", True),
        ("31", "23:59:59", True),
        ("32", "00:00:00", False),
        ("01", "24:00:00", False),
        ("01", "23:60:00", False),
        ("01", "23:59:60", True),  # a leap second
        ("01", "23:59:61", False),
    ],
)
def test_a_date_that_no_clock_shows_is_none(day: str, clock: str, sound: bool) -> None:
    assert (http_date(f"Mon, {day} Jan 2024 {clock} GMT") is not None) is sound


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((code, "retryable") for code in (408, 425, 500, 502, 503, 504, 507, 509, 520, 527, 598, 599)),
        *((code, "throttled") for code in (429, 529)),
        *((code, "permanent") for code in (400, 401, 403, 404, 409, 410, 422, 451, 499, 501, 505, 506, 508, 510, 511)),
        *((code, None) for code in (0, 200, 204, 301, 399, 600, 999, -1)),
    ],
)
def test_a_status_has_the_kind_of_the_documentation(status: int, kind: str | None) -> None:
    assert status_kind(status) == kind
    found = answer(status, {"Retry-After": "7"}, None)
    assert (None if found is None else found.kind) == kind
    if found is not None:
        assert (found.rule, found.retry_after) == (f"http.{status}", None if kind == "permanent" else 7.0)


@pytest.mark.parametrize("status", [True, False, "503", 503.0, None, b"503"])
def test_what_is_no_number_is_no_status(status: Any) -> None:
    assert answer(status, {}, None) is None


@pytest.mark.parametrize("error", [object(), SimpleNamespace(response=None), SimpleNamespace(response=object())])
def test_an_error_without_a_response_says_nothing(error: Any) -> None:
    assert of_response(error, None) is None


@pytest.mark.parametrize("name", ["status_code", "status"])
def test_the_status_of_a_response_has_one_of_two_names(name: str) -> None:
    found = of_response(SimpleNamespace(response=SimpleNamespace(headers={"retry-after": "3"}, **{name: 503})), None)
    assert found is not None
    assert (found.kind, found.retry_after, found.rule) == ("retryable", 3.0, "http.503")


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"X-A": "1"}, "1"),
        ({"x-a": 1}, "1"),
        ({"X-A": b"\xe9"}, "é"),
        ([("other", "0"), ("X-a", "1"), ("x-a", "2")], "1"),
        ({1: "0", b"x-a": "0", "x-a": "1"}, "1"),
    ],
)
def test_a_header_is_found_whatever_its_case_and_its_box(headers: Any, found: str | None) -> None:
    assert header(headers, "x-a") == found


DATE = "Mon, 01 Jan 2024 00:01:00 GMT"
NOW = unix(2024, 1, 1)


@pytest.mark.parametrize(
    ("headers", "now", "wait"),
    [
        ({"Retry-After": "5"}, None, 5.0),
        ({"Retry-After": " 5 "}, None, 5.0),
        ({"Retry-After": "0"}, None, 0.0),
        ({"Retry-After": "1.5"}, None, 1.5),
        ({"Retry-After": "-1"}, None, None),
        ({"Retry-After": "9" * 300}, None, LONGEST),
        ({"Retry-After": "soon"}, NOW, None),
        ({"Retry-After": DATE}, NOW, 60.0),
        ({"Retry-After": DATE}, NOW + 100, 0.0),
        ({"Retry-After": DATE}, 0.0, LONGEST),
        ({"Retry-After": DATE}, None, None),
        ({"Retry-After": DATE, "Date": "Mon, 01 Jan 2024 00:00:30 GMT"}, None, 30.0),
        ({"Retry-After": DATE, "Date": "Mon, 01 Jan 2024 00:00:30 GMT"}, NOW, 60.0),
        ({"Retry-After": DATE, "Date": "whenever"}, None, None),
        ({"Retry-After-Ms": "1500", "Retry-After": "9"}, None, 1.5),
        ({"Retry-After-Ms": " 1500 "}, None, 1.5),
        ({"Retry-After-Ms": "no", "Retry-After": "9"}, None, 9.0),
        ({"Retry-After-Ms": "no"}, None, None),
        ({}, NOW, None),
        (None, NOW, None),
    ],
)
def test_a_wait_is_read_in_each_of_its_forms(headers: Any, now: float | None, wait: float | None) -> None:
    assert retry_after(headers, now) == wait


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        (0, 0.0),
        (0.0, 0.0),
        (5, 5.0),
        (2.5, 2.5),
        (-1, None),
        (-0.001, None),
        (LONGEST + 1, LONGEST),
        (10**400, LONGEST),
        (float("inf"), None),
        (float("nan"), None),
        (True, None),
        (False, None),
        ("5", None),
        (None, None),
        (dt.timedelta(seconds=5), None),
    ],
)
def test_a_wait_is_a_number_between_nothing_and_a_year(value: Any, wait: float | None) -> None:
    found = seconds(value)
    assert found == wait
    assert type(found) in (float, type(None))
    assert LONGEST == 365 * 86_400
