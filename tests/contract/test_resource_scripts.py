"""The resource in Lua against the policy, step by step, at moments of our choosing: the contract cannot set the server's clock."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_guardrails.policy.breaker import CircuitBreaker, Condition, Effect
from celery_guardrails.policy.budget import RetryBudget
from celery_guardrails.policy.occupancy import Occupancy
from celery_guardrails.policy.rate import Rate
from celery_guardrails.policy.resource import Ask, Resource, Tell
from celery_guardrails.stores.redis import resources as redis_resources
from celery_guardrails.stores.redis.runner import script_texts
from tests.support import RedisServer

START = 1_700_000_000_000
#: Seconds, more than any example takes: when exactly a slot is cleared away that has ended, the stores may choose.
LEASE = 1e6
CLOCK = "local time = redis.call('TIME')\nlocal now_us = time[1] * 1000000 + time[2]\n"

RESOURCES = [
    Resource("r"),
    Resource("r", breaker=CircuitBreaker(failure_rate=0.3, min_calls=2, window=7, open_seconds=3, max_open_seconds=11, probes=1)),
    Resource("r", breaker=None, retry_budget=RetryBudget(ratio=0.23, min_per_second=0.3, window=7, throttled_cost=2.5)),
    Resource("r", retry_budget=None, max_concurrency=2, rate=Rate(0.7, burst=3)),
    Resource("r", breaker=CircuitBreaker(min_calls=3), max_concurrency=3, rate=Rate(5.0)),
]
holders = st.sampled_from("abcdef")
#: Milliseconds, of no round number: where a sum falls on its bound exactly, rounding decides.
waits = st.integers(0, 30).map(lambda n: 7 * n) | st.integers(0, 30).map(lambda n: 997 * n) | st.just(-313) | st.just(-3_600_007)
steps = st.one_of(
    st.tuples(st.just("enter"), waits, holders, st.booleans(), st.booleans()),
    st.tuples(st.just("enter"), waits, holders, st.booleans(), st.booleans()),
    st.tuples(st.just("leave"), waits, holders, st.sampled_from(list(Effect)), st.sampled_from([0.0, 0.37, 0.93])),
    st.tuples(st.just("call"), waits, holders, st.sampled_from(list(Effect)), st.integers(1, 6)),
    # an outage: so many failures that it opens, and probes when it is half-open
    st.tuples(st.just("call"), waits, holders, st.just(Effect.FAILURE), st.integers(10, 12)),
    st.tuples(st.just("call"), st.sampled_from([6_007, 13_007, 40_009]), holders, st.sampled_from(list(Effect)), st.integers(1, 2)),
    st.tuples(st.just("hold"), waits, holders),
    st.tuples(st.just("force"), waits, st.sampled_from([None, Condition.OPEN, Condition.CLOSED]), st.integers(1, 40)),
)


class Scripts:
    """The scripts as they are, but for the clock, which is the second of their keys."""

    def __init__(self, client: Any) -> None:
        self.client, self.name = client, f"x{uuid.uuid4().hex}"
        self.texts = {}
        for name in ("enter", "leave", "hold", "force", "state"):
            text = script_texts()[name]
            assert CLOCK in text
            self.texts[name] = text.replace(CLOCK, "local now_us = 1000 * tonumber(KEYS[2])\n")

    def run(self, name: str, now: int, *arguments: Any, resource: Resource, word: Any = "", fraction: float = 0) -> Any:
        words = (self.name, f"{self.name}:slots", word, fraction, redis_resources._settings(resource))
        return self.client.eval(self.texts[name], 2, self.name, now, *arguments, *words)


@pytest.fixture
def client(redis_server: RedisServer, redis_url: str) -> Iterator[Any]:
    with redis_server.client(int(redis_url.rpartition("/")[2])) as client:
        yield client


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(resource=st.sampled_from(RESOURCES), script=st.lists(steps, min_size=5, max_size=30))
def test_redis_does_what_the_policy_says(client: Any, resource: Resource, script: list[tuple[Any, ...]]) -> None:
    scripts, occupancy, now = Scripts(client), Occupancy(), START
    for what, wait, *rest in script:
        now += wait
        seconds = now / 1000
        if what == "enter":
            holder, first, throttled = rest
            occupancy = enter(scripts, occupancy, resource, holder, first, throttled, now)
        elif what == "leave":
            holder, effect, fraction = rest
            occupancy = leave(scripts, occupancy, resource, holder, effect, fraction, now)
        elif what == "call":
            holder, effect, times = rest
            for _ in range(times):
                occupancy = enter(scripts, occupancy, resource, holder, True, False, now)
                now += 7
                occupancy = leave(scripts, occupancy, resource, holder, effect, 0.5, now)
        elif what == "hold":
            occupancy = occupancy.hold(rest[0], lease=LEASE, now=seconds)
            scripts.run("hold", now, rest[0], int(1000 * LEASE), resource=resource)
        else:
            condition, length = rest
            occupancy = occupancy.force(condition, float(length), seconds)
            scripts.run("force", now, condition.value if condition else "", 1000 * length, resource=resource)
        agree(scripts, occupancy, resource, now)


def enter(scripts: Scripts, occupancy: Occupancy, resource: Resource, holder: str, first: bool, throttled: bool, now: int) -> Occupancy:
    asked = Ask(resource, throttled)
    after, refusal = occupancy.enter(asked, holder=holder, first=first, lease=LEASE, now=now / 1000)
    answer = scripts.run("enter", now, holder, int(first), int(1000 * LEASE), resource=resource, word=asked.cost)
    if refusal is None:
        assert answer == b"in"
    else:
        assert answer[0].decode() == refusal.why
        assert int(answer[1]) / 1000 == pytest.approx(refusal.wait, abs=0.002)
    return after


def leave(
    scripts: Scripts, occupancy: Occupancy, resource: Resource, holder: str, effect: Effect, fraction: float, now: int
) -> Occupancy:
    scripts.run("leave", now, holder, resource=resource, word=effect.value, fraction=fraction)
    return occupancy.leave(Tell(resource, effect, fraction), holder=holder, now=now / 1000)


def agree(scripts: Scripts, occupancy: Occupancy, resource: Resource, now: int) -> None:
    seen = redis_resources._view(resource, scripts.run("state", now, resource=resource))
    expected = occupancy.view(resource, now / 1000)
    for name, value in vars(expected).items():
        assert getattr(seen, name) == (pytest.approx(value, abs=0.003) if isinstance(value, float) else value), name
