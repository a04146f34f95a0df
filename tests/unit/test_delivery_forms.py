"""The travel header field by field, and a delivery on its way from the main process to a child."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from celery_guardrails.policy.delivery import TRAVEL_HEADER, Delivery, RawMessage, Travel
from celery_guardrails.policy.history import PastAttempt, PastDeath

FULL = Travel(
    key="k",
    fingerprint="f",
    attempts=1,
    deferrals=2,
    deliveries=3,
    first=4.5,
    replays=5,
    waited=6.5,
    origin=("x", "r"),
    slot="2026-01-01T00:00:00",
    until=7.5,
    history=(PastAttempt(1, 8.5, "e", "m", "fp", "t", 2), PastAttempt(4, 9.5, "e")),
    deaths=(PastDeath("exhausted", "e", 0.0), PastDeath("broker")),
)
HEADER = {
    "key": "k",
    "fp": "f",
    "attempts": 1,
    "deferrals": 2,
    "deliveries": 3,
    "first": 4.5,
    "replays": 5,
    "waited": 6.5,
    "origin": ["x", "r"],
    "slot": "2026-01-01T00:00:00",
    "until": 7.5,
    "history": [
        {"attempt": 1, "at": 8.5, "error": "e", "message": "m", "fingerprint": "fp", "traceback": "t", "skipped": 2},
        {"attempt": 4, "at": 9.5, "error": "e"},
    ],
    "deaths": [{"reason": "exhausted", "error": "e", "at": 0.0}, {"reason": "broker"}],
}
RAW = RawMessage(b"body", "application/json", "utf-8", {"id": "1"}, {"priority": 3}, "x", "r")


def read(name: str, value: Any) -> Travel:
    return Travel.from_headers({TRAVEL_HEADER: {name: value}})


def test_the_header_has_these_names_which_other_releases_read() -> None:
    assert FULL.to_header() == HEADER
    assert Travel.from_headers({TRAVEL_HEADER: HEADER}) == FULL


def test_an_empty_text_and_a_time_of_nothing_are_said() -> None:
    header = Travel(key="", fingerprint="", first=0.0, waited=0.0, slot="").to_header()
    assert header == {"key": "", "fp": "", "first": 0.0, "waited": 0.0, "slot": ""}


@pytest.mark.parametrize(("value", "count"), [(1, 1), (2, 2), (0, 0), (-1, 0), (True, 0), (1.0, 0), ("1", 0), (None, 0)])
def test_a_count_is_a_whole_number_above_nothing(value: Any, count: int) -> None:
    attempts = read("attempts", value).attempts
    assert (attempts, type(attempts)) == (count, int)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0.0),
        (5, 5.0),
        (-1.5, -1.5),
        (True, None),
        ("5", None),
        (2**62, None),
        (-(2**62), None),
        (2**62 - 1024, float(2**62 - 1024)),
        (10**400, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_a_time_is_a_number_that_a_clock_may_show(value: Any, number: float | None) -> None:
    first = read("first", value).first
    assert first == number
    assert type(first) in (float, type(None))


@pytest.mark.parametrize(
    ("value", "pair"),
    [
        (("a", "b"), ("a", "b")),
        (["a", "b"], ("a", "b")),
        ([1, None], ("1", "None")),
        (["a"], None),
        (["a", "b", "c"], None),
        ("ab", None),
        ({"a": 1, "b": 2}, None),
    ],
)
def test_an_origin_is_a_pair(value: Any, pair: tuple[str, str] | None) -> None:
    assert read("origin", value).origin == pair


@pytest.mark.parametrize("raw", [None, RAW], ids=["eager", "from a broker"])
def test_a_delivery_comes_out_of_a_pickle_as_it_went_in(raw: RawMessage | None) -> None:
    delivery = Delivery("id", "name", "key", "fp", "holder", "queue", FULL, True, raw)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        came = pickle.loads(pickle.dumps(delivery, protocol))
        assert came == delivery
        assert (type(came), type(came.travel), type(came.raw)) == (Delivery, Travel, type(raw))


def test_a_pickled_delivery_names_no_field() -> None:
    pickled = pickle.dumps(Delivery("id", "name", "key", "fp", "holder", "queue", FULL, True, RAW))
    assert not [name for name in ("redelivered", "deferrals", "content_encoding") if name.encode() in pickled]


def test_only_a_header_that_is_set_to_none_is_removed() -> None:
    message = RawMessage(b"", None, None, {"a": None, "b": 1, "c": 2}, {}, "", "")
    changed = message.with_headers(b=None, c=3, d=4)
    assert changed.headers == {"a": None, "c": 3, "d": 4}
    assert message.headers == {"a": None, "b": 1, "c": 2}
