"""The part of :class:`~.resource_contract.ResourceContract` that is about breakers."""

from __future__ import annotations

import time
from dataclasses import replace

from ..policy.breaker import CircuitBreaker, Condition, Effect
from ..policy.lease import Claim, ClaimState
from ..policy.resource import BREAKER, Resource, Tell
from .resource_user import MINUTE, ResourceUser, Store, about, in_threads
from .store_contract import LONG, SHORT, until

__all__ = ["BreakerContract"]


class BreakerContract(ResourceUser):
    """Behaviour of the breakers of a :class:`~celery_guardrails.ports.ResourceStore`."""

    def test_enough_failures_of_any_keys_open_the_breaker(self, store: Store, bare: Resource) -> None:
        breaker = CircuitBreaker(failure_rate=0.5, min_calls=4, window=MINUTE, open_seconds=LONG, max_open_seconds=LONG)
        resource = replace(bare, breaker=breaker)
        early = self.asks(store, resource, "early")
        assert early.state is ClaimState.CLAIMED
        for number, effect in enumerate((Effect.SUCCESS, Effect.NEUTRAL, Effect.FAILURE, Effect.SUCCESS, Effect.NEUTRAL)):
            self.ends(store, resource, f"h{number}", effect)
        view = self.view(store, resource)
        assert (view.condition, view.calls, view.failures, view.wait) == (Condition.CLOSED, about(3), about(1), 0)
        self.ends(store, resource, "last", Effect.FAILURE)
        view, now = self.view(store, resource), store.now()
        assert (view.condition, view.forced, view.why) == (Condition.OPEN, False, BREAKER)
        assert view.since == about(now, 2)
        assert view.until == about(now + LONG, 2)
        self.refused(self.asks(store, resource, "next"), BREAKER, LONG)
        self.tells(store, resource, "early", Effect.FAILURE)
        assert self.view(store, resource).until == view.until, "who began before it opened says nothing new"

    def test_a_part_of_failures_that_is_too_small_leaves_it_closed(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, breaker=CircuitBreaker(failure_rate=0.6, min_calls=2, window=MINUTE))
        for number, effect in enumerate([Effect.SUCCESS, Effect.FAILURE] * 3):
            self.ends(store, resource, f"h{number}", effect)
        assert self.view(store, resource).condition is Condition.CLOSED

    def test_chance_keeps_it_open_for_longer(self, store: Store, bare: Resource) -> None:
        breaker = CircuitBreaker(failure_rate=1.0, min_calls=1, window=MINUTE, open_seconds=20.0, max_open_seconds=20.0)
        resource = replace(bare, breaker=breaker)
        self.enters(store, resource, "x")
        store.tell(Tell(resource, Effect.FAILURE, fraction=0.8), holder="x")
        assert self.view(store, resource).until == about(store.now() + 24.0, 2)

    def test_a_half_open_breaker_lets_one_of_many_probe(self, store: Store, broken: Resource) -> None:
        self.until_half_open(store, broken)
        claims: list[Claim] = []
        in_threads([lambda n=n: claims.append(self.asks(store, broken, f"h{n}")) for n in range(24)])  # type: ignore[misc]
        assert sorted((claim.state.value, claim.why) for claim in claims) == [("claimed", "")] + [("refused", BREAKER)] * 23
        assert {claim.wait for claim in claims} == {0.0, 1.0}
        assert self.view(store, broken).probing

    def test_probes_that_succeed_one_after_the_other_close_it(self, store: Store, broken: Resource) -> None:
        assert broken.breaker is not None
        resource = replace(broken, breaker=replace(broken.breaker, probes=2))
        self.until_half_open(store, resource)
        self.ends(store, resource, "first", Effect.SUCCESS)
        assert self.view(store, resource).condition is Condition.HALF_OPEN
        self.enters(store, resource, "second")
        self.refused(self.asks(store, resource, "third"), BREAKER, 1.0)
        self.tells(store, resource, "second", Effect.SUCCESS)
        view = self.view(store, resource)
        assert (view.condition, view.calls, view.probing) == (Condition.CLOSED, 0, False)
        for holder in ("third", "fourth"):
            self.enters(store, resource, holder)

    def test_a_probe_that_fails_opens_it_for_twice_as_long(self, store: Store, broken: Resource) -> None:
        assert broken.breaker is not None
        resource = replace(broken, breaker=replace(broken.breaker, open_seconds=10.0))
        self.until_half_open(store, broken)
        self.ends(store, resource, "probe", Effect.FAILURE)
        view = self.view(store, resource)
        assert view.condition is Condition.OPEN
        assert view.until == about(store.now() + 20.0, 3)

    def test_the_next_probes_where_one_ends_without_saying_anything(self, store: Store, broken: Resource) -> None:
        self.until_half_open(store, broken)
        self.ends(store, broken, "first", Effect.NEUTRAL)
        self.enters(store, broken, "second", lease=3 * SHORT)
        self.refused(self.asks(store, broken, "third"), BREAKER, 1.0)
        until(lambda: self.asks(store, broken, "third").state is ClaimState.CLAIMED)  # the second one's lease has ended
        self.tells(store, broken, "second", Effect.FAILURE)
        assert self.view(store, broken).probing
        self.tells(store, broken, "third", Effect.SUCCESS)
        assert self.view(store, broken).condition is Condition.CLOSED

    def test_a_probe_that_is_held_remains_the_only_one(self, store: Store, broken: Resource) -> None:
        self.until_half_open(store, broken)
        self.enters(store, broken, "probe", lease=4 * SHORT)
        end = time.monotonic() + 6 * SHORT
        while time.monotonic() < end:
            store.hold([(broken.name, "probe")], 4 * SHORT)
            self.refused(self.asks(store, broken, "next"), BREAKER, 1.0)
            time.sleep(SHORT / 5)

    def test_first_attempts_probe_before_retries_do(self, store: Store, broken: Resource) -> None:
        self.until_half_open(store, broken)
        self.refused(self.asks(store, broken, "retry", attempts=1), BREAKER, 2.0)
        self.enters(store, broken, "first")

    def test_an_operator_opens_it_for_a_time(self, store: Store, bare: Resource) -> None:
        resource = replace(bare, breaker=CircuitBreaker(min_calls=1, window=MINUTE))
        self.enters(store, resource, "early")
        store.force(bare.name, Condition.OPEN, LONG)
        claim = self.asks(store, resource, "x")
        self.refused(claim, BREAKER, LONG)
        assert claim.wait > LONG - 5
        self.tells(store, resource, "early", Effect.FAILURE)
        view = self.view(store, resource)
        assert (view.condition, view.forced, view.running, view.calls) == (Condition.OPEN, True, 0, 0)
        assert view.until == about(store.now() + LONG, 2)
        store.force(bare.name, Condition.OPEN, SHORT)
        until(lambda: self.asks(store, resource, "x").state is ClaimState.CLAIMED)
        assert not self.view(store, resource).forced

    def test_an_operator_closes_it_for_a_time_or_leaves_it_to_itself(self, store: Store, broken: Resource) -> None:
        assert broken.breaker is not None
        resource = replace(broken, breaker=replace(broken.breaker, open_seconds=LONG))
        self.until_half_open(store, broken)
        self.ends(store, resource, "probe", Effect.FAILURE)
        store.force(resource.name, Condition.CLOSED, LONG)
        for number in range(3):
            self.ends(store, resource, f"h{number}", Effect.FAILURE)
        view = self.view(store, resource)
        assert (view.condition, view.forced, view.wait) == (Condition.CLOSED, True, 0)
        store.force(resource.name, Condition.CLOSED, SHORT)
        until(lambda: self.view(store, resource).condition is Condition.OPEN)
        self.refused(self.asks(store, resource, "x"), BREAKER, 2 * LONG)
        store.force(resource.name, Condition.CLOSED, LONG)
        store.force(resource.name, None, 0.0)
        view = self.view(store, resource)
        assert (view.condition, view.forced) == (Condition.OPEN, False)
