"""What a deadline leaves of a task's time limits, as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.deadline import FLOOR, cut_time_limits

CUTS = [
    # hard, soft, remaining → hard, soft, whether the hard limit is the deadline
    (None, None, None, (None, None, False)),
    (60, 50, None, (60, 50, False)),
    # -- none of its own: the deadline is the hard limit, and there is no soft one
    (None, None, 20.0, (20.0, None, True)),
    (0, 0, 20.0, (20.0, 0, True)),
    # -- one that comes later is cut, one that comes earlier is kept
    (60, None, 20.0, (20.0, None, True)),
    (20, None, 20.0, (20, None, False)),
    (10, 5, 20.0, (10, 5, False)),
    (10, 50, 20.0, (10, 50, False)),
    # -- a soft one strikes before it
    (60, 50, 20.0, (20.0, 18.0, True)),
    (None, 50, 20.0, (20.0, 18.0, True)),
    (60, 5, 20.0, (20.0, 5, True)),
    # -- not below the floor
    (60, 50, 0.2, (FLOOR, 0.9, True)),
    (None, None, 0.2, (FLOOR, None, True)),
    (0.5, None, 0.2, (0.5, None, False)),
    # -- it has passed: what dead-letters the task is not to be killed
    (60, 50, 0.0, (60, 50, False)),
    (None, None, -5.0, (None, None, False)),
]


@pytest.mark.parametrize(("hard", "soft", "remaining", "expected"), CUTS)
def test_what_remains_of_the_limits(hard, soft, remaining, expected) -> None:
    assert cut_time_limits(hard, soft, remaining) == expected


def test_the_floor_is_the_documented_one() -> None:
    assert FLOOR == 1.0


seconds = st.none() | st.floats(0.1, 1e6)


@given(seconds, seconds, st.floats(0.001, 1e6))
def test_a_limit_is_never_longer_than_it_was_or_than_what_remains(hard: float | None, soft: float | None, remaining: float) -> None:
    new_hard, new_soft, cut = cut_time_limits(hard, soft, remaining)
    assert new_hard is not None
    assert new_hard <= (hard or float("inf"))
    assert new_hard <= max(FLOOR, remaining + 0.001)
    assert cut == (new_hard != hard)
    assert (new_soft is None) == (soft is None)
    assert new_soft is None or (soft is not None and new_soft <= soft)
    assert new_soft is None or not cut or new_soft < new_hard
