"""Which dead letters are meant, and how fast they may go."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_guardrails.dead_letters import Filter
from celery_guardrails.dead_letters.pace import Pace, parse_rate
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.testing.clock import FakeClock
from tests.support.dead_letters import Kit, task_message

NOW = datetime(2031, 5, 1, 12, 0, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("15m", 900),
        ("2h", 7200),
        ("2H ago", 7200),
        ("1.5h", 5400),
        ("3d", 259200),
        ("1w", 604800),
        ("2031-05-01T11:00:00Z", 3600),
        ("2031-05-01T11:00:00", 3600),
        ("2031-05-01 11:00", 3600),
        ("2031-05-01T13:00:00+02:00", 3600),
        ("2031-05-01", 43200),
    ],
)
def test_a_time_is_iso_8601_or_a_time_ago(text, seconds):
    assert Filter.parse(now=NOW, since=text).since == NOW - seconds
    assert Filter.parse(now=NOW, until=text).until == NOW - seconds


@pytest.mark.parametrize(
    ("options", "named", "allowed"),
    [
        ({"since": "yesterday"}, "--since 'yesterday'", "ISO 8601"),
        ({"until": "2 fortnights"}, "--until", "2h"),
        ({"since": "1h", "until": "2h"}, "--until", "after --since"),
        ({"reason": "bored"}, "--reason 'bored'", "exhausted"),
        ({"limit": 0}, "--limit 0", "at least 1"),
        ({"limit": True}, "--limit True", "at least 1"),
        ({"fingerprint": "xyz"}, "--fingerprint 'xyz'", "hexadecimal"),
        ({"queue": ""}, "--queue ''", "not empty"),
        ({"key": 7}, "--key 7", "a text"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(options, named, allowed):
    with pytest.raises(GuardrailsConfigError) as caught:
        Filter.parse(now=NOW, **options)
    assert named in str(caught.value)
    assert allowed in str(caught.value)


def test_a_time_as_a_number_must_be_one():
    with pytest.raises(GuardrailsConfigError, match="--since 'x'"):
        Filter(since="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "hits"),
    [
        ({}, 4),
        ({"task": "shop.charge"}, 2),
        ({"task": "shop.*"}, 3),
        ({"task": "SHOP.*"}, 0),
        ({"reason": "permanent"}, 1),
        ({"error": "shop.CardDeclined"}, 1),
        ({"error": "CardDeclined"}, 1),
        ({"error": "Card*"}, 1),
        ({"error": "*.CardDeclined"}, 1),
        ({"error": "declined"}, 0),
        ({"key": "charge:2"}, 1),
        ({"since": 1000.0}, 3),
        ({"until": 1000.0}, 0),
        ({"since": 1000.0, "until": 2000.0}, 1),
        ({"limit": 3}, 3),
    ],
)
def test_a_filter_chooses_by_each_of_its_options(options, hits):
    kit = Kit()
    kit.bury(task_message("shop.charge", key="charge:1"), last_seen=1000.0)
    kit.bury(task_message("shop.charge", key="charge:2"), last_seen=2000.0)
    kit.bury(task_message("shop.mail"), "permanent", last_seen=3000.0, error="shop.CardDeclined")
    kit.bury_raw(task_message("other.one"))  # nobody knows when it died
    assert len(list(kit.service.list(Filter(**options)))) == hits


def test_a_fingerprint_may_be_given_by_how_it_begins():
    kit = Kit()
    kit.bury(error="A")
    kit.bury(error="B")
    fingerprints = {letter.certificate.fingerprint for letter in kit.service.list()}
    assert len(fingerprints) == 2
    for fingerprint in fingerprints:
        assert len(list(kit.service.list(Filter(fingerprint=fingerprint[:6])))) == 1


@pytest.mark.parametrize(("text", "rate"), [(None, None), ("10", 10), ("10/s", 10), ("0.5 / s", 0.5), ("600/m", 10), ("7200/h", 2)])
def test_a_rate_is_a_number_with_or_without_its_span(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "10/y", "nan", "inf", "1/0"])
def test_a_wrong_rate_is_refused_with_what_is_allowed(text):
    with pytest.raises(GuardrailsConfigError, match="10/s"):
        parse_rate(text)


@pytest.mark.parametrize("rate", [0, -1, True, "10"])
def test_a_rate_that_is_no_number_above_zero_is_refused(rate):
    with pytest.raises(GuardrailsConfigError, match="--rate"):
        Pace(FakeClock(), rate)


@settings(deadline=None)
@given(rate=st.floats(0.1, 2000), work=st.lists(st.floats(0, 0.01), min_size=2, max_size=60))
def test_steps_are_evenly_spaced_and_never_faster_than_the_rate(rate, work):
    clock = FakeClock(0.0)
    pace = Pace(clock, rate)
    passed = []
    for seconds in work:
        pace.wait()
        passed.append(clock.now())
        clock.advance(seconds)
    # a window of n steps takes n-1 spans, a twentieth less to make good what took long, but for the little delay that is caught up on
    for first in range(len(passed)):
        for last in range(first + 1, len(passed)):
            assert passed[last] - passed[first] >= 0.95 * (last - first) / rate - 0.05 - 1e-6
    if all(seconds <= 1 / rate for seconds in work):
        assert passed[-1] == pytest.approx((len(passed) - 1) / rate)


def test_what_a_stall_has_cost_is_made_good_little_by_little():
    clock = FakeClock(0.0)
    pace = Pace(clock, 100.0)
    for step in range(1001):
        pace.wait()
        if step == 100:
            clock.advance(0.3)
    assert clock.now() == pytest.approx(10.0, abs=0.02), "a thousand spans of ten milliseconds, as without the stall"
    assert not pace.ready()
    clock.advance(0.01)
    assert pace.ready()


def test_of_a_long_pause_two_seconds_are_made_good():
    clock = FakeClock(0.0)
    pace = Pace(clock, 100.0)
    pace.wait()
    clock.advance(3600.0)
    for _ in range(10_001):
        pace.wait()
    assert clock.now() == pytest.approx(3600.0 + 100.0 - 2.05, abs=0.02)


def test_without_a_rate_nobody_waits():
    clock = FakeClock()
    pace = Pace(clock, None)
    for _ in range(100):
        pace.wait()
    assert clock.slept == []


def test_a_long_pause_is_not_made_up_for_with_a_burst():
    clock = FakeClock(0.0)
    pace = Pace(clock, 10.0)
    pace.wait()
    clock.advance(60)
    times = []
    for _ in range(5):
        pace.wait()
        times.append(clock.now())
    assert times[-1] - times[0] >= 0.3
