"""Resources in Redis: how they are named, and what of them goes into a script and comes out of one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from ...policy.breaker import BreakerState, Condition
from ...policy.budget import BudgetState
from ...policy.lease import Claim, ClaimState, Record
from ...policy.occupancy import is_first, refused
from ...policy.resource import Ask, Refusal, Resource, ResourceState, ResourceView, Tell, view
from ...policy.window import Window
from .runner import Runner

__all__ = ["RedisResources"]

T = TypeVar("T")


class RedisResources:
    """The resources of a :class:`~.RedisStore`.

    On one server they are asked and told by the scripts that claim and settle; in a cluster, where they may lie on another
    node than the key, by scripts of their own, which take a round trip more each.
    """

    _runner: Runner
    _namespace: str
    _guarded: Callable[[Callable[[], T]], T]
    release: Callable[..., Record | None]

    def tell(self, tell: Tell, *, holder: str) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        words = self._told(tell)
        self._guarded(lambda: self._runner.run("leave", words[0], holder, *words))

    def hold(self, slots: Iterable[tuple[str, str]], lease: float) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        calls = []
        for name, holder in slots:
            words = (*self._names(name), *_SILENT)
            calls.append((words[0], holder, max(1, int(lease * 1000)), *words))
        if calls:
            self._guarded(lambda: self._runner.run_many("hold", calls))

    def view(self, resources: Iterable[Resource]) -> list[ResourceView]:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        wanted = list(resources)
        if not wanted:
            return []
        calls = []
        for resource in wanted:
            words = (*self._names(resource.name), *_SILENT)
            calls.append((words[0], *words))
        answers = self._guarded(lambda: self._runner.run_many("state", calls))
        return [_view(resource, answer) for resource, answer in zip(wanted, answers, strict=True)]

    def force(self, name: str, condition: Condition | None, seconds: float) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        words = (*self._names(name), *_SILENT)
        chosen = "" if condition is None else condition.value
        self._guarded(lambda: self._runner.run("force", words[0], chosen, max(1, int(seconds * 1000)), *words))

    # -- what goes with a key's own scripts ---------------------------------------------------------------------

    def _asked(self, ask: Ask) -> tuple[Any, ...]:
        return (*self._names(ask.resource.name), "", ask.cost, 0, -1, _settings(ask.resource))

    def _told(self, tell: Tell) -> tuple[Any, ...]:
        began = -1 if tell.began is None else round(tell.began * 1000)
        return (*self._names(tell.resource.name), tell.effect.value, tell.cost, tell.fraction, began, _settings(tell.resource))

    def _names(self, name: str) -> tuple[str, str]:
        return _names(self._namespace, name)

    def _enter(self, claim: Claim, ask: Ask, *, key: str, holder: str, lease: float) -> Claim:
        """Let the holder of a fresh claim into its resource, or give the claim back."""
        if claim.state is not ClaimState.CLAIMED:
            return claim
        words = self._asked(ask)
        first, length = int(is_first(claim)), max(1, int(lease * 1000))
        answer = self._guarded(lambda: self._runner.run("enter", words[0], holder, first, length, *words))
        if isinstance(answer, bytes):
            return claim
        self.release(key, holder=holder)
        return refused(claim, Refusal(answer[0].decode(), int(answer[1]) / 1000))


@lru_cache(maxsize=1024)
def _names(namespace: str, name: str) -> tuple[str, str]:
    """Return the names of a resource's two keys, in one slot of a cluster: the braces are its hash tag."""
    text = f"{namespace}:resource:{{={name.replace('}', '%7D')}}}"
    return text, f"{text}:slots"


#: Name of a resource → the last one of that name, and its settings. To hash one, as a cache by value does, takes 6 µs.
_known: dict[str, tuple[Resource, bytes]] = {}


def _settings(resource: Resource) -> bytes:
    """Return the settings of a resource as ``ask.lua`` and ``tell.lua`` read them."""
    found = _known.get(resource.name)
    if found is None or found[0] is not resource:
        found = _known[resource.name] = (resource, _packed(resource))
    return found[1]


def _packed(resource: Resource) -> bytes:
    breaker, budget, rate = resource.breaker, resource.retry_budget, resource.rate
    words: list[float] = [0, 1, 1, 1000, 0, 0, 1]
    if breaker is not None:
        length, first, most = (1000 * seconds for seconds in (breaker.window, breaker.open_seconds, breaker.max_open_seconds))
        words = [1, breaker.failure_rate, breaker.min_calls, length, first, most, breaker.probes]
    words += [0, 0, 1, 1000, 1] if budget is None else [1, budget.ratio, budget.min_per_second, 1000 * budget.window, budget.throttled_cost]
    words.append(resource.max_concurrency or 0)
    words += [0, 1] if rate is None else [rate.per_second / 1000, rate.burst]
    return struct.pack(f">{len(words)}d", *words)


#: What goes with scripts that neither ask nor tell: no effect, no cost, no fraction, no beginning, no settings.
_SILENT = ("", 0, 0, -1, _settings(Resource("nothing", retry_budget=None, breaker=None)))


def _view(resource: Resource, answer: Sequence[bytes]) -> ResourceView:
    now, running, *fields = answer
    *numbers, probe, forced = fields
    opened, until, since, passed, probe_until, forced_until, arrival, entered, *counts = map(float, numbers)
    calls, failures = (Window(counts[at] / 1000, counts[at + 1], counts[at + 2]) for at in (0, 3))
    breaker = BreakerState(
        int(opened),
        until / 1000,
        since / 1000,
        int(passed),
        probe.decode(),
        probe_until / 1000,
        Condition(forced.decode()) if forced else None,
        forced_until / 1000,
        calls,
        failures,
    )
    state = ResourceState(breaker, BudgetState(counts[6], counts[7] / 1000), arrival / 1000, int(entered))
    return view(resource, state, running=int(running), now=int(now) / 1000)
