"""The count over the last seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.window import Window

LENGTH = 10.0
START = 1_700_000_000.0
lengths = st.floats(1, 3600)
#: Seconds from one count to the next, and what is counted.
steps = st.lists(st.tuples(st.floats(0, 30), st.sampled_from([0.0, 1.0, 2.0])), max_size=60)


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        (0.0, 8.0),
        (9.999, 8.0),  # the present bucket counts whole
        (10.0, 8.0),
        (12.5, 6.0),  # of the one before, what the window still covers
        (15.0, 4.0),
        (17.5, 2.0),
        (20.0, 0.0),
        (1e6, 0.0),
    ],
)
def test_what_was_counted_fades_while_the_next_bucket_passes(seconds: float, count: float) -> None:
    window = Window().add(8.0, START, LENGTH)
    assert window.count(START + seconds, LENGTH) == pytest.approx(count)


def test_at_first_nothing_was_counted() -> None:
    assert Window() == Window(start=0.0, current=0.0, previous=0.0)


def test_both_buckets_are_counted() -> None:
    window = Window().add(8.0, START, LENGTH).add(3.0, START + 15.0, LENGTH)
    assert window == Window(START + 10.0, 3.0, 8.0)
    assert window.count(START + 15.0, LENGTH) == 3.0 + 4.0


def test_a_pause_longer_than_both_buckets_leaves_nothing() -> None:
    window = Window().add(8.0, START, LENGTH).add(1.0, START + 25.0, LENGTH)
    assert window == Window(START + 25.0, 1.0, 0.0)


def test_a_clock_that_begins_at_nothing_counts_as_well() -> None:
    window = Window().add(1.0, 0.0, LENGTH).add(1.0, 4.0, LENGTH)
    assert window.count(4.0, LENGTH) == 2.0


@given(lengths, st.integers(1, 200))
def test_steady_traffic_is_counted_exactly_but_for_one(length: float, per_window: int) -> None:
    window, now = Window(), START
    for _ in range(3 * per_window):
        window = window.add(1.0, now, length)
        now += length / per_window
    assert window.count(now, length) == pytest.approx(per_window, abs=1.01)


@given(lengths, steps)
def test_the_count_lies_between_that_of_the_bucket_and_that_of_two_windows(length: float, counted: list[tuple[float, float]]) -> None:
    window, now, log = Window(), START, [(START, 0.0)]
    for seconds, amount in counted:
        now += seconds
        window = window.add(amount, now, length)
        log.append((now, amount))
    of_two = sum(amount for at, amount in log if at > now - 2 * length * (1 + 1e-6))
    assert 0.0 <= window.current <= window.count(now, length) <= of_two + 1e-6


@given(lengths, steps, st.floats(0, 100), st.floats(0, 100))
def test_with_nothing_counted_it_only_falls_and_ends_at_nothing(
    length: float, counted: list[tuple[float, float]], first: float, second: float
) -> None:
    window, now = Window(), START
    for seconds, amount in counted:
        now += seconds
        window = window.add(amount, now, length)
    before, after = window.count(now + first, length), window.count(now + first + second, length)
    assert after <= before + 1e-6
    # exactly nothing: what costs more than a budget ever has waits for that
    assert window.count(now + 2 * length + 0.001, length) == 0.0


@given(st.floats(0, LENGTH))
def test_a_clock_that_goes_back_within_the_window_forgets_nothing(back: float) -> None:
    window = Window().add(5.0, START, LENGTH).add(3.0, START + LENGTH, LENGTH)
    assert window.count(START + LENGTH - back, LENGTH) == 8.0
    assert window.add(1.0, START + LENGTH - back, LENGTH).count(START + LENGTH, LENGTH) == 9.0


@given(st.floats(2 * LENGTH, 1e6))
def test_a_clock_that_goes_back_further_begins_anew_instead_of_growing_until_it_is_there_again(back: float) -> None:
    window = Window().add(5.0, START, LENGTH)
    assert window.count(START - back, LENGTH) == 0.0
    window = window.add(1.0, START - back, LENGTH)
    assert window.count(START - back, LENGTH) == 1.0
    assert window.count(START - back + 2 * LENGTH, LENGTH) == 0.0
