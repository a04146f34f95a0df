"""The servers of a simulated fleet, and the network between them and the workers.

The servers are the package's own in memory, watched: what must never happen at the store is noticed when it happens there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_guardrails.errors import PublishFailed, StoreUnavailable
from celery_guardrails.policy import lease as transitions
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import RawMessage
from celery_guardrails.policy.lease import Claim, ClaimState, StoredResult
from celery_guardrails.policy.resource import Ask
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.memory_broker import MemoryBroker

from .world import LEASE, Crash, Host, World

QUEUE = "work"
#: Seconds until a caller gives up on an answer.
TIMEOUT = 2.0


class CommitFailed(ConnectionError):
    """The database's answer to COMMIT did not come."""


class Store:
    """The one store, with the tables of effects that atomic tasks write into."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.offset = world.random.uniform(-3600, 3600)
        self.records = MemoryStore(now=lambda: world.now + self.offset)
        self.away_until = 0.0
        self.locks: dict[str, Transaction] = {}
        #: Effects committed, by key.
        self.rows: Counter[str] = Counter()
        self.fences: dict[str, int] = {}
        self.grants: dict[str, dict[str, float]] = defaultdict(dict)
        #: Holder → end of its slot of the resource, as long as it was never late to have it extended.
        self.slots: dict[str, float] = {}
        #: Key → the fence under which it was completed, and the result.
        self.completed: dict[str, tuple[int, bytes]] = {}
        #: Key and name of a step → the fence under which it was first recorded as done.
        self.steps: dict[tuple[str, str], int] = {}

    def execute(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry a command out, at once and as a whole."""
        answer = getattr(self.records, name)(*args, **kwargs)
        watch = getattr(self, f"_{name}", None)
        if watch is not None:
            watch(answer, *args, **kwargs)
        return list(answer) if isinstance(answer, Iterator) else answer

    def holds(self, key: str, holder: str) -> bool:
        """Whether a holder's lease lives."""
        return self.grants[key].get(holder, 0.0) > self.records.now()

    def _claim(self, claim: Claim, key: str, *, holder: str, lease: float, ask: Ask | None = None, **_: Any) -> None:
        if claim.state is not ClaimState.CLAIMED:
            return
        if ask is not None:
            self.slots[holder] = self.records.now() + lease
        grants, now = self.grants[key], self.records.now()
        if key in self.completed:
            self.world.complain(f"{key} was claimed after its completion")
        if holder not in grants:
            others = [other for other, until in grants.items() if until > now]
            if others:
                self.world.complain(f"{key} was given to {holder} while {others} held it")
            if claim.fence <= self.fences.get(key, 0):
                self.world.complain(f"{key}: fence {claim.fence} after {self.fences[key]}")
            self.fences[key] = claim.fence
            grants.clear()
        grants[holder] = now + lease

    def _renew(self, answers: list[bool], leases: list[tuple[str, str]], lease: float) -> None:
        for (key, holder), held in zip(leases, answers, strict=True):
            if held:
                self.grants[key][holder] = self.records.now() + lease

    def _release(self, _: Any, key: str, *, holder: str, **__: Any) -> None:
        self.grants[key].pop(holder, None)

    def _hold(self, _: None, slots: list[tuple[str, str]], lease: float) -> None:
        now = self.records.now()
        for _name, holder in slots:
            if self.slots.get(holder, 0.0) > now:
                self.slots[holder] = now + lease

    def _reset(self, _: bool, key: str, *, holder: str | None = None, **__: Any) -> None:
        self.grants[key].pop(holder or "", None)

    def _break_lease(self, _: Any, key: str) -> None:
        self.grants[key].clear()

    def _save_step(self, done: bool, key: str, *, holder: str, name: str, value: StoredResult) -> None:
        if done:
            self.steps.setdefault((key, name), self.fences[key])

    def _complete(self, done: bool, key: str, *, holder: str, fence: int, result: StoredResult, **_: Any) -> None:
        if done and key not in self.completed and self.grants[key] and holder not in self.grants[key]:
            self.world.complain(f"{key} was completed by {holder} while {self.grants[key]} had it")
        if done and self.completed.setdefault(key, (fence, result.data)) != (fence, result.data):
            self.world.complain(f"{key} was completed twice: {self.completed[key]} and {(fence, result.data)}")
        self.grants[key].clear()


class Transaction:
    """A database transaction: its effects and the completion stand together, or neither does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.effects: list[str] = []
        self._completion: tuple[str, dict[str, Any]] | None = None

    def complete(self, key: str, *, holder: str, fingerprint: str | None, fence: int, result: StoredResult, retention: float) -> bool:
        """Lock the record and write the completion, to be seen when the transaction commits."""
        world = self._store.world
        world.step()
        while key in self._store.locks:
            world.wait(0.1)
        call: dict[str, Any] = {"holder": holder, "fingerprint": fingerprint, "fence": fence, "result": result}
        _, done = transitions.complete(self._store.records.lookup(key), now=self._store.records.now(), **call)
        if done:
            self._store.locks[key] = self
            self._completion = (key, {**call, "retention": retention})
        world.step()
        return done

    def commit(self) -> None:
        """Make it all true at once."""
        if self._completion is not None:
            key, call = self._completion
            if not self._store.execute("complete", (key,), call):
                self._store.world.complain(f"the locked record of {key} has changed")
        self._store.rows.update(self.effects)
        self.end()

    def end(self) -> None:
        """Let go of what is locked."""
        for key, owner in list(self._store.locks.items()):
            if owner is self:
                del self._store.locks[key]


class StoreLink:
    """The store as one process sees it: calls get lost on the way, arrive late, or their answers do not come."""

    def __init__(self, store: Store) -> None:
        self._store, self._world = store, store.world
        self.present: Transaction | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def over_the_network(*args: Any, **kwargs: Any) -> Any:
            store, world = self._store, self._world
            if name in ("renew", "hold"):
                args = (list(args[0]), *args[1:])
            keys = [key for key, _ in args[0]] if name == "renew" else () if name in ("hold", "tell") else args[:1]
            world.step()
            if world.chance(world.faults / 10):
                store.away_until = world.now + world.random.uniform(0.5, 4.0)
            if world.now < store.away_until and not world.calm:
                raise StoreUnavailable("no connection")
            if world.chance(world.faults / 3):
                if world.chance(0.5):  # it is on its way still, and arrives when nobody waits for it any more
                    world.later(world.random.uniform(0, LEASE), lambda: self._late(name, keys, args, kwargs))
                world.wait(TIMEOUT)
                raise StoreUnavailable("no answer")
            end = world.now + TIMEOUT
            while any(key in store.locks for key in keys) and name not in ("lookup", "now", "leases"):
                if world.now > end:
                    raise StoreUnavailable("lock timeout")
                world.wait(0.1)
            answer = store.execute(name, args, kwargs)
            world.step()
            if world.chance(world.faults / 3):
                raise StoreUnavailable("the answer was lost")
            return answer

        return over_the_network

    def _late(self, name: str, keys: Any, args: Any, kwargs: Any) -> None:
        if not any(key in self._store.locks for key in keys):
            self._store.execute(name, args, kwargs)

    @contextmanager
    def transaction(self, database: str | None) -> Iterator[Transaction]:
        """See :class:`celery_guardrails.ports.TransactionalStore`."""
        world = self._world
        world.step()
        transaction = self.present = Transaction(self._store)
        try:
            yield transaction
            world.step()
            if world.chance(world.faults / 3):
                raise CommitFailed
            transaction.commit()
            world.step()
            if world.chance(world.faults / 3):
                raise CommitFailed
        finally:
            self.present = None
            transaction.end()


class Broker(MemoryBroker):
    """The one broker, and which messages it has a copy of."""

    def __init__(self, world: World) -> None:
        host = Host(world, "broker", 0.0)
        super().__init__([QUEUE], clock=host)
        self.world = world
        self.buried: list[str] = []

    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        self.buried.append(str(certificate.key))
        super().dead_letter(message, queue, certificate)

    def fetch(self) -> tuple[int, RawMessage] | None:
        """Hand out one of the first messages, not always the first; sometimes a copy of it goes to somebody else as well."""
        taken = [found for found in (self.receive(QUEUE) for _ in range(self.world.random.randrange(1, 4))) if found]
        if not taken:
            return None
        number, message = taken.pop(self.world.random.randrange(len(taken)))
        for other, _ in taken:
            self.requeue(other)
        if self.world.chance(self.world.faults / 2):  # as on Redis after the visibility timeout
            self.world.later(self.world.random.uniform(0, LEASE), lambda: self.send(message, QUEUE) if number in self._held else None)
        return number, message

    def copies(self) -> Iterator[RawMessage]:
        """Yield every message there is, wherever it is."""
        for messages in self._ready.values():
            yield from messages.values()
        yield from (message for _, message in self._held.values())
        yield from (message for *_, message in self._delayed)

    def idle(self) -> bool:
        """Whether nothing waits, is delayed or is in somebody's hands."""
        return not (self._ready.get(QUEUE) or self._held or self._delayed)


class BrokerLink:
    """The broker as one process sees it."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._world = broker, broker.world

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._broker, name)
        if name not in ("delay", "send", "dead_letter", "take"):
            return call  # type: ignore[no-any-return]

        def over_the_network(*args: Any, **kwargs: Any) -> Any:
            world = self._world
            world.step()
            if world.chance(world.faults / 3):
                if world.chance(0.5) and name != "take":
                    world.later(world.random.uniform(0, LEASE), lambda: call(*args, **kwargs))
                world.wait(TIMEOUT)
                raise PublishFailed("no confirm")
            answer = call(*args, **kwargs)
            world.step()
            if world.chance(world.faults / 3):
                raise PublishFailed("the confirm was lost")
            return answer

        return over_the_network


__all__ = ["QUEUE", "Broker", "BrokerLink", "CommitFailed", "Crash", "Store", "StoreLink"]
