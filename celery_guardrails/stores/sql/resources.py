"""Resources in the same table: a record that nobody leases, with the state as its one recovery point.

So it needs no table of its own, and is changed as records are: read, changed by the policy, written back if nobody was there
meanwhile. That is two round trips for each of claim and settle besides those for the key: a database is no place for resources
that hundreds of executions a second go through.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ...policy.breaker import BreakerState, Condition
from ...policy.budget import BudgetState
from ...policy.lease import Claim, ClaimState, Record, StoredResult
from ...policy.occupancy import Occupancy, is_first, refused
from ...policy.resource import Ask, Refusal, Resource, ResourceState, ResourceView, Tell
from ...policy.window import Window

__all__ = ["SqlResources"]

T = TypeVar("T")

_STEP = "resource"


class SqlResources:
    """The resources of a store whose records are changed by ``_change``."""

    _change: Callable[..., Any]
    release: Callable[..., Record | None]
    lookup: Callable[[str], Record | None]
    now: Callable[[], float]

    def tell(self, tell: Tell, *, holder: str) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        self._change_resource(tell.resource.name, lambda occupancy, now: (occupancy.leave(tell, holder=holder, now=now), None))

    def hold(self, slots: Iterable[tuple[str, str]], lease: float) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`; a statement for each resource."""
        by_name: dict[str, list[str]] = {}
        for name, holder in slots:
            by_name.setdefault(name, []).append(holder)
        for name, holders in by_name.items():

            def change(occupancy: Occupancy, now: float, holders: list[str] = holders) -> tuple[Occupancy, None]:
                for holder in holders:
                    occupancy = occupancy.hold(holder, lease=lease, now=now)
                return occupancy, None

            self._change_resource(name, change)

    def view(self, resources: Iterable[Resource]) -> list[ResourceView]:
        """See :class:`~celery_guardrails.ports.ResourceStore`; a query for each."""
        now = self.now()
        return [_read(self.lookup(_key(resource.name))).view(resource, now) for resource in resources]

    def force(self, name: str, condition: Condition | None, seconds: float) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        self._change_resource(name, lambda occupancy, now: (occupancy.force(condition, seconds, now), None))

    def _enter(self, claim: Claim, ask: Ask, *, key: str, holder: str, lease: float) -> Claim:
        """Let the holder of a fresh claim into its resource, or give the claim back."""
        if claim.state is not ClaimState.CLAIMED:
            return claim
        refusal: Refusal | None = self._change_resource(
            ask.resource.name,
            lambda occupancy, now: occupancy.enter(ask, holder=holder, first=is_first(claim), lease=lease, now=now),
        )
        if refusal is None:
            return claim
        self.release(key, holder=holder)
        return refused(claim, refusal)

    def _change_resource(self, name: str, change: Callable[[Occupancy, float], tuple[Occupancy, T]]) -> T:
        def step(record: Record | None, now: float) -> tuple[Record | None, T, float]:
            before = _read(record)
            after, answer = change(before, now)
            written = record if after is before else _written(after)
            return written, answer, self._kept(written)

        answer: T = self._change(_key(name), step)
        return answer

    def _kept(self, record: Record | None) -> float:
        raise NotImplementedError


def _key(name: str) -> str:
    """Return the key of a resource; with a character that no template and no person would put into one."""
    return f"\0resource:{name}"


def _read(record: Record | None) -> Occupancy:
    if record is None or _STEP not in record.steps:
        return Occupancy()
    kept = json.loads(record.steps[_STEP].data)
    breaker = kept["breaker"]
    forced = breaker.pop("forced")
    state = ResourceState(
        BreakerState(
            **{**breaker, "calls": Window(*breaker["calls"]), "failures": Window(*breaker["failures"])},
            forced=None if forced is None else Condition(forced),
        ),
        BudgetState(**kept["budget"]),
        kept["arrival"],
        kept["entered"],
    )
    return Occupancy(state, kept["slots"])


def _written(occupancy: Occupancy) -> Record:
    state = occupancy.state
    windows = {name: tuple(vars(value).values()) for name, value in vars(state.breaker).items() if isinstance(value, Window)}
    kept = {
        "breaker": {**vars(state.breaker), **windows},
        "budget": vars(state.budget),
        "arrival": state.arrival,
        "entered": state.entered,
        "slots": dict(occupancy.slots),
    }
    return Record(steps={_STEP: StoredResult("application/json", "utf-8", json.dumps(kept).encode())})
