"""What executions do with a resource, for the suites that watch a store at it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import pytest

from ..policy.breaker import CircuitBreaker, Condition, Effect
from ..policy.lease import Claim, ClaimState
from ..policy.resource import Ask, Resource, ResourceView, Tell
from ..ports import IdempotencyStore, ResourceStore
from .store_contract import LONG, SHORT, until

__all__ = ["MINUTE", "ResourceUser", "Store", "about", "in_threads"]

#: Seconds of every window in which something is counted.
MINUTE = 60.0


class Store(IdempotencyStore, ResourceStore, Protocol):
    """What is looked at here."""


def in_threads(calls: Iterable[Callable[[], object]]) -> None:
    """Make calls at once, each in a thread of its own; fail if one does."""
    wanted, failed = list(calls), []
    gate = threading.Barrier(len(wanted))

    def run(call: Callable[[], object]) -> None:
        gate.wait()
        try:
            call()
        except BaseException as exc:  # noqa: BLE001 - told below
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(call,)) for call in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def about(value: float, within: float = 1e-6) -> Any:
    """Return what equals a number but for the little that has decayed meanwhile."""
    return pytest.approx(value, abs=within)


class ResourceUser:
    """Asks, tells and looks."""

    @pytest.fixture
    def name(self) -> str:
        """Return the name of a resource that no other test uses."""
        return f"contract:{uuid.uuid4()}"

    @pytest.fixture
    def bare(self, name: str) -> Resource:
        """Return a resource without any limits."""
        return Resource(name, retry_budget=None, breaker=None)

    @pytest.fixture
    def broken(self, store: Store, bare: Resource) -> Resource:
        """Return a resource whose breaker has opened, and stays so for a moment only; one probe closes it."""
        breaker = CircuitBreaker(failure_rate=1.0, min_calls=1, window=MINUTE, open_seconds=SHORT, max_open_seconds=LONG, probes=1)
        resource = replace(bare, breaker=breaker)
        self.ends(store, resource, "breaks it", Effect.FAILURE)
        return resource

    def asks(
        self, store: Store, resource: Resource, holder: str, *, attempts: int = 0, throttled: bool = False, lease: float = LONG
    ) -> Claim:
        """Claim a key of the holder's own; ``attempts`` of it went before."""
        key = f"{resource.name}/{holder}"
        return store.claim(key, holder=holder, fingerprint="f", lease=lease, attempts=attempts, ask=Ask(resource, throttled))

    def enters(self, store: Store, resource: Resource, holder: str, **options: Any) -> int:
        """Claim, and be let in; the fence."""
        claim = self.asks(store, resource, holder, **options)
        assert (claim.state, claim.why) == (ClaimState.CLAIMED, "")
        return claim.fence

    def tells(self, store: Store, resource: Resource, holder: str, effect: Effect) -> None:
        """End, and say how it went."""
        store.release(f"{resource.name}/{holder}", holder=holder, tell=Tell(resource, effect))

    def ends(self, store: Store, resource: Resource, holder: str, effect: Effect) -> None:
        """Be let in and end."""
        self.enters(store, resource, holder)
        self.tells(store, resource, holder, effect)

    def view(self, store: Store, resource: Resource) -> ResourceView:
        """See the resource as it is now."""
        (view,) = store.view([resource])
        assert view.name == resource.name
        return view

    def refused(self, claim: Claim, why: str, longest: float) -> None:
        """Expect a claim not to have been let in, and to have been told to wait for up to ``longest`` seconds."""
        assert (claim.state, claim.why) == (ClaimState.REFUSED, why)
        assert 0 < claim.wait <= longest
        assert claim.fence == 0
        assert not claim.takeover

    def until_half_open(self, store: Store, resource: Resource) -> None:
        """Wait until the breaker lets probes through."""
        until(lambda: self.view(store, resource).condition is Condition.HALF_OPEN)
