"""A resource: what an execution asks of it before it begins, tells it when it has ended, and what people see of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.breaker import FIRSTS_FIRST, PROBE_WAIT, BreakerState, CircuitBreaker, Condition, Effect
from celery_guardrails.policy.budget import BudgetState, RetryBudget
from celery_guardrails.policy.rate import Rate
from celery_guardrails.policy.resource import Ask, Refusal, Resource, ResourceState, ResourceView, Tell, ask, tell, view

START = 1_700_000_000.0
LEASE = 60.0
PLAIN = Resource("payments")
BARE = Resource("payments", retry_budget=None, breaker=None)
LIMITED = Resource("payments", max_concurrency=3, rate=Rate(10.0, burst=2))


def asked(
    state: ResourceState,
    resource: Resource = PLAIN,
    *,
    holder: str = "h",
    first: bool = True,
    running: int = 0,
    now: float = START,
    throttled: bool = False,
) -> tuple[ResourceState, Refusal | None]:
    return ask(state, Ask(resource, throttled), holder=holder, first=first, lease=LEASE, running=running, now=now)


def told(state: ResourceState, effect: Effect, resource: Resource = PLAIN, *, holder: str = "h", now: float = START) -> ResourceState:
    return tell(state, Tell(resource, effect), holder=holder, now=now)


def opened(resource: Resource = PLAIN) -> ResourceState:
    state = ResourceState()
    for _ in range(10):
        state = told(state, Effect.FAILURE, resource)
    return state


def broke(now: float = START) -> ResourceState:
    """Return a state whose retry budget is spent."""
    budget = BudgetState()
    for _ in range(10):
        budget = budget.after_retry(RetryBudget(), 1.0, now)
    return ResourceState(budget=budget)


# -- asking ---------------------------------------------------------------------------------------------------------


def test_a_first_attempt_pays_into_the_budget_and_a_retry_takes_out_of_it() -> None:
    state, refusal = asked(ResourceState(), first=False)
    assert refusal is None
    assert state.budget.missing == 1.0
    state, refusal = asked(state, first=False, throttled=True)
    assert state.budget.missing == 3.0
    state, refusal = asked(state)
    assert state.budget.missing == 2.9


@pytest.mark.parametrize(
    ("state", "resource", "first", "running", "refusal"),
    [
        (opened(), PLAIN, True, 0, Refusal("breaker", 5.0)),
        (opened(), PLAIN, False, 0, Refusal("breaker", 5.0)),
        (broke(), PLAIN, False, 0, Refusal("budget", 0.5)),
        (broke(), PLAIN, True, 0, None),  # first attempts need no token
        (ResourceState(), LIMITED, True, 2, None),
        (ResourceState(), LIMITED, True, 3, Refusal("slots", 0.5)),
        (ResourceState(), LIMITED, True, 4, Refusal("slots", 0.5)),  # a deploy has lowered the limit
        (ResourceState(arrival=START + 0.2), LIMITED, True, 0, Refusal("rate", 0.1)),
        (ResourceState(arrival=START + 0.1), LIMITED, True, 0, None),
        (ResourceState(arrival=START + 0.2), PLAIN, True, 1000, None),  # limits that it does not have
        (opened(), BARE, False, 1000, None),
        (replace(opened(), budget=broke().budget, arrival=START + 0.2), LIMITED, False, 3, Refusal("breaker", 5.0)),
        (replace(broke(), arrival=START + 0.2), LIMITED, False, 3, Refusal("budget", 0.5)),
        (replace(ResourceState(), arrival=START + 0.2), LIMITED, False, 3, Refusal("slots", 0.5)),
    ],
)
def test_who_must_wait_and_for_what(state: ResourceState, resource: Resource, first: bool, running: int, refusal: Refusal | None) -> None:
    after, answer = asked(state, resource, first=first, running=running)
    if refusal is None:
        assert answer is None
    else:
        assert answer is not None
        assert answer.why == refusal.why
        assert answer.wait == pytest.approx(refusal.wait, abs=1e-6)
        assert after == state


def test_a_probe_that_is_refused_for_another_reason_takes_no_place() -> None:
    resource = replace(PLAIN, max_concurrency=1)
    state, refusal = asked(opened(resource), resource, holder="p", running=1, now=START + 5.0)
    assert refusal is not None
    assert refusal.why == "slots"
    _, refusal = asked(state, resource, holder="q", now=START + 5.0)
    assert refusal is None


def test_a_retry_that_probes_takes_a_token() -> None:
    later = START + 5.0 + FIRSTS_FIRST
    state, refusal = asked(opened(), first=False, now=later)
    assert refusal is None
    assert state.breaker.probe == "h"
    assert state.budget.missing == 1.0
    spent = replace(opened(), budget=broke(later).budget)
    assert asked(spent, first=False, now=later) == (spent, Refusal("budget", 0.5))


def test_a_probe_asks_again_and_is_let_in_and_others_wait() -> None:
    state, _ = asked(opened(), holder="p", now=START + 5.0)
    assert asked(state, holder="p", now=START + 5.5)[1] is None
    assert asked(state, holder="q", now=START + 5.5)[1] == Refusal("breaker", PROBE_WAIT)


def test_a_resource_without_a_breaker_hears_nothing() -> None:
    assert told(ResourceState(), Effect.FAILURE, BARE) == ResourceState()


@pytest.mark.parametrize(
    ("effect", "cost", "left"),
    [(Effect.SUCCESS, 1.0, 1.0), (Effect.SUCCESS, 2.0, 2.0), (Effect.SUCCESS, 0.0, 0.0),
     (Effect.FAILURE, 1.0, 0.0), (Effect.NEUTRAL, 1.0, 0.0)],
)
@pytest.mark.parametrize("breaker", [None, CircuitBreaker()])
def test_a_retry_gets_its_tokens_back_when_it_succeeds_and_only_then(
    effect: Effect, cost: float, left: float, breaker: CircuitBreaker | None
) -> None:
    resource = Resource("r", breaker=breaker)
    empty = ResourceState(budget=BudgetState(missing=10.0, paid=START))
    after = tell(empty, Tell(resource, effect, cost=cost), holder="h", now=START)
    assert after.budget.left(RetryBudget(), START) == pytest.approx(left)
    bare = Resource("r", breaker=breaker, retry_budget=None)
    assert tell(empty, Tell(bare, effect, cost=cost), holder="h", now=START).budget == empty.budget


def test_a_throttled_retry_costs_one_where_there_is_no_budget() -> None:
    assert Ask(BARE, throttled=True).cost == 1.0
    assert Ask(PLAIN, throttled=True).cost == 2.0
    assert Ask(PLAIN).cost == 1.0


states = st.builds(
    ResourceState,
    breaker=st.builds(
        BreakerState,
        opened=st.integers(0, 4),
        until=st.floats(START - 30, START + 30),
        since=st.floats(START - 60, START),
        probe=st.sampled_from(["", "h", "other"]),
        probe_until=st.floats(START - 60, START + 60),
        forced=st.sampled_from([None, Condition.OPEN, Condition.CLOSED]),
        forced_until=st.floats(START - 60, START + 60),
    ),
    budget=st.sampled_from([BudgetState(), broke().budget]),
    arrival=st.floats(START - 1, START + 1),
)
resources = st.builds(
    Resource,
    name=st.just("payments"),
    retry_budget=st.sampled_from([None, RetryBudget(), RetryBudget(min_per_second=0.05)]),
    breaker=st.sampled_from([None, CircuitBreaker(), CircuitBreaker(probes=1)]),
    max_concurrency=st.sampled_from([None, 1, 3]),
    rate=st.sampled_from([None, Rate(10.0, burst=2)]),
)


@given(states, resources, st.booleans(), st.booleans(), st.integers(0, 4), st.floats(-10, 60))
def test_who_is_refused_changes_nothing_however_often_they_ask(
    state: ResourceState, resource: Resource, first: bool, throttled: bool, running: int, later: float
) -> None:
    now = START + later
    after, refusal = asked(state, resource, first=first, throttled=throttled, running=running, now=now)
    if refusal is not None:
        assert after == state
        assert 0.0 < refusal.wait < float("inf")
        assert asked(after, resource, first=first, throttled=throttled, running=running, now=now) == (state, refusal)


@given(states, resources, st.integers(0, 4), st.floats(-10, 60))
def test_what_people_see_is_what_a_first_attempt_would_be_told(
    state: ResourceState, resource: Resource, running: int, later: float
) -> None:
    now = START + later
    seen = view(resource, state, running=running, now=now)
    _, refusal = asked(state, resource, holder="a newcomer", running=running, now=now)
    assert (seen.why, seen.wait) == ((refusal.why, refusal.wait) if refusal is not None else ("", 0.0))


# -- what people see ------------------------------------------------------------------------------------------------


def test_a_resource_that_nobody_used() -> None:
    assert view(LIMITED, ResourceState(), running=0, now=START) == ResourceView(
        name="payments", condition=Condition.CLOSED, budget=10.0, max_concurrency=3, free=2.0
    )
    assert view(BARE, ResourceState(), running=0, now=START) == ResourceView(name="payments", condition=Condition.CLOSED)


def test_a_resource_in_use() -> None:
    state = ResourceState()
    for n in range(4):
        state, _ = asked(state, LIMITED, first=n < 3, now=START + n / 10)
    state = told(told(state, Effect.FAILURE, LIMITED), Effect.SUCCESS, LIMITED)
    seen = view(LIMITED, state, running=2, now=START + 0.3)
    assert (seen.calls, seen.failures, seen.running) == (2.0, 1.0, 2)
    assert seen.budget == pytest.approx(8.9, abs=1e-4)
    assert seen.free == pytest.approx(1.0, abs=1e-5)


def test_a_breaker_that_is_open_probed_and_forced() -> None:
    state = opened()
    seen = view(PLAIN, state, running=0, now=START + 1.0)
    assert (seen.condition, seen.since, seen.until, seen.wait, seen.why) == (Condition.OPEN, START, START + 5.0, 4.0, "breaker")
    assert not seen.probing
    state, _ = asked(state, holder="p", now=START + 5.0)
    seen = view(PLAIN, state, running=1, now=START + 6.0)
    assert (seen.condition, seen.probing, seen.wait) == (Condition.HALF_OPEN, True, PROBE_WAIT)
    forced = replace(state, breaker=state.breaker.put(Condition.CLOSED, START + 60.0))
    seen = view(PLAIN, forced, running=1, now=START + 6.0)
    assert (seen.condition, seen.forced, seen.until, seen.wait, seen.probing) == (Condition.CLOSED, True, START + 60.0, 0.0, False)
    seen = view(BARE, state, running=1, now=START + 1.0)
    assert (seen.condition, seen.wait) == (Condition.CLOSED, 0.0)


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": ""}, "resource '': name = '': a text of 1 to 200 characters is allowed"),
        ({"name": "x" * 201}, "a text of 1 to 200 characters is allowed"),
        ({"name": 5}, "resource 5: name = 5"),
        ({"retry_budget": 0.1}, r"resource 'payments': retry_budget = 0.1: None or a RetryBudget\(...\) is allowed"),
        ({"breaker": True}, r"resource 'payments': breaker = True: None or a CircuitBreaker\(...\) is allowed"),
        ({"max_concurrency": 0}, "resource 'payments': max_concurrency = 0: None or a whole number of at least 1 is allowed"),
        ({"max_concurrency": True}, "max_concurrency = True"),
        ({"max_concurrency": 2.0}, "max_concurrency = 2.0"),
        ({"rate": "10/s"}, "resource 'payments': rate = '10/s': None or a Rate is allowed"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=text):
        Resource(**{"name": "payments", **options})


def test_a_name_of_two_hundred_characters_is_allowed_and_a_resource_is_new_at_first() -> None:
    assert Resource("x" * 200).name == "x" * 200
    assert ResourceState() == ResourceState(BreakerState(), BudgetState(), 0.0, 0)


def test_who_is_let_in_is_counted_and_who_is_refused_is_not() -> None:
    state, _ = asked(asked(ResourceState(), LIMITED)[0], LIMITED)
    state, refusal = asked(state, LIMITED)
    assert refusal is not None
    assert view(LIMITED, state, running=0, now=START).entered == 2


def test_who_tells_only_its_effect_took_no_token() -> None:
    assert Tell(PLAIN) == Tell(PLAIN, Effect.NEUTRAL, fraction=0.0, cost=0.0)


def test_the_view_counts_over_the_breakers_window() -> None:
    state = told(ResourceState(), Effect.FAILURE)
    assert view(PLAIN, state, running=0, now=START + 9.0).calls == 1.0
    assert view(PLAIN, state, running=0, now=START + 15.0).failures == 0.5


# -- a fleet --------------------------------------------------------------------------------------------------------

HOLDERS = [f"h{n}" for n in range(12)]
BREAKER = CircuitBreaker(min_calls=3)
FLEET = Resource("payments", breaker=BREAKER, max_concurrency=4, rate=Rate(50.0))


class Fleet(RuleBasedStateMachine):
    """Executions that ask, call, die, stall and come back late; a dependency that falls ill and gets well.

    The slots are kept here as a store keeps them: a holder has one until it gives it back or its lease ends.
    """

    @initialize(start=st.floats(1e9, 2e9))
    def begin(self, start: float) -> None:
        self.now = start
        self.state = ResourceState()
        self.slots: dict[str, float] = {}  # holder → end of its lease
        self.executing: set[str] = set()  # who believes that it may call
        self.probes: set[str] = set()  # who was let in by a half-open breaker and has not ended
        self.healthy = True

    def running(self) -> int:
        return sum(until > self.now for until in self.slots.values())

    def condition(self) -> Condition:
        return self.state.breaker.condition(self.now)

    def ask(self, holder: str, *, first: bool, throttled: bool = False) -> Refusal | None:
        before = self.state
        half_open = self.condition() is Condition.HALF_OPEN
        self.state, refusal = ask(
            before, Ask(FLEET, throttled), holder=holder, first=first, lease=LEASE, running=self.running(), now=self.now
        )
        if refusal is None:
            self.slots[holder] = self.now + LEASE
            self.executing.add(holder)
            if half_open:
                self.probes.add(holder)
        else:
            assert self.state == before
        return refusal

    def tell(self, holder: str, effect: Effect, fraction: float = 0.5) -> None:
        self.state = tell(self.state, Tell(FLEET, effect, fraction), holder=holder, now=self.now)
        self.slots.pop(holder, None)
        self.executing.discard(holder)
        self.probes.discard(holder)

    @rule(seconds=st.floats(0.001, 3.0))
    def a_moment_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.floats(3.0, 2 * LEASE))
    def a_while_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.floats(0.001, 0.5))
    def the_clock_goes_back_a_little(self, seconds: float) -> None:
        self.now -= seconds

    @rule()
    def the_dependency_falls_ill(self) -> None:
        self.healthy = False

    @rule()
    def the_dependency_gets_well(self) -> None:
        self.healthy = True

    @rule(holder=st.sampled_from(HOLDERS), first=st.booleans(), throttled=st.booleans())
    def an_execution_asks(self, holder: str, first: bool, throttled: bool) -> None:
        assume(holder not in self.executing)
        was = self.condition()
        refusal = self.ask(holder, first=first, throttled=throttled)
        assert not (was is Condition.OPEN and refusal is None)

    @precondition(lambda self: self.executing)
    @rule(data=st.data(), neutral=st.integers(0, 5), fraction=st.floats(0, 1, exclude_max=True))
    def an_execution_ends(self, data: st.DataObject, neutral: int, fraction: float) -> None:
        holder = data.draw(st.sampled_from(sorted(self.executing)))
        self.tell(holder, Effect.NEUTRAL if not neutral else Effect.SUCCESS if self.healthy else Effect.FAILURE, fraction)

    @rule(data=st.data())
    def a_burst_of_calls(self, data: st.DataObject) -> None:
        for holder in data.draw(st.lists(st.sampled_from(HOLDERS), min_size=3, max_size=20)):
            if holder not in self.executing and self.ask(holder, first=True) is None:
                self.tell(holder, Effect.SUCCESS if self.healthy else Effect.FAILURE)
                self.now += 0.05

    @precondition(lambda self: self.executing)
    @rule(data=st.data())
    def a_lease_is_renewed(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.executing)))
        if self.slots.get(holder, 0.0) > self.now:  # who lost it stops calling
            self.slots[holder] = self.now + LEASE
            self.state = replace(self.state, breaker=self.state.breaker.renewed(holder, lease=LEASE, now=self.now))

    @precondition(lambda self: self.executing)
    @rule(data=st.data())
    def a_worker_dies(self, data: st.DataObject) -> None:
        self.executing.discard(data.draw(st.sampled_from(sorted(self.executing))))

    @rule(condition=st.sampled_from([None, Condition.OPEN, Condition.CLOSED]), seconds=st.floats(1, 60))
    def an_operator_decides(self, condition: Condition | None, seconds: float) -> None:
        self.state = replace(self.state, breaker=self.state.breaker.put(condition, self.now + seconds))

    @invariant()
    def no_more_run_than_there_are_slots(self) -> None:
        assert self.running() <= (FLEET.max_concurrency or 0)

    @invariant()
    def never_two_probe_at_once(self) -> None:
        assert len([holder for holder in self.probes if self.slots.get(holder, 0.0) > self.now]) <= 1

    @invariant()
    def what_people_see_agrees(self) -> None:
        seen = view(FLEET, self.state, running=self.running(), now=self.now)
        assert seen.condition is self.condition()
        assert seen.wait <= max(BREAKER.max_open_seconds * 1.25, 60.0) + 1.0

    def teardown(self) -> None:
        """Once it is well again and somebody keeps asking, the breaker closes in time, though all who ask are retries."""
        if not hasattr(self, "now"):
            return
        self.state = replace(self.state, breaker=self.state.breaker.put(None, 0.0))
        for holder in list(self.executing):
            self.tell(holder, Effect.NEUTRAL)
        well = self.now
        # the longest opening, a probe that died with its worker, tokens to come back, and a few waits
        bound = BREAKER.max_open_seconds * 1.25 + FIRSTS_FIRST + LEASE + RetryBudget().window + 5.0
        while self.condition() is not Condition.CLOSED:
            refusal = self.ask("again", first=False)
            if refusal is None:
                self.tell("again", Effect.SUCCESS)
            self.now += 0.1 if refusal is None else refusal.wait
            assert self.now - well <= bound


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# -- traffic --------------------------------------------------------------------------------------------------------


def outage(
    resource: Resource,
    *,
    firsts: Callable[[float], float],
    retries: float,
    seconds: float,
    down: Callable[[float], bool],
    throttled: bool = False,
) -> tuple[int, int, list[float], ResourceState]:
    """Let first attempts and retries ask in their rates a second; return first attempts, calls, when retries went, and the state.

    Every call takes no time. Retries ask whether they were refused before or not, as a crowd of them does.
    """
    state, now, first_calls, calls, gone, owed = ResourceState(), START, 0, 0, [], [0.0, 0.0]
    step = 0.05
    while now < START + seconds:
        owed = [owed[0] + firsts(now - START) * step, owed[1] + retries * step]
        for first in (True, False):
            while owed[0 if first else 1] >= 1.0:
                owed[0 if first else 1] -= 1.0
                state, refusal = asked(state, resource, holder="h", first=first, throttled=throttled, now=now)
                if refusal is None:
                    calls += 1
                    first_calls += first
                    if not first:
                        gone.append(now - START)
                    state = told(state, Effect.FAILURE if down(now - START) else Effect.SUCCESS, resource, holder="h", now=now)
        now += step
    return first_calls, calls, gone, state


@settings(max_examples=12, deadline=None)
@given(st.integers(10, 30), st.integers(0, 60), st.booleans(), st.sampled_from([None, BREAKER]))
def test_from_ten_first_attempts_a_second_on_calls_stay_at_a_tenth_more(
    firsts: int, retries: int, throttled: bool, breaker: CircuitBreaker | None
) -> None:
    resource = replace(PLAIN, breaker=breaker)
    first_calls, calls, gone, _ = outage(
        resource, firsts=lambda at: firsts, retries=retries, seconds=40.0, down=lambda at: 10.0 <= at < 30.0, throttled=throttled
    )
    # the bucket is full at first, and again after ten seconds in which the breaker let no first attempt in
    assert calls <= 1.1 * first_calls + 10 * (1 if breaker is None else 3)
    if breaker is None:
        assert abs(first_calls - firsts * 40) <= 1
        assert len([at for at in gone if 10.0 <= at < 30.0]) <= 0.1 * firsts * 20 + 10 + 1


def test_a_fleet_that_is_all_retries_calls_once_a_second_and_closes_the_breaker() -> None:
    _, calls, gone, state = outage(PLAIN, firsts=lambda at: 0.0, retries=50, seconds=120.0, down=lambda at: at < 60.0)
    assert state.breaker.condition(START + 120.0) is Condition.CLOSED
    assert calls == len(gone) <= 120 + 10
    # it is well at 60: the last opening ends, a retry may probe, and calls go again
    assert next(at for at in gone if at >= 60.0) <= 60.0 + CircuitBreaker().max_open_seconds * 1.25 + FIRSTS_FIRST + 1.0


def test_during_an_outage_only_probes_call_and_they_are_first_attempts() -> None:
    first_calls, calls, gone, state = outage(PLAIN, firsts=lambda at: 20.0, retries=50, seconds=120.0, down=lambda at: 20.0 <= at < 80.0)
    assert not [at for at in gone if 32.0 <= at < 80.0]
    assert state.breaker.condition(START + 120.0) is Condition.CLOSED
    assert calls <= 1.1 * first_calls + 3 * 10
