"""The audit while a soak goes on: every task that has had no effect yet, by name, through the package's own ``guardrails audit``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celery_guardrails.audit import Audit, Standing, State

from .app import key_of
from .plan import LINKS, MEMBERS, Expected

#: Kinds of orders whose message has no readable key.
_BY_ID = ("undecodable", "unknown", "invalid")


def identity(task: Expected) -> str:
    """Return what an audit knows a task by: its key, or the task id of a message that is none of ours."""
    return f"id-{task.name}" if task.kind in _BY_ID else key_of(task.name)


def published(tasks: Iterable[Expected], effects: Mapping[str, int]) -> list[Expected]:
    """Return those whose message must be somewhere: of a chain the next link, of a chord the body once all members are done."""
    return [task for task in tasks if all(effects.get(name) for name in _before(task))]


def _before(task: Expected) -> list[str]:
    order, _, part = task.name.rpartition(".")
    if task.kind == "chain":
        return [f"{order}.{number}" for number in range(LINKS) if number < int(part)]
    if task.kind == "chord" and part == "body":
        return [f"{order}.{number}" for number in range(MEMBERS)]
    return []


class Live:
    """Remembers from look to look what was odd.

    Args:
        patience: seconds that a task may be nowhere: a lease, Redis' visibility timeout, and a margin.
    """

    def __init__(self, patience: float) -> None:
        #: Contradictions: the soak is not good.
        self.found: set[str] = set()
        #: Those that were nowhere (or running and dead) for too long: told, with where they were; the end says what became of them.
        self.suspects: dict[str, str] = {}
        self._patience = patience
        self._odd_since: dict[str, float] = {}
        self._no_effect: set[str] = set()
        self._dead: set[str] = set()

    def open(self, tasks: Sequence[Expected], confirmed: set[str], effects: Mapping[str, int]) -> list[Expected]:
        """Return the tasks to look for: accepted, published, and neither with an effect nor seen dead."""
        mine = [task for task in tasks if task.name in confirmed and task.name not in self._dead and not effects.get(task.name)]
        return published(mine, effects)

    def see(self, now: float, looked_for: Sequence[Expected], audit: Audit, effects: Mapping[str, int]) -> list[str]:
        """Take a look in, and return what is newly suspect, in words.

        Args:
            now: seconds of any clock.
            looked_for: by this audit, in the order of its standings.
            audit: what it found.
            effects: read after it.
        """
        new, odd, bare = [], set(), set()
        for task, standing in zip(looked_for, audit.standings, strict=True):
            if standing.state is State.COMPLETED and not effects.get(task.name):
                bare.add(task.name)
            if standing.state is State.DEAD:
                self._dead.add(task.name)
                if task.reason is None:
                    self.found.add(f"{task.name}: {standing.where}, and it was to succeed")
            if _is_odd(standing) and not effects.get(task.name):
                odd.add(task.name)
                since = self._odd_since.setdefault(task.name, now)
                if now - since >= self._patience and task.name not in self.suspects:
                    self.suspects[task.name] = f"{task.name}: {standing.contradiction or standing.where}, for {now - since:.0f} s"
                    new.append(self.suspects[task.name])
        # twice: a body's effect may be read late
        self.found |= {f"{name}: completed, and there is no effect" for name in bare & self._no_effect}
        self.found |= {finding.text for finding in audit.findings if finding.error and finding.kind == "completed and dead"}
        self._no_effect = bare
        self._odd_since = {name: since for name, since in self._odd_since.items() if name in odd}
        return new


def _is_odd(standing: Standing) -> bool:
    return standing.state is State.UNACCOUNTED or (standing.state is State.RUNNING and bool(standing.contradiction))


def line(accepted: int, effects: int, audit: Audit) -> str:
    """Return one line for whoever watches."""
    balance: dict[str, Any] = {state.value: count for state, count in audit.balance.items() if count}
    parts = ", ".join(f"{name} {count}" for name, count in balance.items()) or "none"
    return f"  {accepted:>7,} accepted, {effects:,} with effect; under way: {parts} (looked for {audit.seconds:.1f} s, {audit.looks} times)"
