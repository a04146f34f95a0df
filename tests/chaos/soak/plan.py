"""What a soak does and when, from a seed alone: the same seed gives the same tasks and the same deaths at the same times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

#: Deaths from outside, and how often an hour. With these an hour has over 200 children, 50 workers and 20 brokers killed.
FAULTS_AN_HOUR = {
    "child_kill": 240,  # SIGKILL to a pool process
    "worker_kill": 60,  # SIGKILL to a main process
    "rolling": 40,  # SIGTERM, as a deploy; another worker starts
    "term_quit": 16,  # SIGTERM, then SIGQUIT
    "term_twice": 16,  # SIGTERM, and again
    "freeze": 20,  # SIGSTOP for longer than the lease, then SIGCONT
    "cut": 40,  # the workers' connections to the broker are reset
    "broker_restart": 24,  # SIGKILL, started again with the same data
    "store_restart": 16,  # the same
}

#: Kinds of orders and their shares. What dies by itself is in the load, not among the faults.
SHARES = {
    "plain": 60.0,
    "twice": 6.0,  # one message, published twice
    "again": 4.0,  # another message with the same key
    "retrying": 6.0,  # RetryableError, twice
    "self_retry": 4.0,  # self.retry(), twice
    "chain": 5.0,
    "chord": 4.0,
    "loop": 1.0,  # resume()
    "exits": 0.7,  # os._exit in the body, once
    "segfault": 0.5,  # once
    "hard_limit": 0.5,  # over its hard time limit, once
    "permanent": 1.0,
    "exhausted": 0.5,
    "poison": 0.15,  # kills its process whenever it runs
    "undecodable": 0.2,
    "unknown": 0.2,
    "invalid": 0.2,
}

#: Kind → the reason of the dead letter that it has to become.
REASONS = {
    "permanent": "permanent",
    "exhausted": "exhausted",
    "poison": "poison",
    "undecodable": "undecodable",
    "unknown": "unknown_task",
    "invalid": "invalid",
}

#: Links of a chain, members of a chord, rows of a loop.
LINKS, MEMBERS, ROWS = 3, 4, 20


@dataclass(frozen=True)
class Fault:
    """A death from outside.

    Args:
        at: seconds after the start.
        kind: one of :data:`FAULTS_AN_HOUR`.
        pick: chooses among the workers and processes that there are then, by its remainder.
    """

    at: float
    kind: str
    pick: int


@dataclass(frozen=True)
class Order:
    """One thing to publish.

    Args:
        name: unique; the key of the task, or the beginning of its tasks' keys.
        kind: one of :data:`SHARES`.
        seconds: that a body of it takes.
    """

    name: str
    kind: str
    seconds: float

    def tasks(self) -> list[Expected]:
        """Return what is expected of each task of it."""
        if self.kind == "chain":
            return [Expected(f"{self.name}.{number}", self.kind) for number in range(LINKS)]
        if self.kind == "chord":
            return [Expected(f"{self.name}.{number}", self.kind) for number in [*range(MEMBERS), "body"]]
        # a loop cannot be atomic: what it did since its cursor was saved is done again, as its documentation says
        return [Expected(self.name, self.kind, REASONS.get(self.kind), once=self.kind != "loop")]


@dataclass(frozen=True)
class Expected:
    """A task, and what has to become of it.

    Args:
        name: on which its effect is.
        kind: of its order.
        reason: of its dead letter; None: it has one effect.
        once: whether a second effect is a doubled one.
    """

    name: str
    kind: str
    reason: str | None = None
    once: bool = True


def schedule(seed: int, seconds: float, *, store_restarts: bool = True, intensity: float = 1.0) -> list[Fault]:
    """Return the deaths of a soak in order of time, each kind at least once.

    Args:
        seed: decides.
        seconds: of the soak; nothing dies in its first and last twentieth.
        store_restarts: False for a store that is a file.
        intensity: factor on :data:`FAULTS_AN_HOUR`.
    """
    faults = []
    for kind, hourly in FAULTS_AN_HOUR.items():
        if kind == "store_restart" and not store_restarts:
            continue
        chance = random.Random(f"{seed}/{kind}")  # of each kind alone: one that is left out does not change the others
        for _ in range(max(1, round(hourly * seconds / 3600 * intensity))):
            faults.append(Fault(round(chance.uniform(0.05, 0.95) * seconds, 3), kind, chance.randrange(2**16)))
    return sorted(faults, key=lambda fault: (fault.at, fault.kind, fault.pick))


def orders(seed: int) -> Iterator[Order]:
    """Yield orders without end."""
    chance = random.Random(f"{seed}/orders")
    kinds, weights = list(SHARES), list(SHARES.values())
    number = 0
    while True:
        number += 1
        kind = chance.choices(kinds, weights)[0]
        yield Order(f"{number}-{kind}", kind, round(chance.uniform(0.0, 0.04), 3))
