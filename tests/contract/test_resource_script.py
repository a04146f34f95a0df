"""The resources of the Redis scripts beside the policy: the same history, told the same time, must leave the same state.

The scripts are those of the store, but for the clock, which is a hash that the test writes. All times are multiples of an eighth of a
second and all windows powers of two, so that no result is rounded and every comparison must come out alike, at the very edges too.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from celery_guardrails.policy.breaker import FIRSTS_FIRST, CircuitBreaker, Condition, Effect
from celery_guardrails.policy.budget import RetryBudget
from celery_guardrails.policy.lease import ClaimState, StoredResult
from celery_guardrails.policy.occupancy import Occupancy
from celery_guardrails.policy.rate import Rate
from celery_guardrails.policy.resource import Ask, Resource, Tell
from celery_guardrails.policy.window import Window
from celery_guardrails.stores.redis import RedisStore
from celery_guardrails.stores.redis.runner import script_texts, sha_of
from tests.support import RedisServer

CLOCK = "redis.call('TIME')"
EXAMPLES = int(os.environ.get("GUARDRAILS_EXAMPLES", "25"))
#: Milliseconds since 1970 at which every history begins.
START = 1_900_000_000_000
TICK = 125
NAME = "res"
#: Stands for who probes, whoever that is.
PROBE = "?"


class ToldRunner:
    """Runs the store's scripts on a server, but by a clock that is told the time."""

    def __init__(self, client: Any, texts: dict[str, str], *, together: bool) -> None:
        self.together = together
        self.client, self.texts = client, {}
        for name, text in texts.items():
            assert text.count(CLOCK) <= 1
            self.texts[name] = text.replace(CLOCK, "redis.call('HMGET', 'clock', 's', 'us')")
            client.script_load(self.texts[name])

    def tell(self, milliseconds: int) -> None:
        self.client.hset("clock", mapping={"s": milliseconds // 1000, "us": milliseconds % 1000 * 1000})

    def run(self, name: str, key: str, *args: Any) -> Any:
        return self.client.evalsha(sha_of(self.texts[name]), 1, key, *args)

    def run_many(self, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [self.run(name, *call) for call in calls]


# -- histories --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Enter:
    holder: str
    attempts: int
    throttled: bool
    lease: int


@dataclass(frozen=True)
class Leave:
    holder: str
    effect: Effect
    eighths: int
    cost: float
    ago: int | None
    by: str


@dataclass(frozen=True)
class Hold:
    holder: str
    lease: int


@dataclass(frozen=True)
class Force:
    condition: Condition | None
    milliseconds: int


@dataclass(frozen=True)
class Step:
    """What happens so many ticks after the last thing, or after what is the next to end, by a program with these settings."""

    end: str
    ticks: int
    program: int
    what: Any


_window = st.sampled_from((1.0, 2.0, 4.0))
_breaker = st.builds(
    CircuitBreaker,
    failure_rate=st.sampled_from((0.25, 0.5, 1.0)),
    min_calls=st.sampled_from((1, 1, 2, 4)),
    window=_window,
    open_seconds=st.sampled_from((0.125, 0.5, 1.0)),
    max_open_seconds=st.sampled_from((1.0, 4.0)),
    probes=st.sampled_from((1, 2, 3)),
)
_budget = st.builds(
    RetryBudget,
    ratio=st.sampled_from((0.0, 0.25, 0.5, 1.0)),
    min_per_second=st.sampled_from((0.25, 0.5, 1.0)),
    window=_window,
    throttled_cost=st.sampled_from((1.0, 1.5, 2.0)),
)
_rate = st.builds(Rate, per_second=st.sampled_from((0.5, 1.0, 2.0, 4.0)), burst=st.sampled_from((1, 2, 2.5)))
_resource = st.builds(
    Resource,
    name=st.just(NAME),
    breaker=st.one_of(_breaker, _breaker, _breaker, st.none()),
    retry_budget=st.one_of(_budget, _budget, st.none()),
    max_concurrency=st.sampled_from((None, None, 1, 2, 3)),
    rate=st.one_of(st.none(), st.none(), _rate),
)
_holder = st.sampled_from(("a", "b", "c"))
_lease = st.sampled_from((125, 1000, 4000, 60_000, 60_000, 60_000))
_enter = st.builds(Enter, _holder, st.sampled_from((0, 1)), st.booleans(), _lease)
_effect = st.sampled_from((Effect.FAILURE, Effect.FAILURE, Effect.SUCCESS, Effect.SUCCESS, Effect.NEUTRAL))
_by = st.sampled_from(("tell", "release", "complete", "reset"))
_ago = st.sampled_from((None, 0, 1, 4, 16))
_leave = st.builds(Leave, st.one_of(st.just(PROBE), _holder), _effect, st.integers(0, 7), st.sampled_from((0.0, 1.0, 1.5)), _ago, _by)
_hold = st.builds(Hold, _holder, _lease)
_force = st.builds(Force, st.sampled_from((None, *Condition)), st.sampled_from((125, 1000, 4000)))
_end = st.sampled_from((*[""] * 6, "opened", "opened", "firsts", "probe", "slot", "slot", "forced", "arrival"))
_ticks = st.sampled_from((*[0] * 12, *[1] * 4, 2, 4, 7, 8, 9, 16, 24, 100, -1, -4))
_what = st.one_of(*[_enter] * 4, *[_leave] * 4, _hold, _force)
_steps = st.builds(Step, _end, _ticks, st.sampled_from((0, 0, 0, 0, 0, 1)), _what)
#: Programs with the resource's present and its next settings, and what they do.
histories = st.tuples(st.tuples(_resource, _resource), st.lists(_steps, min_size=30, max_size=50))


# -- the two side by side ---------------------------------------------------------------------------------------


def alike(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether all is the same; what is not whole is written with six digits, and a wait in whole milliseconds."""
    pairs = zip(ours, theirs, strict=False)
    near = (mine == other if isinstance(other, str) or other is None else abs(mine - other) < 1e-5 for mine, other in pairs)
    return len(ours) == len(theirs) and all(near)


class Pair:
    """The scripts and the policy."""

    def __init__(self, runner: ToldRunner) -> None:
        runner.client.flushdb()
        self.runner, self.store = runner, RedisStore(runner, namespace="ns")  # type: ignore[arg-type]
        self.policy, self.now, self.numbers = Occupancy(), START, itertools.count()

    def play(self, resources: Sequence[Resource], steps: Sequence[Step]) -> None:
        """Do it all on both sides.

        Raises:
            AssertionError: they differ.
        """
        for number, step in enumerate(steps):
            self.now = max(self.now, self._moment(step.end)) + step.ticks * TICK
            self.runner.tell(self.now)
            resource = resources[step.program]
            answers = getattr(self, f"_{type(step.what).__name__.lower()}")(resource, step.what)
            assert alike(*answers), (number, step, answers)
            assert alike(self.scripts_state(), self.policys_state()), (number, step, self.scripts_state(), self.policys_state())
            (seen,), right = self.store.view([resource]), self.policy.view(resource, self.now / 1000)
            assert alike(list(vars(seen).values()), list(vars(right).values())), (number, step, seen, right)

    def _moment(self, end: str) -> int:
        """When something ends; to the next whole tick."""
        breaker = self.policy.state.breaker
        moments = {
            "opened": breaker.until,
            "firsts": breaker.until + FIRSTS_FIRST,
            "probe": breaker.probe_until,
            "slot": min(self.policy.slots.values(), default=0.0),
            "forced": breaker.forced_until,
            "arrival": self.policy.state.arrival,
        }
        return math.ceil(1000 * moments.get(end, 0.0) / TICK) * TICK

    def _enter(self, resource: Resource, what: Enter) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        lease, asked = what.lease / 1000, Ask(resource, what.throttled)
        key = f"k{next(self.numbers)}"
        claim = self.store.claim(key, holder=what.holder, fingerprint=None, lease=lease, attempts=what.attempts, ask=asked)
        self.policy, refusal = self.policy.enter(asked, holder=what.holder, first=not what.attempts, lease=lease, now=self.now / 1000)
        if refusal is None:
            return (claim.state,), (ClaimState.CLAIMED,)
        return (claim.state, claim.why, round(1000 * claim.wait)), (ClaimState.REFUSED, refusal.why, round(1000 * refusal.wait))

    def _leave(self, resource: Resource, what: Leave) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        holder = (self.policy.state.breaker.probe or "a") if what.holder == PROBE else what.holder
        began = None if what.ago is None else (self.now - what.ago * TICK) / 1000
        told, key = Tell(resource, what.effect, what.eighths / 8, what.cost, began), f"k{next(self.numbers)}"
        if what.by == "tell":
            self.store.tell(told, holder=holder)
        elif what.by == "release":
            assert self.store.release(key, holder=holder, tell=told) is None
        elif what.by == "reset":
            assert not self.store.reset(key, holder=holder, tell=told)
        else:
            claim = self.store.claim(key, holder="another", fingerprint=None, lease=1.0)
            options: dict[str, Any] = {"fingerprint": None, "result": StoredResult(), "retention": 1.0}
            assert not self.store.complete(key, holder=holder, fence=claim.fence, tell=told, **options)
        self.policy = self.policy.leave(told, holder=holder, now=self.now / 1000)
        return (), ()

    def _hold(self, resource: Resource, what: Hold) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        self.store.hold([(NAME, what.holder)], what.lease / 1000)
        self.policy = self.policy.hold(what.holder, lease=what.lease / 1000, now=self.now / 1000)
        return (), ()

    def _force(self, resource: Resource, what: Force) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        self.store.force(NAME, what.condition, what.milliseconds / 1000)
        self.policy = self.policy.force(what.condition, what.milliseconds / 1000, self.now / 1000)
        return (), ()

    def scripts_state(self) -> list[Any]:
        """Everything that Redis has of the resource, in the policy's order."""
        text, slots = self.store._names(NAME)
        _, _, *fields = self.runner.run("state", text, text, slots, "", 0, 0, -1, b"")
        values: list[Any] = [*map(float, fields[:-2]), *(field.decode() for field in fields[-2:])]
        scores = {holder.decode(): score for holder, score in self.runner.client.zrange(slots, 0, -1, withscores=True)}
        return [*values, *itertools.chain(*sorted(scores.items()))]

    def policys_state(self) -> list[Any]:
        """The same of the policy."""
        state = self.policy.state
        breaker = state.breaker
        values: list[Any] = [breaker.opened, 1000 * breaker.until, 1000 * breaker.since, breaker.passed]
        values += [1000 * breaker.probe_until, 1000 * breaker.forced_until, 1000 * state.arrival]
        values.append(state.entered)
        for window in (breaker.calls, breaker.failures):
            values += self._window(window)
        values += [state.budget.missing, 1000 * state.budget.paid]
        values += [breaker.probe, breaker.forced.value if breaker.forced else ""]
        return [*values, *itertools.chain(*sorted((holder, 1000 * until) for holder, until in self.policy.slots.items()))]

    @staticmethod
    def _window(window: Window) -> list[float]:
        return [1000 * window.start, window.current, window.previous]


@pytest.fixture
def client(redis_server: RedisServer, redis_url: str) -> Iterator[Any]:
    with redis_server.client(int(redis_url.rpartition("/")[2])) as client:
        yield client


_quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], print_blob=True)


@pytest.mark.parametrize("together", [True, False], ids=["with the key's scripts", "by scripts of their own"])
def test_the_scripts_say_and_keep_what_the_policy_does(client: Any, together: bool) -> None:
    runner = ToldRunner(client, script_texts(), together=together)

    @settings(_quick, max_examples=EXAMPLES, derandomize="GUARDRAILS_EXAMPLES" not in os.environ)
    @given(histories)
    def play(history: tuple[Sequence[Resource], Sequence[Step]]) -> None:
        Pair(runner).play(*history)

    play()


#: What is in the scripts → what would be wrong: what is found out soon. ``make mutants`` tries the rest.
BROKEN = {
    "'+inf') >= most": "'+inf') > most",
    "'-inf', now)": "'-inf', now - 1)",
    "math.min(cost, size)": "cost",
}


@pytest.mark.parametrize("right", BROKEN)
def test_a_script_that_is_wrong_in_one_place_is_found_out(client: Any, right: str) -> None:
    texts = {name: text.replace(right, BROKEN[right]) for name, text in script_texts().items()}
    assert texts != script_texts()
    runner = ToldRunner(client, texts, together=True)

    def differs(history: tuple[Sequence[Resource], Sequence[Step]]) -> bool:
        try:
            Pair(runner).play(*history)
        except AssertionError:
            return True
        return False

    find(histories, differs, settings=settings(_quick, max_examples=1000, derandomize=True, database=None, phases=[Phase.generate]))
