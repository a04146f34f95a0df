"""A resource together with who is in it: the state of :mod:`.resource`, and a slot for every execution.

Slots are leases: renewed while the execution lives, and free again some time after its worker has died. Every execution has
one, also where their number is not limited: who has none, because it gave its slot back already or was away for too long, has
nothing more to say of the resource. So whatever is told twice counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .breaker import Condition
from .lease import Claim, ClaimState
from .resource import Ask, Refusal, Resource, ResourceState, ResourceView, Tell, ask, tell, view

__all__ = ["Occupancy", "is_first", "refused"]


@dataclass(frozen=True)
class Occupancy:
    """What a store keeps of one resource.

    Args:
        state: breaker, budget and rate.
        slots: holder → unix time in seconds at which its slot ends.
    """

    state: ResourceState = field(default_factory=ResourceState)
    slots: Mapping[str, float] = field(default_factory=dict)

    def _live(self, now: float) -> dict[str, float]:
        return {holder: until for holder, until in self.slots.items() if until > now}

    def enter(self, asked: Ask, *, holder: str, first: bool, lease: float, now: float) -> tuple[Occupancy, Refusal | None]:
        """Let an execution in, or say why not; one that is in already (the answer was lost) is not charged again."""
        slots = self._live(now)
        state, refusal = self.state, None
        if holder not in slots:
            state, refusal = ask(self.state, asked, holder=holder, first=first, lease=lease, running=len(slots), now=now)
        if refusal is not None:
            return self, refusal
        return Occupancy(state, {**slots, holder: now + lease}), None

    def leave(self, told: Tell, *, holder: str, now: float) -> Occupancy:
        """Give a slot back, and take in what its holder says."""
        if holder not in self.slots:
            return self
        slots = dict(self.slots)
        if slots.pop(holder) <= now:
            told = Tell(told.resource)  # away for too long: its slot may be another's by now
        return Occupancy(tell(self.state, told, holder=holder, now=now), slots)

    def hold(self, holder: str, *, lease: float, now: float) -> Occupancy:
        """Extend a slot, and the probe that it may be; one that ended and was not cleared away counts as still held."""
        if holder not in self.slots:
            return self
        breaker = self.state.breaker.renewed(holder, lease=lease, now=now)
        return Occupancy(replace(self.state, breaker=breaker), {**self.slots, holder: now + lease})

    def force(self, condition: Condition | None, seconds: float, now: float) -> Occupancy:
        """Put the breaker as an operator wants it."""
        return replace(self, state=replace(self.state, breaker=self.state.breaker.put(condition, now + seconds)))

    def view(self, resource: Resource, now: float) -> ResourceView:
        """Return it as people see it."""
        return view(resource, self.state, running=len(self._live(now)), now=now)


def refused(claim: Claim, refusal: Refusal) -> Claim:
    """Return the answer to a claim that would have been given, had the resource let its holder in."""
    return replace(claim, state=ClaimState.REFUSED, fence=0, takeover=False, wait=refusal.wait, why=refusal.why, steps={})


def is_first(claim: Claim) -> bool:
    """Whether a claim is for the first attempt of its key: only that is no call more than the work has tasks."""
    return not (claim.attempts or claim.crashes or claim.suspicions)
