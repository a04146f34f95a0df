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


def after(firsts: int, budget: RetryBudget = BUDGET, now: float = START) -> BudgetState:
    state = BudgetState()
    for _ in range(firsts):
        state = state.paid(budget, now)
    return state


def retries(state: BudgetState, cost: float = 1.0, budget: RetryBudget = BUDGET, now: float = START) -> tuple[int, BudgetState]:
    """Return how many retries go at once, and the state after them."""
    gone = 0
    while state.affords(budget, cost, now):
        state, gone = state.taken(budget, cost, now), gone + 1
        assert gone < 100_000
    return gone, state


@pytest.mark.parametrize(
    ("firsts", "allowed"),
    [
        (0, 10),  # the floor: one a second for ten seconds
        (99, 10),
        (100, 10),  # the larger of the two, not their sum
        (110, 11),
        (1000, 100),
        (1009, 100),
    ],
)
def test_retries_are_a_tenth_of_the_first_attempts_but_one_a_second_always(firsts: int, allowed: int) -> None:
    assert retries(after(firsts))[0] == allowed


def test_a_throttled_attempt_costs_two() -> None:
    assert retries(after(0), cost=BUDGET.throttled_cost)[0] == 5


def test_tokens_come_back_as_the_window_moves_on() -> None:
    _, spent = retries(after(0))
    assert not spent.affords(BUDGET, 1.0, START + 10.9)
    assert spent.affords(BUDGET, 1.0, START + 11.0)  # a tenth of the ten has gone
    assert retries(spent, now=START + 20.0)[0] == 10


def test_what_is_left_is_what_retries_may_take() -> None:
    state = after(1000)
    assert state.left(BUDGET, START) == 100.0
    assert state.taken(BUDGET, 2.0, START).left(BUDGET, START) == 98.0
    poorer = RetryBudget(ratio=0.01)  # settings that a deploy has changed
    assert retries(state)[1].left(poorer, START) == 0.0


def test_what_costs_more_than_there_ever_is_may_go_once_nothing_was_spent() -> None:
    small = RetryBudget(min_per_second=0.05, throttled_cost=4.0)
    state = BudgetState()
    assert state.affords(small, 4.0, START)
    state = state.taken(small, 4.0, START)
    assert not state.affords(small, 1.0, START + 19.9)
    assert state.affords(small, 1.0, START + 20.0)


def test_a_ratio_of_nothing_leaves_the_floor() -> None:
    assert retries(after(1000), budget=RetryBudget(ratio=0, min_per_second=2))[0] == 10 + 10


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
                    state, firsts = state.paid(BUDGET, at), firsts + 1
                elif state.affords(BUDGET, cost, at):
                    state, spent = state.taken(BUDGET, cost, at), spent + cost
                assert state.spent.start == state.firsts.start
            now += 1.0
    return now - START, firsts, spent


@settings(max_examples=40)
@given(stretches)
def test_never_more_is_spent_than_the_tenth_and_the_floor_together(traffic: list[tuple[int, int, int, float]]) -> None:
    seconds, firsts, spent = spend(traffic)
    assert spent <= BUDGET.ratio * firsts + BUDGET.min_per_second * (seconds + BUDGET.window) + 1e-6


@settings(max_examples=40)
@given(stretches)
def test_above_ten_first_attempts_a_second_the_calls_stay_at_a_tenth_more(traffic: list[tuple[int, int, int, float]]) -> None:
    _, firsts, spent = spend([(seconds, max(10, first), retry, cost) for seconds, first, retry, cost in traffic])
    # the first window is spared its floor before there was any traffic: ten tokens, once
    assert firsts + spent <= 1.1 * firsts + BUDGET.min_per_second * BUDGET.window + 1e-6


def test_a_burst_pays_for_its_tenth_once() -> None:
    """What was spent late in a window and what paid for it early in one fade together, or the half of it would be spent again."""
    state = BudgetState().taken(BUDGET, 1.0, START)
    for _ in range(1000):
        state = state.paid(BUDGET, START + 15.1)
    spent = 0
    for seconds in (19.9, 25.0, 29.9):
        gone, state = retries(state, now=START + seconds)
        spent += gone
    assert spent <= 100 + 10  # the floor, once the burst is out of the window


def test_a_steady_outage_of_every_call_is_amplified_by_a_tenth() -> None:
    _, firsts, spent = spend([(60, 50, 500, 1.0)])
    assert 1.08 <= (firsts + spent) / firsts <= 1.1


@given(st.floats(-1e5, 1e5), st.integers(0, 500), st.integers(1, 200))
def test_a_clock_that_jumps_keeps_nobody_waiting_for_more_than_two_windows(jump: float, firsts: int, spent: int) -> None:
    state = after(firsts)
    for _ in range(spent):
        state = state.taken(BUDGET, 1.0, START)
    assert 0.0 <= state.left(BUDGET, START + jump) <= state.allowance(BUDGET, START + jump)
    now = START + jump
    while not state.affords(BUDGET, 1.0, now):
        now += 1.0
        assert now - START - jump <= 3 * BUDGET.window


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
