"""The header that travels with a live message."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage, Travel
from celery_guardrails.policy.history import PastAttempt, PastDeath

counts = st.integers(0, 2**31)
moments = st.none() | st.floats(0, 2**40)
written = st.floats(0, 253_402_300_000)
attempts = st.builds(
    PastAttempt, counts, written, error=st.text(), message=st.text(), fingerprint=st.text(), traceback=st.text(), skipped=counts
)
deaths = st.builds(PastDeath, st.text(), st.text(), st.none() | written)
travels = st.builds(
    Travel,
    key=st.none() | st.text(),
    fingerprint=st.none() | st.text(),
    attempts=counts,
    deferrals=counts,
    deliveries=counts,
    first=moments,
    replays=counts,
    waited=moments,
    origin=st.none() | st.tuples(st.text(), st.text()),
    until=moments,
    history=st.lists(attempts, max_size=3).map(tuple),
    deaths=st.lists(deaths, max_size=3).map(tuple),
    echo=st.booleans(),
    vain=counts,
)
garbage: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["key", "fp", "attempts", "deferrals", "deliveries", "first", "replays", "waited", "origin", "until", "history", "deaths", "vain"]


@given(travels)
def test_the_header_comes_back_as_it_went(travel: Travel) -> None:
    assert Travel.from_headers({TRAVEL_HEADER: travel.to_header()}) == travel


@given(travels)
def test_the_header_survives_json(travel: Travel) -> None:
    assert Travel.from_headers({TRAVEL_HEADER: json.loads(json.dumps(travel.to_header()))}) == travel


def test_what_is_unset_takes_no_room() -> None:
    assert Travel().to_header() == {}
    assert Travel(key="k", attempts=2).to_header() == {"key": "k", "attempts": 2}


@given(garbage)
def test_a_header_of_another_program_counts_as_none(value: Any) -> None:
    assert isinstance(Travel.from_headers({TRAVEL_HEADER: value}), Travel)
    assert isinstance(Travel.from_headers(value), Travel)


@given(st.dictionaries(st.sampled_from(NAMES), garbage))
def test_each_field_of_a_wrong_type_counts_as_unset(header: dict[str, Any]) -> None:
    travel = Travel.from_headers({TRAVEL_HEADER: header})
    for text in (travel.key, travel.fingerprint):
        assert text is None or isinstance(text, str)
    for count in (travel.attempts, travel.deferrals, travel.deliveries, travel.replays):
        assert type(count) is int
        assert count >= 0
    for moment in (travel.first, travel.waited, travel.until):
        assert moment is None or (type(moment) is float and math.isfinite(moment))
    assert travel.origin is None or all(isinstance(part, str) for part in travel.origin)
    assert all(isinstance(past, PastAttempt) for past in travel.history)
    assert all(isinstance(death, PastDeath) for death in travel.deaths)


def test_no_headers_at_all_are_an_unknown_past() -> None:
    assert Travel.from_headers(None) == Travel.from_headers({}) == Travel()


def test_evolve_changes_a_copy() -> None:
    before = Travel(key="k")
    assert before.evolve(attempts=1) == Travel(key="k", attempts=1)
    assert before.attempts == 0


def test_a_raw_message_gets_and_loses_headers_in_a_copy() -> None:
    before = RawMessage(b"body", "application/json", "utf-8", {"a": 1, "b": None, "c": 3}, {}, "", "q")
    after = before.with_headers(a=2, c=None, d=4)
    assert after.headers == {"a": 2, "b": None, "d": 4}
    assert before.headers == {"a": 1, "b": None, "c": 3}
    assert after.body is before.body
