"""The suite for stores that keep the state of resources; subclass it beside :class:`~.store_contract.StoreContract`.

    class TestMyStoresResources(ResourceContract):
        @pytest.fixture
        def store(self):
            return MyStore(...)

What is counted is counted in windows of a minute, so that nothing is forgotten in the midst of a test; where time must pass, it
passes by the store's own clock, a quarter of a second at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest

from ..policy.breaker import CircuitBreaker, Condition, Effect
from ..policy.budget import RetryBudget
from ..policy.lease import ClaimState, RecordState, StoredResult
from ..policy.rate import Rate
from ..policy.resource import BREAKER, BUDGET, RATE, SLOTS, Ask, Resource, ResourceView, Tell
from .breaker_contract import BreakerContract
from .resource_user import MINUTE, Store, about, in_threads
from .store_contract import LONG, SHORT, until

__all__ = ["ResourceContract"]

RESULT = StoredResult("application/json", "utf-8", b"1", "t")


class ResourceContract(BreakerContract):
    """Behaviour of :class:`~celery_guardrails.ports.ResourceStore`, and of the claims that ask a resource."""

    #: Whether asking is a part of the claim's own step, so that a claim that is refused has never been one.
    one_step: ClassVar[bool] = False
    #: How many ask at once where many do.
    crowd: ClassVar[int] = 100

    # -- keys -------------------------------------------------------------------------------------------------

    def test_a_claim_that_is_refused_changes_nothing_of_its_key(self, store: Store, bare: Resource) -> None:
        key = f"{bare.name}/x"
        store.claim(key, holder="before", fingerprint="f", lease=LONG, attempts=1)
        store.save_step(key, holder="before", name="s", value=RESULT)
        before = store.release(key, holder="before", attempts=1, crashes=1)
        assert before is not None
        before = store.lookup(key)
        resource = replace(bare, breaker=CircuitBreaker())
        store.force(bare.name, Condition.OPEN, LONG)
        for holder in ("x", "y"):
            claim = store.claim(key, holder=holder, fingerprint="f", lease=LONG, attempts=2, ask=Ask(resource))
            self.refused(claim, BREAKER, LONG)
            assert (claim.attempts, claim.crashes, claim.steps) == (2, 1, {})
            assert claim.now is not None
        after = store.lookup(key)
        assert before is not None
        assert after is not None
        if not self.one_step:
            after = replace(after, fence=before.fence, claimed_at=before.claimed_at)
        assert after == before

    def test_a_new_key_that_is_refused_is_charged_with_nothing(self, store: Store, bare: Resource) -> None:
        store.force(bare.name, Condition.OPEN, LONG)
        self.refused(self.asks(store, replace(bare, breaker=CircuitBreaker()), "x"), BREAKER, LONG)
        record = store.lookup(f"{bare.name}/x")
        if record is not None and not self.one_step:
            assert (record.state, record.attempts, record.crashes, record.holder) == (RecordState.IDLE, 0, 0, "")
        else:
            assert record is None

    def test_a_key_whose_holder_crashed_is_charged_once_however_often_it_is_refused(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, breaker=CircuitBreaker())
        store.claim(f"{bare.name}/x", holder="gone", fingerprint="f", lease=SHORT)
        store.force(bare.name, Condition.OPEN, LONG)
        until(lambda: self.asks(store, resource, "x").state is ClaimState.REFUSED)
        assert self.asks(store, resource, "x").crashes == 1
        store.force(bare.name, None, 0)
        claim = self.asks(store, resource, "x")
        assert (claim.state, claim.crashes) == (ClaimState.CLAIMED, 1)

    def test_what_has_completed_or_is_held_is_answered_whatever_the_resource_says(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, breaker=CircuitBreaker())
        fence = self.enters(store, resource, "done")
        done = f"{bare.name}/done"
        assert store.complete(done, holder="done", fingerprint="f", fence=fence, result=RESULT, retention=LONG, tell=Tell(resource))
        self.enters(store, resource, "held")
        store.force(bare.name, Condition.OPEN, LONG)
        answers = [
            store.claim(f"{bare.name}/{key}", holder="other", fingerprint=fingerprint, lease=LONG, ask=Ask(resource))
            for key, fingerprint in (("done", "f"), ("held", "f"), ("done", "g"))
        ]
        assert [claim.state for claim in answers] == [ClaimState.COMPLETED, ClaimState.BUSY, ClaimState.CONFLICT]
        assert answers[0].result == RESULT
        assert LONG - 5 < answers[1].wait <= LONG
        assert self.view(store, resource).running == 1

    def test_a_claim_whose_answer_was_lost_is_charged_once(self, store: Store, bare: Resource) -> None:
        budget = RetryBudget(ratio=1.0, min_per_second=0.05, window=MINUTE)
        resource = replace(bare, retry_budget=budget, max_concurrency=1, rate=Rate(0.001, burst=5))
        fences = {self.enters(store, resource, "x", attempts=1) for _ in range(3)}
        view = self.view(store, resource)
        assert (view.running, view.budget, len(fences)) == (1, about(2, 0.5), 1)
        assert view.free == about(4, 0.1)

    def test_resources_are_no_keys(self, store: Store, bare: Resource) -> None:
        self.enters(store, bare, "x")
        store.prune(1000)
        assert [key for key, _ in store.leases() if bare.name in key] == [f"{bare.name}/x"]
        assert self.view(store, bare).running == 1
        assert store.lookup(bare.name) is None
        assert store.claim(bare.name, holder="a", fingerprint=None, lease=LONG).state is ClaimState.CLAIMED

    @pytest.mark.parametrize("odd", ["{a}", "a{b}c}d", "ü€😀", "a:slots", "A", "a ", "x" * 150, "quote'\"\\", "per%cent :colon", "1 2\n3"])
    def test_resources_of_any_name_are_kept_apart(self, store: Store, name: str, odd: str) -> None:
        names = (f"{name[:45]}{odd}", f"{name[:45]}{odd}".swapcase(), f"{name[:45]}{odd}.")
        resources = [Resource(one, retry_budget=None, breaker=CircuitBreaker()) for one in names]
        for number, resource in enumerate(resources):
            for holder in range(number):
                self.enters(store, resource, f"h{holder}")
        store.force(names[1], Condition.OPEN, LONG)
        views = store.view(resources)
        assert [(view.name, view.running) for view in views] == [(one, number) for number, one in enumerate(names)]
        assert [view.forced for view in views] == [False, True, False]

    # -- slots ------------------------------------------------------------------------------------------------

    def test_of_many_who_ask_at_once_as_many_are_let_in_as_there_are_slots(self, store: Store, bare: Resource) -> None:
        resource, claims = replace(bare, max_concurrency=7), []
        in_threads([lambda n=n: claims.append(self.asks(store, resource, f"h{n}")) for n in range(self.crowd)])  # type: ignore[misc]
        assert sorted((claim.state.value, claim.why) for claim in claims) == [("claimed", "")] * 7 + [("refused", SLOTS)] * (self.crowd - 7)
        view = self.view(store, resource)
        assert (view.running, view.max_concurrency, view.why) == (7, 7, SLOTS)

    def test_nobody_of_many_who_come_and_go_at_once_is_miscounted(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, breaker=CircuitBreaker(min_calls=1000, window=MINUTE))
        in_threads([lambda n=n: self.enters(store, resource, f"h{n}") for n in range(20)])  # type: ignore[misc]
        assert self.view(store, resource).running == 20
        in_threads([lambda n=n: self.tells(store, resource, f"h{n}", Effect.FAILURE) for n in range(20)])  # type: ignore[misc]
        view = self.view(store, resource)
        assert (view.running, view.calls, view.failures) == (0, about(20), about(20))

    @pytest.mark.parametrize("overtaken", [False, True])
    @pytest.mark.parametrize("way", ["complete", "release", "drop", "reset", "tell"])
    def test_whoever_settles_gives_its_slot_back(self, store: Store, bare: Resource, way: str, overtaken: bool) -> None:
        resource = replace(bare, max_concurrency=1)
        key, told = f"{bare.name}/x", Tell(resource, Effect.SUCCESS)
        fence = self.enters(store, resource, "x")
        self.refused(self.asks(store, resource, "next"), SLOTS, LONG)
        if overtaken:
            store.break_lease(key)
            store.claim(key, holder="another", fingerprint="f", lease=LONG)
        ways: dict[str, Callable[[], object]] = {
            "complete": lambda: store.complete(key, holder="x", fingerprint="f", fence=fence, result=RESULT, retention=LONG, tell=told),
            "release": lambda: store.release(key, holder="x", attempts=1, tell=told),
            "drop": lambda: store.release(key, holder="x", drop=True, tell=told),
            "reset": lambda: store.reset(key, holder="x", tell=told),
            "tell": lambda: store.tell(told, holder="x"),
        }
        ways[way]()
        self.enters(store, resource, "next")
        record = store.lookup(key)
        if overtaken:
            assert record is not None
            assert (record.state, record.holder) == (RecordState.LEASED, "another")

    def test_the_slot_of_a_holder_that_crashed_comes_back_when_its_lease_ends(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, max_concurrency=1)
        self.enters(store, resource, "crashes", lease=3 * SHORT)
        began = time.monotonic()
        self.refused(self.asks(store, resource, "next"), SLOTS, LONG)
        until(lambda: self.asks(store, resource, "next").state is ClaimState.CLAIMED)
        assert time.monotonic() - began > 2 * SHORT
        assert self.view(store, resource).running == 1

    def test_a_slot_that_is_held_outlives_its_first_length(self, store: Store, bare: Resource, name: str) -> None:
        resource, other = replace(bare, max_concurrency=1), replace(bare, name=f"{name}.other", max_concurrency=1)
        self.enters(store, resource, "x", lease=4 * SHORT)
        self.enters(store, other, "x", lease=4 * SHORT)
        end = time.monotonic() + 6 * SHORT
        while time.monotonic() < end:
            store.hold([(resource.name, "x"), (other.name, "x")], 4 * SHORT)
            for held in (resource, other):
                self.refused(self.asks(store, held, "next"), SLOTS, LONG)
            time.sleep(SHORT / 5)

    def test_only_who_has_a_slot_can_hold_one(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, max_concurrency=1)
        store.hold([], LONG)
        store.hold([(resource.name, "x"), (f"{resource.name}.none", "x")], LONG)
        assert self.view(store, resource).running == 0
        self.ends(store, resource, "x", Effect.SUCCESS)
        store.hold([(resource.name, "x")], LONG)
        assert self.view(store, resource).running == 0

    def test_a_slot_that_ended_is_held_again_unless_somebody_was_let_in_since(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, max_concurrency=1)
        self.enters(store, resource, "a", lease=SHORT)
        until(lambda: self.view(store, resource).running == 0)
        store.hold([(resource.name, "a")], 3 * SHORT)
        self.refused(self.asks(store, resource, "b"), SLOTS, LONG)
        until(lambda: self.asks(store, resource, "b").state is ClaimState.CLAIMED)
        store.hold([(resource.name, "a")], LONG)
        assert self.view(store, resource).running == 1

    def test_what_is_told_twice_counts_once(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, breaker=CircuitBreaker(min_calls=100, window=MINUTE))
        key, told = f"{bare.name}/x", Tell(resource, Effect.FAILURE)
        fence = self.enters(store, resource, "x")
        for _ in range(2):
            assert store.complete(key, holder="x", fingerprint="f", fence=fence, result=RESULT, retention=LONG, tell=told)
            store.release(key, holder="x", tell=told)
            store.reset(key, holder="x", tell=told)
            store.tell(told, holder="x")
            store.tell(told, holder="never came in")
        view = self.view(store, resource)
        assert (view.calls, view.failures) == (about(1), about(1))

    def test_who_was_away_for_longer_than_its_slot_says_nothing(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, breaker=CircuitBreaker(min_calls=1, window=MINUTE))
        self.enters(store, resource, "x", lease=SHORT)
        until(lambda: self.view(store, resource).running == 0)
        self.tells(store, resource, "x", Effect.FAILURE)
        view = self.view(store, resource)
        assert (view.condition, view.calls) == (Condition.CLOSED, 0)

    # -- budget and rate --------------------------------------------------------------------------------------

    def test_retries_beyond_the_budget_are_refused_and_first_attempts_are_not(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, retry_budget=RetryBudget(ratio=0.0, min_per_second=0.05, window=MINUTE))
        assert self.view(store, resource).budget == about(3)
        for number in range(3):
            self.enters(store, resource, f"h{number}", attempts=1)
        self.refused(self.asks(store, resource, "h3", attempts=1), BUDGET, 1.0)
        self.enters(store, resource, "first")
        assert self.view(store, resource).budget == about(0, 0.1)

    def test_first_attempts_pay_for_retries(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, retry_budget=RetryBudget(ratio=0.5, min_per_second=0.1, window=MINUTE))
        for number in range(6):
            self.enters(store, resource, f"saved{number}", attempts=1 + number)
        self.refused(self.asks(store, resource, "next", attempts=1), BUDGET, 1.0)
        for number in range(4):
            self.enters(store, resource, f"first{number}")
        assert self.view(store, resource).budget == about(2, 0.5)
        for number in range(2):
            self.enters(store, resource, f"retry{number}", attempts=1)
        self.refused(self.asks(store, resource, "next", attempts=1), BUDGET, 1.0)

    def test_a_retry_that_succeeds_gets_its_tokens_back(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, retry_budget=RetryBudget(ratio=0.0, min_per_second=0.05, window=MINUTE))
        for number in range(3):
            self.enters(store, resource, f"h{number}", attempts=1)
        self.refused(self.asks(store, resource, "next", attempts=1), BUDGET, 1.0)
        for effect, holder, budget in ((Effect.FAILURE, "h0", 0), (Effect.SUCCESS, "h1", 1), (Effect.SUCCESS, "h1", 1)):
            store.tell(Tell(resource, effect, cost=1.0), holder=holder)
            assert self.view(store, resource).budget == about(budget, 0.5)
        self.enters(store, resource, "next", attempts=1)

    def test_a_retry_after_a_throttled_attempt_costs_more(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, retry_budget=RetryBudget(ratio=0.0, min_per_second=0.05, window=MINUTE, throttled_cost=2.0))
        self.enters(store, resource, "a", attempts=1, throttled=True)
        assert self.view(store, resource).budget == about(1, 0.1)
        self.refused(self.asks(store, resource, "b", attempts=1, throttled=True), BUDGET, 1.0)
        self.enters(store, resource, "c", attempts=1)
        self.enters(store, resource, "d", throttled=True)

    def test_tokens_live_for_a_window(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, retry_budget=RetryBudget(ratio=0.0, min_per_second=1.0, window=1.0))
        self.enters(store, resource, "a", attempts=1)
        self.refused(self.asks(store, resource, "b", attempts=1), BUDGET, 1.0)
        until(lambda: self.asks(store, resource, "b", attempts=1).state is ClaimState.CLAIMED)

    def test_a_burst_is_let_in_and_then_one_by_one(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, rate=Rate(0.05, burst=3))
        for number in range(3):
            self.enters(store, resource, f"h{number}")
        claim = self.asks(store, resource, "next")
        self.refused(claim, RATE, 20.0)
        assert claim.wait == about(20, 2)
        view = self.view(store, resource)
        assert (view.free, view.why) == (about(0, 0.1), RATE)
        assert view.wait == about(20, 2)

    def test_whoever_waits_as_long_as_it_was_told_is_let_in(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, rate=Rate(1.25, burst=1))
        self.enters(store, resource, "a")
        claim = self.asks(store, resource, "b")
        self.refused(claim, RATE, 0.8)
        end = store.now() + claim.wait
        until(lambda: store.now() > end + 0.002)
        self.enters(store, resource, "b")

    # -- to look at -------------------------------------------------------------------------------------------

    def test_a_resource_that_nobody_has_used_is_seen_as_it_will_be(self, store: Store, name: str) -> None:
        resource = Resource(name, max_concurrency=5, rate=Rate(2, burst=4))
        assert self.view(store, resource) == ResourceView(name, Condition.CLOSED, budget=10.0, max_concurrency=5, free=4.0)
        assert store.view([]) == []

    def test_looking_changes_nothing(self, store: Store, broken: Resource) -> None:
        resource = replace(broken, retry_budget=RetryBudget(), max_concurrency=1, rate=Rate(0.001, burst=1))
        self.until_half_open(store, broken)
        self.enters(store, resource, "probe", lease=SHORT)
        until(lambda: self.view(store, resource).running == 0)
        seen = [self.view(store, resource) for _ in range(3)]
        assert [view.condition for view in seen] == [Condition.HALF_OPEN] * 3
        assert seen[0].free == about(0, 0.1)
        store.hold([(resource.name, "probe")], LONG)
        view = self.view(store, resource)
        assert (view.running, view.probing) == (1, True)
