"""How long the policy waits."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.retry import JITTERS, RetryPolicy

attempts = st.integers(1, 10_000)
fractions = st.floats(0, 1, exclude_max=True)
waits = st.none() | st.floats(0, 1e9)
any_jitter = st.sampled_from(JITTERS)


@st.composite
def policies(draw: st.DrawFn, jitter: st.SearchStrategy[str] = any_jitter) -> RetryPolicy:
    base = draw(st.floats(1e-3, 1e4))
    return RetryPolicy(base=base, cap=base * draw(st.floats(1, 1e4)), jitter=draw(jitter))


@given(policies(), attempts, fractions, waits, waits)
def test_every_wait_is_between_nothing_and_the_cap(
    policy: RetryPolicy, attempt: int, fraction: float, previous: float | None, retry_after: float | None
) -> None:
    wait = policy.delay(attempt, fraction, previous=previous, retry_after=retry_after)
    assert 0 <= wait <= policy.cap


@given(policies(), attempts, fractions, waits, st.floats(0, 1e9))
def test_what_the_dependency_asked_for_is_the_floor(
    policy: RetryPolicy, attempt: int, fraction: float, previous: float | None, asked: float
) -> None:
    wait = policy.delay(attempt, fraction, previous=previous, retry_after=asked)
    assert wait >= (asked if asked < policy.cap else policy.cap * 0.9)
    assert policy.jitter != "none" or wait == min(policy.cap, max(policy.step(attempt), asked))


@pytest.mark.parametrize(("asked", "wait"), [(None, 4.0), (3.0, 4.0), (7.0, 7.0), (20.0, 20.0), (99.0, 20.0)])
def test_without_jitter_the_longer_wait_counts_up_to_the_cap(asked: float | None, wait: float) -> None:
    assert RetryPolicy(cap=20.0, jitter="none").delay(3, 0.5, retry_after=asked) == wait
    assert RetryPolicy(base=0.25, jitter="none").delay(2, 0.5) == 0.5


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [(1.0, 1.0, 5.0), (4.0, 4.0, 8.0), (6.0, 6.0, 12.0), (15.0, 15.0, 20.0), (20.0, 18.0, 20.0), (99.0, 18.0, 20.0)],
)
def test_the_range_behind_what_was_asked_for(asked: float, low: float, high: float) -> None:
    policy = RetryPolicy(cap=20.0)  # its third step is 4 s
    assert [policy.delay(3, fraction, retry_after=asked) for fraction in (0.0, 0.5)] == [low, (low + high) / 2]


@given(policies(st.sampled_from(["full", "equal", "decorrelated"])), attempts, waits, st.floats(1, 1e9))
def test_those_who_were_told_the_same_time_do_not_come_back_together(
    policy: RetryPolicy, attempt: int, previous: float | None, asked: float
) -> None:
    early, late = (policy.delay(attempt, fraction, previous=previous, retry_after=asked) for fraction in (0.1, 0.9))
    room = policy.cap - min(asked, policy.cap) or policy.cap / 10
    spread = min(room, asked)  # at least as long as was asked for, as far as the cap leaves room
    assert late - early >= 0.8 * spread - 1e-9 * policy.cap


@given(policies(), attempts, fractions, waits)
def test_a_wait_of_nothing_asks_for_nothing(policy: RetryPolicy, attempt: int, fraction: float, previous: float | None) -> None:
    plain = policy.delay(attempt, fraction, previous=previous)
    assert policy.delay(attempt, fraction, previous=previous, retry_after=0) == plain
    assert policy.delay(attempt, fraction, previous=previous, retry_after=-5) == plain


@given(policies(st.just("full")), attempts, fractions)
def test_full_jitter_is_a_fraction_of_the_step(policy: RetryPolicy, attempt: int, fraction: float) -> None:
    assert policy.delay(attempt, fraction) == policy.step(attempt) * fraction


@given(policies(st.just("equal")), attempts, fractions)
def test_equal_jitter_waits_at_least_half_of_the_step(policy: RetryPolicy, attempt: int, fraction: float) -> None:
    assert policy.step(attempt) / 2 <= policy.delay(attempt, fraction) <= policy.step(attempt)


@given(policies(st.just("decorrelated")), attempts, fractions, waits)
def test_decorrelated_jitter_lies_between_the_base_and_three_times_the_last_wait(
    policy: RetryPolicy, attempt: int, fraction: float, previous: float | None
) -> None:
    wait = policy.delay(attempt, fraction, previous=previous)
    last = policy.base if previous is None else previous
    assert min(policy.base, policy.cap) <= wait
    assert wait <= max(policy.base, 3 * last) or math.isclose(wait, 3 * last)


@given(policies(st.just("none")), attempts, fractions)
def test_without_jitter_the_step_itself_is_waited(policy: RetryPolicy, attempt: int, fraction: float) -> None:
    assert policy.delay(attempt, fraction) == policy.step(attempt)


@given(policies(), st.integers(1, 10_000))
def test_steps_double_until_the_cap(policy: RetryPolicy, attempt: int) -> None:
    this, following = policy.step(attempt), policy.step(attempt + 1)
    assert this <= following <= policy.cap
    assert following == policy.cap or math.isclose(following, 2 * this)
    assert policy.step(1) == policy.base


@pytest.mark.parametrize(("jitter", "low", "high", "mean"), [("full", 0.0, 8.0, 4.0), ("equal", 4.0, 8.0, 6.0), ("none", 8.0, 8.0, 8.0)])
def test_jitter_spreads_evenly_over_its_range(jitter: str, low: float, high: float, mean: float) -> None:
    policy = RetryPolicy(jitter=jitter)
    spread = [policy.delay(4, n / 1000) for n in range(1000)]
    assert min(spread) == low
    assert high - 0.01 <= max(spread) <= high
    assert statistics.fmean(spread) == pytest.approx(mean, rel=0.01)


def test_the_defaults_wait_out_a_quarter_of_an_hour() -> None:
    policy = RetryPolicy()
    expected = sum(policy.delay(attempt, 0.5) for attempt in range(1, policy.max_attempts))
    assert expected == 811.5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"base": 0}, "base"),
        ({"base": -1}, "base"),
        ({"base": math.nan}, "base"),
        ({"base": "1"}, "base"),
        ({"base": True}, "base"),
        ({"cap": 0.5}, "cap"),
        ({"cap": math.inf}, "cap"),
        ({"cap": None}, "cap"),
        ({"jitter": "random"}, "jitter"),
        ({"jitter": ["full"]}, "jitter"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": "1h"}, "deadline"),
        ({"inherit_deadline": None}, "inherit_deadline"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(options: dict[str, Any], named: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=rf"RetryPolicy\({named}=.* is allowed"):
        RetryPolicy(**options)
