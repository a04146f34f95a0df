"""The rate of a resource conforms to the generic cell rate algorithm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.rate import Rate

START = 1_700_000_000.0
#: Seconds that nobody is made to wait for, and what double precision leaves of such a time.
ULP = 1.1e-4
rates = st.builds(Rate, per_second=st.floats(0.01, 1000), burst=st.floats(1, 50))


def pass_through(rate: Rate, steps: list[float]) -> list[float]:
    """Let a call ask after each of these steps; return when calls went."""
    arrival, now, gone = 0.0, START, []
    for step in steps:
        now += step
        if not rate.wait(arrival, now):
            arrival = rate.called(arrival, now)
            gone.append(now)
    return gone


@given(rates, st.lists(st.floats(0, 5), max_size=120))
def test_within_any_time_there_are_no_more_calls_than_the_burst_and_the_rate_allow(rate: Rate, steps: list[float]) -> None:
    gone = pass_through(rate, steps)
    for begin, since in enumerate(gone):
        for end in range(begin, len(gone)):
            assert end - begin + 1 <= rate.burst + rate.per_second * (gone[end] - since + ULP)


@given(rates, st.lists(st.floats(0, 5), max_size=60))
def test_who_waits_as_told_may_call_then(rate: Rate, steps: list[float]) -> None:
    arrival, now = 0.0, START
    for step in steps:
        now += step
        wait = rate.wait(arrival, now)
        assert wait <= 1.0 / rate.per_second + ULP
        now += wait
        assert rate.wait(arrival, now) == 0.0
        arrival = rate.called(arrival, now)


@given(st.integers(1, 50), st.integers(1, 50))
def test_after_a_pause_the_burst_may_come_at_once_and_then_the_rate(per_second: int, burst: int) -> None:
    rate = Rate(per_second, burst)
    assert rate.free(0.0, START) == burst
    assert len(pass_through(rate, [0.0] * (burst + 10))) == burst
    steps = [0.0] * burst + [(1.0 + ULP) / per_second] * 20
    assert len(pass_through(rate, steps)) == burst + 20


@given(rates, st.lists(st.floats(0, 5), max_size=60))
@example(Rate(157.0, burst=1.984375), [0.0, 0.0])  # what the moment of rounding lets in
def test_what_is_free_is_what_may_come_at_once(rate: Rate, steps: list[float]) -> None:
    arrival, now = 0.0, START
    for step in steps:
        now += step
        free = rate.free(arrival, now)
        assert 0.0 <= free <= rate.burst
        assert (free >= 1.0 - 1e-3 - ULP * rate.per_second) or rate.wait(arrival, now) > 0
        if not rate.wait(arrival, now):
            arrival = rate.called(arrival, now)


def test_by_default_the_calls_of_a_second_may_come_at_once_and_one_at_least() -> None:
    assert Rate(100).burst == 100.0
    assert Rate(0.1).burst == 1.0
    assert Rate(100, burst=5).burst == 5


@pytest.mark.parametrize("rate", [Rate(100.0), Rate(1 / 720)])
def test_a_clock_set_back_stops_nobody_until_it_is_there_again(rate: Rate) -> None:
    arrival = rate.called(0.0, START)
    now = START - 86400.0
    assert rate.wait(arrival, now) == 0.0
    assert rate.free(arrival, now) == rate.burst
    assert rate.called(arrival, now) == now + 1.0 / rate.per_second


def test_the_next_call_waits_for_its_part_of_a_second() -> None:
    rate = Rate(100.0, burst=1)
    assert rate.wait(rate.called(0.0, START), START) == pytest.approx(0.01, abs=1e-6)


def test_a_clock_set_back_a_little_is_waited_for() -> None:
    rate = Rate(1.0)
    arrival = rate.called(0.0, START)
    assert rate.wait(arrival, START - 0.5) == 1.5
    assert rate.free(arrival, START - 0.5) == 0.0


@pytest.mark.parametrize(("ahead", "wait"), [(3.0, 3.0), (3.5, 0.0)])
def test_more_than_two_bursts_and_a_second_ahead_is_no_arrival_of_this_rate(ahead: float, wait: float) -> None:
    assert Rate(1.0).wait(START + ahead, START) == wait


def test_a_rate_that_a_deploy_has_raised_is_that_of_the_next_call() -> None:
    arrival = Rate.parse("5/h").called(0.0, START)  # type: ignore[union-attr]
    assert Rate(100.0).wait(arrival, START + 1.0) == 0.0


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (None, None),
        (5, Rate(5.0)),
        (0.5, Rate(0.5)),
        ("100/s", Rate(100.0)),
        ("10/m", Rate(1 / 6)),
        (" 7.2 / h ", Rate(0.002)),
        ("3", Rate(3.0)),
        ("0.5/s", Rate(0.5)),
        (Rate(5, burst=2), Rate(5, burst=2)),
    ],
)
def test_a_rate_can_be_written_in_these_ways(value: object, rate: Rate | None) -> None:
    assert Rate.parse(value) == rate


@pytest.mark.parametrize("value", ["0/s", "fast", "-1/s", "10/d", "1/s/s", "", 0, -1, True, float("nan"), float("inf"), [], b"1/s"])
def test_anything_else_is_refused_with_what_is_allowed(value: object) -> None:
    with pytest.raises(GuardrailsConfigError) as error:
        Rate.parse(value)
    assert str(error.value) == (
        f'rate={value!r}: None, a number of calls a second, or a text such as "100/s", "10/m" or "5/h" is allowed'
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"per_second": 0}, r"Rate\(per_second=0\): a number above 0 is allowed"),
        ({"per_second": "5"}, r"Rate\(per_second='5'\)"),
        ({"per_second": 5, "burst": 0.5}, r"Rate\(burst=0.5\): a number of at least 1 is allowed"),
        ({"per_second": 5, "burst": "all"}, r"Rate\(burst='all'\)"),
        ({"per_second": 5, "burst": float("inf")}, r"Rate\(burst=inf\)"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=text):
        Rate(**options)
