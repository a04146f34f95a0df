"""A thousand tasks that fail at one instant do not come back together.

A range of R seconds is cut into twenty windows. Of a thousand even draws a window gets 50 on average with a standard deviation
of sqrt(1000 * 1/20 * 19/20) = 6.9; more than 100, over seven deviations, happens by chance less than once in 10**10 runs.
Chance is seeded, so a run that fails fails again.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from celery_guardrails.policy.retry import RetryPolicy

TASKS = 1000
WINDOWS = 20
MOST = 100
SPREADING = ("full", "equal", "decorrelated")

seeds = st.integers(0, 2**32)


def crowd(waits: list[float], low: float, high: float) -> int:
    """Return how many fall into the fullest of the windows between ``low`` and ``high``."""
    width = (high - low) / WINDOWS
    return max(Counter(int((wait - low) / width) for wait in waits).values())


@settings(deadline=None)
@given(seeds, st.sampled_from(["full", "equal"]), st.integers(1, 12))
def test_at_every_attempt_they_are_spread_over_the_whole_range(seed: int, jitter: str, attempt: int) -> None:
    policy, chance = RetryPolicy(jitter=jitter), Random(seed)
    waits = [policy.delay(attempt, chance.random()) for _ in range(TASKS)]
    high = policy.step(attempt)
    assert crowd(waits, high / 2 if jitter == "equal" else 0.0, high) <= MOST


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_decorrelated_waits_stay_spread_for_twelve_failures_and_do_not_gather_at_the_cap(seed: int) -> None:
    policy, chance = RetryPolicy(jitter="decorrelated"), Random(seed)
    waits = [policy.base] * TASKS
    for attempt in range(1, 13):
        waits = [policy.delay(attempt, chance.random(), previous=wait) for wait in waits]
        # no even draw, as each has a range of its own: small waits are more frequent
        assert len({round(wait, 6) for wait in waits}) > TASKS * 0.99
        assert sum(wait > policy.cap * 0.99 for wait in waits) <= MOST
    assert sum(waits) / TASKS > 60, "they grow with the waits before them"


@settings(deadline=None)
@given(seeds, st.sampled_from(SPREADING), st.integers(1, 12), st.sampled_from([1.0, 5.0, 60.0, 300.0, 540.0]))
def test_told_the_same_time_they_come_no_earlier_and_over_as_long_again_up_to_the_cap(
    seed: int, jitter: str, attempt: int, asked: float
) -> None:
    policy, chance = RetryPolicy(jitter=jitter), Random(seed)
    waits = [policy.delay(attempt, chance.random(), previous=2.0, retry_after=asked) for _ in range(TASKS)]
    assert min(waits) >= asked
    assert max(waits) <= policy.cap
    assert crowd(waits, asked, min(policy.cap, 2 * asked)) <= MOST


@settings(deadline=None)
@given(seeds, st.sampled_from(SPREADING), st.integers(1, 12), st.sampled_from([600.0, 601.0, 3600.0, 1e9]))
def test_told_to_wait_as_long_as_the_cap_or_longer_they_come_over_its_last_tenth(
    seed: int, jitter: str, attempt: int, asked: float
) -> None:
    policy, chance = RetryPolicy(jitter=jitter), Random(seed)
    waits = [policy.delay(attempt, chance.random(), retry_after=asked) for _ in range(TASKS)]
    assert 540.0 <= min(waits) <= max(waits) <= policy.cap
    assert crowd(waits, 540.0, 600.0) <= MOST
    fullest_second = max(Counter(int(wait) for wait in waits).values())
    assert fullest_second <= 50, "17 on average"


def test_a_short_wish_does_not_use_up_the_attempts_of_a_long_outage() -> None:
    """A proxy that answers 503 with ``Retry-After: 1`` for a minute: the policy's own steps go on growing."""
    policy, chance = RetryPolicy(), Random(1)
    for _ in range(TASKS):
        waited = sum(policy.delay(attempt, chance.random(), retry_after=1.0) for attempt in range(1, policy.max_attempts))
        assert waited > 120


def test_processes_that_were_forked_from_one_draw_for_themselves() -> None:
    script = (
        "import os\n"
        "from celery_guardrails.integration.clock import SystemClock\n"
        "clock = SystemClock()\n"
        "for _ in range(10):\n"
        "    if os.fork() == 0:\n"
        "        os.write(1, f'{clock.fraction()}\\n'.encode()); os._exit(0)\n"
        "    os.wait()\n"
    )
    drawn = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(set(drawn)) == 10
