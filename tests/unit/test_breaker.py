"""The circuit breaker's table, and what it promises whatever happens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.breaker import FIRSTS_FIRST, PROBE_WAIT, BreakerState, CircuitBreaker, Condition, Effect

START = 1_700_000_000.0
LEASE = 60.0
BREAKER = CircuitBreaker()
CLOSED, OPEN, HALF_OPEN = Condition.CLOSED, Condition.OPEN, Condition.HALF_OPEN
SUCCESS, FAILURE, NEUTRAL = Effect.SUCCESS, Effect.FAILURE, Effect.NEUTRAL
effects = st.sampled_from(list(Effect))


def told(state: BreakerState, *effects: Effect, holder: str = "h", now: float = START, breaker: CircuitBreaker = BREAKER) -> BreakerState:
    for effect in effects:
        state = state.told(breaker, holder, effect, fraction=0.0, now=now)
    return state


def opened(now: float = START) -> BreakerState:
    """Return a breaker that has opened at a moment, for five seconds."""
    state = told(BreakerState(), *[FAILURE] * 10, now=now)
    assert state.condition(now) is OPEN
    return state


def probing(holder: str = "p", now: float = START + 5.0) -> BreakerState:
    """Return one that opened at the start, and is probed."""
    return opened().entered(holder, lease=LEASE, now=now)


def test_how_long_one_waits_for_a_probe_and_for_first_attempts() -> None:
    assert (PROBE_WAIT, FIRSTS_FIRST) == (1.0, 2.0)
    assert CircuitBreaker(failure_rate=0.5, min_calls=10, window=10.0, open_seconds=5.0, max_open_seconds=30.0, probes=2) == BREAKER


def test_the_words_that_stores_and_commands_know() -> None:
    assert [condition.value for condition in Condition] == ["closed", "open", "half-open"]
    assert [effect.value for effect in Effect] == ["success", "failure", "neutral"]


# -- closed → open --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "condition"),
    [
        ([FAILURE] * 9, CLOSED),  # too few calls
        ([FAILURE] * 10, OPEN),
        ([SUCCESS] * 5 + [FAILURE] * 4, CLOSED),
        ([SUCCESS] * 5 + [FAILURE] * 5, OPEN),  # half of them
        ([SUCCESS] * 6 + [FAILURE] * 5, CLOSED),
        ([SUCCESS] * 6 + [FAILURE] * 6, OPEN),
        ([FAILURE] * 5 + [SUCCESS] * 5, CLOSED),  # a success opens nothing, though it makes up the number
        ([FAILURE] * 5 + [SUCCESS] * 5 + [FAILURE], OPEN),
        ([FAILURE] * 9 + [NEUTRAL] * 20, CLOSED),  # a permanent error says nothing of the resource
        ([SUCCESS] * 1000, CLOSED),
    ],
)
def test_it_opens_at_the_rate_and_not_below_the_number_of_calls(before: list[Effect], condition: Condition) -> None:
    assert told(BreakerState(), *before).condition(START) is condition


@pytest.mark.parametrize(("rate", "failures", "condition"), [(1.0, 10, OPEN), (1.0, 9, CLOSED), (0.1, 1, OPEN), (0.2, 1, CLOSED)])
def test_the_rate_is_that_of_the_settings(rate: float, failures: int, condition: Condition) -> None:
    breaker = CircuitBreaker(failure_rate=rate)
    state = told(BreakerState(), *[SUCCESS] * (10 - failures), *[FAILURE] * failures, breaker=breaker)
    assert state.condition(START) is condition


def test_failures_that_lie_further_back_than_the_window_do_not_count() -> None:
    state = told(BreakerState(), *[FAILURE] * 9)
    assert told(state, FAILURE, now=START + 20.0).condition(START + 20.0) is CLOSED
    assert told(state, FAILURE, now=START + 9.9).condition(START + 9.9) is OPEN


@pytest.mark.parametrize(("fraction", "seconds"), [(0.0, 5.0), (0.5, 5.625), (1.0, 6.25)])
def test_it_stays_open_for_up_to_a_quarter_longer_by_chance(fraction: float, seconds: float) -> None:
    state = told(BreakerState(), *[FAILURE] * 9).told(BREAKER, "h", FAILURE, fraction=fraction, now=START)
    assert state.until == START + seconds
    assert state.since == START


def test_how_long_it_stays_open_doubles_up_to_the_bound() -> None:
    assert [BREAKER.open_for(n, 0.0) for n in range(1, 7)] == [5.0, 10.0, 20.0, 30.0, 30.0, 30.0]
    assert BREAKER.open_for(10_000, 0.0) == 30.0


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(1e-3, 1e4), st.floats(1, 1e4))
def test_it_never_stays_open_for_more_than_the_bound_and_a_quarter(times: int, fraction: float, step: float, factor: float) -> None:
    breaker = CircuitBreaker(open_seconds=step, max_open_seconds=step * factor)
    assert step <= breaker.open_for(times, fraction) <= breaker.max_open_seconds * 1.25


# -- open -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_open_it_lets_nobody_in_until_its_moment(first: bool) -> None:
    state = opened()
    assert state.wait("h", first=first, now=START) == 5.0
    assert state.wait("h", first=first, now=START + 4.0) == 1.0
    assert state.entered("h", lease=LEASE, now=START) == state


@given(st.lists(st.tuples(effects, st.floats(0, 4.99)), max_size=30))
def test_who_began_before_it_opened_says_nothing_new(late: list[tuple[Effect, float]]) -> None:
    state = opened()
    for effect, seconds in late:
        assert told(state, effect, holder="late", now=START + seconds) == state


@given(st.lists(st.tuples(effects, st.floats(0, 20)), max_size=30))
def test_half_open_only_the_probe_is_heard(late: list[tuple[Effect, float]]) -> None:
    state = probing()
    for effect, seconds in late:
        assert told(state, effect, holder="late", now=START + 5.0 + seconds) == state


# -- half-open ------------------------------------------------------------------------------------------------------


def test_from_its_moment_on_it_is_half_open() -> None:
    state = opened()
    assert state.condition(START + 4.999) is OPEN
    assert state.condition(START + 5.0) is HALF_OPEN


def test_one_probe_at_a_time() -> None:
    state = opened()
    assert state.wait("p", first=True, now=START + 5.0) == 0.0
    state = probing("p")
    assert state.wait("q", first=True, now=START + 5.0) == PROBE_WAIT
    assert state.wait("q", first=False, now=START + 30.0) == PROBE_WAIT
    assert state.wait("p", first=True, now=START + 5.0) == 0.0  # its answer was lost on the way, and it asks again


def test_first_attempts_probe_before_retries() -> None:
    state = opened()
    assert state.wait("first", first=True, now=START + 5.0) == 0.0
    assert state.wait("retry", first=False, now=START + 5.0) == FIRSTS_FIRST
    assert state.wait("retry", first=False, now=START + 5.0 + FIRSTS_FIRST / 2) == FIRSTS_FIRST / 2
    assert state.wait("retry", first=False, now=START + 5.0 + FIRSTS_FIRST) == 0.0


def test_a_probe_whose_lease_has_ended_frees_the_place() -> None:
    state = probing("p", now=START + 5.0)
    assert state.wait("q", first=True, now=START + 5.0 + LEASE - 0.1) == PROBE_WAIT
    assert state.wait("q", first=True, now=START + 5.0 + LEASE) == 0.0
    state = state.entered("q", lease=LEASE, now=START + 5.0 + LEASE)
    assert told(state, FAILURE, SUCCESS, holder="p", now=START + 66.0) == state  # it is too late to say anything
    assert state.wait("r", first=True, now=START + 5.0 + LEASE) == PROBE_WAIT


def test_a_probe_that_came_late_but_before_anyone_else_is_heard() -> None:
    state = told(probing("p"), SUCCESS, holder="p", now=START + 5.0 + 2 * LEASE)
    assert state.passed == 1


def test_a_renewed_probe_keeps_its_place() -> None:
    state = probing("p").renewed("p", lease=LEASE, now=START + 60.0)
    assert state.wait("q", first=True, now=START + 119.0) == PROBE_WAIT
    assert state.wait("q", first=True, now=START + 120.0) == 0.0


def test_nobody_renews_what_is_not_theirs() -> None:
    state = probing("p")
    assert state.renewed("q", lease=LEASE, now=START + 60.0) == state
    assert opened().renewed("", lease=LEASE, now=START) == opened()


def test_so_many_probes_that_succeed_close_it() -> None:
    state = told(probing("p"), SUCCESS, holder="p", now=START + 6.0)
    assert state.condition(START + 6.0) is HALF_OPEN
    assert state.wait("q", first=True, now=START + 6.0) == 0.0
    state = told(state.entered("q", lease=LEASE, now=START + 6.0), SUCCESS, holder="q", now=START + 7.0)
    assert state == BreakerState(since=START + 7.0)
    assert state.condition(START + 7.0) is CLOSED
    # it remembers nothing of the outage
    assert told(state, *[FAILURE] * 9, now=START + 8.0).condition(START + 8.0) is CLOSED


def test_a_probe_that_fails_opens_it_for_twice_as_long() -> None:
    state = told(probing("p"), FAILURE, holder="p", now=START + 6.0)
    assert (state.opened, state.since, state.until) == (2, START + 6.0, START + 16.0)
    assert state.condition(START + 15.9) is OPEN
    state = told(state.entered("q", lease=LEASE, now=START + 16.0), FAILURE, holder="q", now=START + 16.0)
    assert state.until == START + 36.0
    state = told(state.entered("q", lease=LEASE, now=START + 36.0), FAILURE, holder="q", now=START + 36.0)
    assert state.until == START + 66.0  # the bound


def test_the_probes_that_succeeded_must_be_in_a_row() -> None:
    state = told(probing("p"), SUCCESS, holder="p", now=START + 5.0)
    state = told(state.entered("q", lease=LEASE, now=START + 5.0), FAILURE, holder="q", now=START + 5.0)
    state = told(state.entered("r", lease=LEASE, now=START + 15.0), SUCCESS, holder="r", now=START + 15.0)
    assert state.condition(START + 15.0) is HALF_OPEN


def test_a_probe_that_says_nothing_frees_the_place() -> None:
    state = told(probing("p"), NEUTRAL, holder="p", now=START + 6.0)
    assert state == opened()
    assert state.wait("q", first=True, now=START + 6.0) == 0.0


def test_once_closed_it_opens_for_the_first_time_again() -> None:
    breaker = CircuitBreaker(probes=1)
    state = told(probing("p"), FAILURE, holder="p", now=START + 5.0, breaker=breaker).entered("q", lease=LEASE, now=START + 15.0)
    state = told(state, SUCCESS, holder="q", now=START + 15.0, breaker=breaker)
    state = told(state, *[FAILURE] * 10, now=START + 16.0, breaker=breaker)
    assert state.until == START + 16.0 + 5.0


# -- an operator's hand ---------------------------------------------------------------------------------------------


def test_forced_open_it_lets_nobody_in_until_the_order_expires() -> None:
    state = BreakerState().put(OPEN, START + 20.0)
    assert state.wait("h", first=True, now=START) == 20.0
    assert state.condition(START + 19.9) is OPEN
    assert state.condition(START + 20.0) is CLOSED
    assert state.wait("h", first=True, now=START + 20.0) == 0.0


def test_forced_closed_everybody_may_call_whatever_comes_of_it() -> None:
    state = opened().put(CLOSED, START + 60.0)
    assert state.wait("retry", first=False, now=START) == 0.0
    assert state.entered("h", lease=LEASE, now=START) == state
    assert told(state, *[FAILURE] * 100, now=START + 1.0).condition(START + 1.0) is CLOSED
    assert state.condition(START + 60.0) is HALF_OPEN  # as it was, and its time is over


def test_what_happens_under_an_order_does_not_count_afterwards() -> None:
    state = told(BreakerState().put(CLOSED, START + 5.0), *[FAILURE] * 100, now=START + 1.0)
    assert told(state, *[FAILURE] * 9, now=START + 6.0).condition(START + 6.0) is CLOSED
    assert told(state, *[FAILURE] * 10, now=START + 6.0).condition(START + 6.0) is OPEN


def test_a_probe_that_ends_under_an_order_frees_the_place() -> None:
    state = told(probing("p").put(OPEN, START + 20.0), SUCCESS, holder="p", now=START + 6.0)
    assert state.passed == 0
    assert state.wait("q", first=True, now=START + 20.0) == 0.0


def test_an_order_can_be_lifted() -> None:
    assert opened().put(CLOSED, START + 60.0).put(None, START + 60.0) == opened()


# -- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_a_clock_set_back_does_not_keep_it_open_until_it_is_there_again(first: bool) -> None:
    now = START - 3600.0
    state = opened()
    assert state.condition(now) is HALF_OPEN
    assert state.wait("p", first=first, now=now) == 0.0
    state = state.entered("p", lease=LEASE, now=now)
    assert state.wait("q", first=True, now=now) == PROBE_WAIT
    state = told(state, FAILURE, holder="p", now=now)
    assert state.wait("q", first=True, now=now) == 10.0


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.sampled_from("abc"), st.booleans(), effects, st.floats(0, 1, exclude_max=True)), max_size=60)
)
def test_whatever_happens_the_next_wait_is_bounded(events: list[tuple[float, str, bool, Effect, float]]) -> None:
    breaker = CircuitBreaker(min_calls=2)
    state, now = BreakerState(), START
    longest = breaker.max_open_seconds * 1.25 + FIRSTS_FIRST
    for step, holder, first, effect, fraction in events:
        now += step
        wait = state.wait(holder, first=first, now=now)
        assert 0.0 <= wait <= longest
        if not wait:
            state = state.entered(holder, lease=LEASE, now=now).told(breaker, holder, effect, fraction=fraction, now=now)
        assert state.opened or state.condition(now) is CLOSED


def test_one_that_opened_this_very_moment_is_open() -> None:
    assert opened().condition(START) is OPEN
    assert opened().wait("retry", first=False, now=START) == 5.0


def test_an_old_state_is_read_under_settings_that_have_changed() -> None:
    state = replace(probing("p"), passed=5)
    assert told(state, SUCCESS, holder="p", now=START + 6.0, breaker=CircuitBreaker(probes=1)).condition(START + 6.0) is CLOSED


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"failure_rate": 0}, r"CircuitBreaker\(failure_rate=0\): a number above 0 and up to 1 is allowed"),
        ({"failure_rate": 1.1}, r"CircuitBreaker\(failure_rate=1.1\)"),
        ({"failure_rate": "half"}, r"CircuitBreaker\(failure_rate='half'\)"),
        ({"min_calls": 0}, r"CircuitBreaker\(min_calls=0\): a whole number of at least 1 is allowed"),
        ({"min_calls": 2.0}, r"CircuitBreaker\(min_calls=2.0\)"),
        ({"min_calls": True}, r"CircuitBreaker\(min_calls=True\)"),
        ({"window": 0}, r"CircuitBreaker\(window=0\): a number of seconds of at least 1 is allowed"),
        ({"open_seconds": 0}, r"CircuitBreaker\(open_seconds=0\): a number of seconds above 0 is allowed"),
        ({"open_seconds": "5"}, r"CircuitBreaker\(open_seconds='5'\)"),
        ({"open_seconds": 60}, r"CircuitBreaker\(max_open_seconds=30.0\): a number of seconds of at least open_seconds=60 is allowed"),
        ({"max_open_seconds": float("inf")}, r"CircuitBreaker\(max_open_seconds=inf\)"),
        ({"probes": 0}, r"CircuitBreaker\(probes=0\): a whole number of at least 1 is allowed"),
        ({"probes": None}, r"CircuitBreaker\(probes=None\)"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=text):
        CircuitBreaker(**options)


def test_the_edges_are_allowed() -> None:
    CircuitBreaker(failure_rate=1, min_calls=1, window=1, open_seconds=30, max_open_seconds=30, probes=1)


def test_who_began_before_it_closed_again_says_nothing_of_how_it_is_now() -> None:
    closed = BreakerState(since=START)
    breaker = CircuitBreaker(min_calls=1)
    for began, counts in ((START - 0.001, False), (START, True), (None, True)):
        after = closed.told(breaker, "h", Effect.FAILURE, fraction=0.0, now=START + 30, began=began)
        assert bool(after.opened) is counts
    probing = BreakerState(opened=1, until=START, since=START - 5, probe="h", probe_until=START + 60)
    assert probing.told(breaker, "h", Effect.FAILURE, fraction=0.0, now=START + 1, began=START - 9).opened == 2, "a probe is heard"
