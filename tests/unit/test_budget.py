"""The retry budget: what first attempts pay in and retries take out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.budget import BudgetState, RetryBudget, is_number

START = 1_700_000_000.0
BUDGET = RetryBudget()


def after(firsts: int, budget: RetryBudget = BUDGET, now: float = START, state: BudgetState | None = None) -> BudgetState:
    state = state or BudgetState()
    for _ in range(firsts):
        state = state.after_first(budget, now)
    return state


def retries(state: BudgetState, cost: float = 1.0, budget: RetryBudget = BUDGET, now: float = START) -> tuple[int, BudgetState]:
    """Return how many retries go at once, and the state after them."""
    gone = 0
    while state.affords(budget, cost, now):
        state, gone = state.after_retry(budget, cost, now), gone + 1
        assert gone < 100_000
    return gone, state


def test_the_bucket_is_full_at_first_and_holds_the_floor_of_a_window() -> None:
    assert BUDGET.size == 10.0
    assert BudgetState().left(BUDGET, START) == 10.0
    assert retries(BudgetState())[0] == 10


@pytest.mark.parametrize(("firsts", "allowed"), [(1, 0), (9, 0), (10, 1), (19, 1), (20, 2)])
def test_first_attempts_pay_for_a_tenth_of_a_retry_each(firsts: int, allowed: int) -> None:
    _, empty = retries(BudgetState())
    assert retries(after(firsts, state=empty))[0] == allowed


@pytest.mark.parametrize(("seconds", "allowed"), [(0.9, 0), (1.0, 1), (5.5, 5), (10.0, 10), (1e6, 10)])
def test_one_a_second_comes_back_without_any_first_attempt(seconds: float, allowed: int) -> None:
    _, empty = retries(BudgetState())
    assert retries(empty, now=START + seconds)[0] == allowed


@pytest.mark.parametrize(
    ("firsts_a_second", "allowed"),
    [
        (0, 10),
        (5, 10),  # a half of the floor's time is paid for by them: the larger of the two, not their sum
        (10, 10),
        (20, 20),
        (100, 100),
    ],
)
def test_the_larger_of_floor_and_tenth_counts(firsts_a_second: int, allowed: int) -> None:
    _, state = retries(BudgetState())
    gone = 0
    for second in range(10):
        for n in range(firsts_a_second):
            at = START + second + n / firsts_a_second
            state = state.after_first(BUDGET, at)
            more, state = retries(state, now=at)
            gone += more
        more, state = retries(state, now=START + second + 0.999)
        gone += more
    more, _ = retries(state, now=START + 10.0)
    assert gone + more == allowed


def test_the_time_that_first_attempts_have_paid_for_is_at_most_a_window() -> None:
    _, state = retries(after(1000))
    assert retries(state, now=START + 10.9)[0] == 0
    assert retries(state, now=START + 11.0)[0] == 1


@pytest.mark.parametrize(
    ("firsts", "left"),
    [
        (0, 10.0),
        (10, 9.0),  # a second is paid for that way, and the token that the floor had for it lapses
        (50, 5.0),
        (80, 2.0),
        (10_000, 2.0),  # for the dearest retry at the least
    ],
)
def test_a_fleet_that_has_done_well_has_no_crowd_of_retries_to_spare_when_the_resource_dies(firsts: int, left: float) -> None:
    assert after(firsts).left(BUDGET, START) == pytest.approx(left, abs=1e-4)


def test_what_lapsed_is_saved_up_again_when_first_attempts_are_few() -> None:
    state = after(10_000)
    assert state.left(BUDGET, START + 10.0) == pytest.approx(2.0, abs=1e-4)
    assert state.left(BUDGET, START + 15.0) == pytest.approx(7.0, abs=1e-4)
    assert state.left(BUDGET, START + 18.0) == pytest.approx(10.0, abs=1e-4)
    assert after(1, now=START + 30.0, state=state).left(BUDGET, START + 30.0) == pytest.approx(9.9, abs=1e-4)


def test_the_time_that_a_first_attempt_pays_for_is_what_the_floor_takes_for_the_same() -> None:
    budget = RetryBudget(min_per_second=2)
    state = after(10, budget)  # a token, and half a second of the floor's time
    assert state.left(budget, START) == pytest.approx(19.0, abs=1e-4)
    assert state.left(budget, START + 0.5) == pytest.approx(19.0, abs=1e-4)
    assert state.left(budget, START + 0.75) == pytest.approx(19.5, abs=1e-4)


def test_a_bucket_that_holds_less_than_the_dearest_retry_lapses_by_nothing() -> None:
    budget = RetryBudget(window=1, throttled_cost=3)
    assert after(1000, budget).left(budget, START) == 1.0


def test_a_bucket_is_full_and_paid_for_by_nobody_at_first() -> None:
    assert BudgetState() == BudgetState(missing=0.0, paid=0.0)


@pytest.mark.parametrize(("ahead", "paid"), [(11.0, 11.0), (11.5, 0.0)])
def test_more_than_a_window_and_a_second_ahead_is_a_clock_set_back(ahead: float, paid: float) -> None:
    assert BudgetState(5.0, START + ahead).at(BUDGET, START) == BudgetState(5.0, START + paid)


def test_a_throttled_attempt_costs_two() -> None:
    assert retries(after(0), cost=BUDGET.throttled_cost)[0] == 5


def test_what_is_left_is_what_retries_may_take() -> None:
    state = BudgetState().after_retry(BUDGET, 2.0, START)
    assert state.left(BUDGET, START) == 8.0
    assert state.left(BUDGET, START + 1.0) == 9.0
    assert state.left(BUDGET, START + 60.0) == 10.0
    smaller = RetryBudget(window=1)  # settings that a deploy has changed
    assert state.left(smaller, START) == 0.0


def test_what_costs_more_than_the_bucket_holds_may_go_when_it_is_full_and_is_paid_back() -> None:
    small = RetryBudget(min_per_second=0.05, throttled_cost=4.0)
    state = BudgetState()
    assert state.affords(small, 4.0, START)
    state = state.after_retry(small, 4.0, START)
    assert state.left(small, START) == 0.0
    assert not state.affords(small, 1.0, START + 79.9)
    assert state.affords(small, 1.0, START + 80.0)  # four at 0.05 a second


def test_a_ratio_of_nothing_leaves_the_floor() -> None:
    budget = RetryBudget(ratio=0, min_per_second=2)
    gone, state = retries(after(1000, budget), budget=budget)
    assert gone == 20  # nothing was paid for in its place
    assert retries(state, budget=budget, now=START + 3.0)[0] == 6


#: Stretches of traffic: seconds, first attempts a second, retries that ask a second, what one costs.
stretches = st.lists(
    st.tuples(st.integers(1, 15), st.integers(0, 40), st.integers(0, 40), st.sampled_from([1.0, 2.0])), min_size=1, max_size=6
)


def spend(traffic: list[tuple[int, int, int, float]]) -> tuple[float, int, float]:
    """Return the seconds, the first attempts and the tokens spent."""
    state, now, firsts, spent = BudgetState(), START, 0, 0.0
    for seconds, first_rate, retry_rate, cost in traffic:
        for _ in range(seconds):
            events = sorted([(i / first_rate, True) for i in range(first_rate)] + [(i / retry_rate, False) for i in range(retry_rate)])
            for offset, first in events:
                at = now + offset
                if first:
                    state, firsts = state.after_first(BUDGET, at), firsts + 1
                elif state.affords(BUDGET, cost, at):
                    state, spent = state.after_retry(BUDGET, cost, at), spent + cost
                assert 0.0 <= state.missing <= BUDGET.size + 1e-6
            now += 1.0
    return now - START, firsts, spent


@settings(max_examples=40)
@given(stretches)
def test_never_more_is_spent_than_the_tenth_and_the_floor_together(traffic: list[tuple[int, int, int, float]]) -> None:
    seconds, firsts, spent = spend(traffic)
    assert spent <= BUDGET.ratio * firsts + BUDGET.min_per_second * seconds + BUDGET.size + 1e-6


@settings(max_examples=40)
@given(stretches)
def test_above_ten_first_attempts_a_second_the_calls_stay_at_a_tenth_more(traffic: list[tuple[int, int, int, float]]) -> None:
    _, firsts, spent = spend([(seconds, max(10, first), retry, cost) for seconds, first, retry, cost in traffic])
    # and what was in the bucket: ten tokens, once
    assert firsts + spent <= 1.1 * firsts + BUDGET.size + 1e-6


def test_a_steady_outage_of_every_call_is_amplified_by_a_tenth() -> None:
    _, firsts, spent = spend([(60, 50, 500, 1.0)])
    assert 1.09 * firsts <= firsts + spent <= 1.1 * firsts + BUDGET.size


def test_an_outage_after_good_times_is_amplified_by_a_tenth() -> None:
    _, _, before = spend([(20, 50, 0, 1.0)])
    _, firsts, spent = spend([(20, 50, 0, 1.0), (5, 50, 500, 1.0)])
    assert before == 0
    assert spent <= 0.1 * (firsts - 20 * 50) + BUDGET.throttled_cost


@given(st.floats(-1e5, 1e5), st.integers(0, 500), st.integers(1, 10))
def test_a_clock_that_jumps_keeps_nobody_waiting_for_long(jump: float, firsts: int, spent: int) -> None:
    state = after(firsts)
    for _ in range(spent):
        state = state.after_retry(BUDGET, 1.0, START)
    now = START + jump
    assert 0.0 <= state.left(BUDGET, now) <= BUDGET.size
    while not state.affords(BUDGET, 1.0, now):
        state, now = state.at(BUDGET, now), now + 1.0
        assert now - START - jump <= 2 * BUDGET.window + 3.0


def test_a_clock_set_back_far_begins_to_pay_anew() -> None:
    _, empty = retries(after(1000))
    state = empty.after_first(BUDGET, START - 3600.0)
    assert state.missing == pytest.approx(empty.missing - 0.1)
    for _ in range(9):
        state = state.after_first(BUDGET, START - 3600.0)
    assert state.affords(BUDGET, 1.0, START - 3600.0)
    assert retries(state, now=START - 3600.0 + 5.0)[0] == 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": 1.5}, r"RetryBudget\(ratio=1.5\): a number from 0 to 1 is allowed"),
        ({"ratio": -0.1}, r"RetryBudget\(ratio=-0.1\)"),
        ({"ratio": "0.1"}, r"RetryBudget\(ratio='0.1'\)"),
        ({"ratio": True}, r"RetryBudget\(ratio=True\)"),
        ({"ratio": float("nan")}, r"RetryBudget\(ratio=nan\)"),
        ({"min_per_second": 0}, r"RetryBudget\(min_per_second=0\): a number above 0 is allowed"),
        ({"min_per_second": float("inf")}, r"RetryBudget\(min_per_second=inf\)"),
        ({"window": 0.5}, r"RetryBudget\(window=0.5\): a number of seconds of at least 1 is allowed"),
        ({"window": None}, r"RetryBudget\(window=None\)"),
        ({"throttled_cost": 0.5}, r"RetryBudget\(throttled_cost=0.5\): a number of at least 1 is allowed"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=text):
        RetryBudget(**options)


def test_the_edges_are_allowed() -> None:
    RetryBudget(ratio=0, min_per_second=1e-6, window=1, throttled_cost=1)
    RetryBudget(ratio=1)


@pytest.mark.parametrize(
    ("value", "is_one"), [(0, True), (1.5, True), (10**400, True), (-1, False), (True, False), ("1", False), (None, False)]
)
def test_what_a_number_is(value: object, is_one: bool) -> None:
    assert is_number(value) is is_one


def test_a_retry_that_succeeds_gets_back_what_it_cost() -> None:
    _, empty = retries(BudgetState())
    paid_back = empty.after_success(BUDGET, 1.0, START)
    assert paid_back.left(BUDGET, START) == pytest.approx(1.0)
    assert retries(empty.after_success(BUDGET, 2.0, START))[0] == 2
    assert retries(empty.after_success(BUDGET, 99.0, START))[0] == 10, "and no more than the bucket holds"


def test_what_lapsed_is_not_paid_back() -> None:
    busy = after(10_000)
    _, empty = retries(busy)
    assert empty.after_success(BUDGET, 10.0, START).left(BUDGET, START) == pytest.approx(busy.left(BUDGET, START))


def test_where_all_retries_succeed_any_number_goes_one_after_the_other() -> None:
    _, state = retries(BudgetState())
    state = state.after_success(BUDGET, 1.0, START)
    for _ in range(1000):
        assert state.affords(BUDGET, 1.0, START)
        state = state.after_retry(BUDGET, 1.0, START).after_success(BUDGET, 1.0, START)
