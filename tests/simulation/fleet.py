"""A fleet in one process: workers, broker and store under one fake clock, and faults at every step.

The workers run the real guard, the real policy and the real transitions; what is simulated is Celery's part (take a
message, run the body, acknowledge) and the world's (crashes, pauses, lost replies, duplicates, stores that go away).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from celery_guardrails.errors import PublishFailed, StoreUnavailable
from celery_guardrails.guard import ErrorReport, Guard, Patience
from celery_guardrails.policy.classification import PERMANENT, RETRYABLE, Classification
from celery_guardrails.policy.delivery import TRAVEL_HEADER, Delivery, RawMessage, Travel
from celery_guardrails.policy.lease import Claim, StoredResult
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import Complete, DeadLetterNow, HandBack, Limits, Raised, Replay, RetryIn, Returned, Run
from celery_guardrails.ports import Clock
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.clock import FakeClock
from celery_guardrails.testing.memory_broker import MemoryBroker

QUEUE = "work"
LEASE = 10.0


class Crash(BaseException):
    """The process is gone: nothing after this line runs."""


class JsonCodec:
    """Results as JSON."""

    def encode(self, value: Any, task_id: str) -> StoredResult:
        return StoredResult("application/json", "utf-8", json.dumps(value).encode(), task_id)

    def decode(self, result: StoredResult | None) -> Any:
        return None if result is None else json.loads(result.data)


class LiveClock(FakeClock):
    """Waiting takes its time in small steps, so that the main processes go on renewing leases meanwhile."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        while seconds > 0:
            self.advance(min(seconds, LEASE / 4))
            seconds -= LEASE / 4
            self.meanwhile()


@dataclass
class World:
    """What happens when, and what has happened."""

    seed: int
    faults: float = 0.05
    clock: LiveClock = field(init=False)
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.clock = LiveClock(self.seed)
        self.calm = False
        self.store_away_until = 0.0
        self.store = MemoryStore(now=self.clock.now)
        self.broker = MemoryBroker([QUEUE], clock=self.clock, on_operation=lambda _: self.maybe_crash())
        self.effects: Counter[str] = Counter()
        self.running: dict[str, set[str]] = defaultdict(set)
        self.holders: dict[int, str] = {}
        self.zombies: set[str] = set()
        self.overlaps: list[str] = []
        self.fences: dict[str, int] = {}
        self.finished: dict[str, str] = {}

    def chance(self, probability: float) -> bool:
        return not self.calm and self.random.random() < probability

    def maybe_crash(self) -> None:
        if self.chance(self.faults / 4):
            raise Crash


class FlakyStore:
    """The store as seen over a network: calls get lost on the way, answers on the way back, processes die around them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._world.store, name)
        world = self._world

        def over_the_network(*args: Any, **kwargs: Any) -> Any:
            world.maybe_crash()
            if world.chance(world.faults / 10):
                world.store_away_until = world.clock.now() + world.random.uniform(0.5, 4.0)
            if world.clock.now() < world.store_away_until or world.chance(world.faults / 4):
                raise StoreUnavailable("no answer")
            answer = call(*args, **kwargs)
            world.maybe_crash()
            if world.chance(world.faults / 4):
                raise StoreUnavailable("the answer was lost")
            return answer

        return over_the_network


class Worker:
    """Takes messages one by one and does with them what Celery does."""

    def __init__(self, world: World, number: int, limits: Limits, body: Callable[[str, int], Any]) -> None:
        self.world, self.limits, self.body, self.number = world, limits, body, number
        clock: Clock = world.clock
        self.guard = Guard(
            store=FlakyStore(world),  # type: ignore[arg-type]
            broker=world.broker,
            codec=JsonCodec(),
            clock=clock,
            emit=lambda event: None,
            lease=LEASE,
            node=f"worker-{number}",
            patience=Patience(complete=LEASE * 4, release=1.0, publish=1.0),
        )

    def take(self) -> RawMessage | None:
        for letter in self.world.broker.browse(QUEUE):
            self.world.calm, calm = True, self.world.calm  # a delivery is the broker's doing and does not crash us
            self.world.broker.take(letter)
            self.world.calm = calm
            return letter.message
        return None

    def steps(self, message: RawMessage) -> Generator[None, None, str]:
        """Run one message; yields where other workers may run and time may pass. Returns what became of it."""
        world = self.world
        name = str(message.headers["id"])
        delivery = Delivery(
            task_id=name,
            task_name="work",
            key=str(message.headers["key"]),
            fingerprint=None,
            holder=f"{self.number}-{world.random.getrandbits(48)}",
            queue=QUEUE,
            travel=Travel.from_headers(message.headers),
            raw=message,
        )
        world.holders[self.number] = delivery.holder
        try:
            verdict, claim = self.guard.admit(delivery, self.limits)
            yield
            if isinstance(verdict, Replay):
                world.finished[name] = "completed"
                return "acked"
            if not isinstance(verdict, Run):
                if isinstance(verdict, DeadLetterNow):
                    world.finished[name] = verdict.reason
                return "acked"
            return (yield from self._body(delivery, claim))
        except PublishFailed:
            return "requeued"
        except Crash:
            return "crashed"

    def _body(self, delivery: Delivery, claim: Claim) -> Generator[None, None, str]:
        world, key = self.world, delivery.key
        if delivery.holder not in world.zombies:
            if claim.fence <= world.fences.get(key, 0):
                world.overlaps.append(f"{key}: fence {claim.fence} after {world.fences[key]}")
            world.fences[key] = claim.fence
        if delivery.holder not in world.zombies:
            world.running[key].add(delivery.holder)
        if len(world.running[key]) > 1:
            world.overlaps.append(f"{key} runs {len(world.running[key])} times at once")
        try:
            for _ in range(world.random.randrange(4)):
                yield
                world.maybe_crash()
            try:
                value = self.body(key, claim.attempts + 1)
                world.effects[key] += 1
                outcome: Any = Returned(value)
            except Exception as exc:  # noqa: BLE001 - the body's
                kind = PERMANENT if isinstance(exc, ValueError) else RETRYABLE
                outcome = Raised(Classification(kind))
            world.maybe_crash()
        finally:
            world.running[key].discard(delivery.holder)
        verdict = self.guard.settle(delivery, claim, outcome, self.limits, error=ErrorReport("Error"))
        yield
        if isinstance(verdict, Complete):
            world.finished[delivery.task_id] = "completed"
        elif isinstance(verdict, DeadLetterNow):
            world.finished[delivery.task_id] = verdict.reason
        else:
            assert isinstance(verdict, (RetryIn, HandBack)), verdict
        world.maybe_crash()
        return "acked"


def message(name: str, key: str) -> RawMessage:
    """A task message."""
    headers = {"id": name, "task": "work", "key": key, TRAVEL_HEADER: Travel(key=key).to_header()}
    return RawMessage(b"[]", "application/json", "utf-8", headers, {}, "", QUEUE)


def run(world: World, body: Callable[[str, int], Any], *, tasks: int = 6, workers: int = 3, limits: Limits | None = None) -> None:
    """Publish, let the workers loose until everything has come to rest, with faults for the first part of the time."""
    limits = limits or Limits(retry=RetryPolicy(max_attempts=4, base=0.5, cap=3.0), max_crashes=50)
    crew = [Worker(world, number, limits, body) for number in range(workers)]
    world.calm = True
    for number in range(tasks):
        for copy in range(1 + world.random.randrange(3)):
            world.broker.send(message(f"t{number}.{copy}", f"k{number}"), QUEUE)
    world.calm = False
    busy: dict[int, tuple[Generator[None, None, str], RawMessage]] = {}
    world.clock.meanwhile = lambda: _renew(world, busy)
    published = {str(letter.message.headers["id"]) for letter in world.broker.browse(QUEUE)}
    returning: list[tuple[float, RawMessage]] = []
    for tick in range(20_000):
        world.calm = tick > 1_500
        world.clock.advance(world.random.choice((0.0, 0.01, 0.1, 0.5)))
        if world.chance(world.faults / 25):
            world.clock.advance(LEASE * 1.5)  # the host was frozen: every lease has ended
            world.running.clear()
            world.zombies.update(world.holders.values())  # what wakes up may still run, it may not settle
        for due, raw in list(returning):
            if due <= world.clock.now():
                returning.remove((due, raw))
                _redeliver(world, raw)
        number = world.random.randrange(workers)
        if number not in busy:
            raw_or_none = crew[number].take()
            if raw_or_none is not None:
                busy[number] = (crew[number].steps(raw_or_none), raw_or_none)
            elif not busy and not returning and not _waiting(world):
                break
            continue
        generator, raw = busy[number]
        try:
            next(generator)
            _renew(world, busy)
        except StopIteration as stop:
            del busy[number]
            if stop.value in ("crashed", "requeued"):
                returning.append((world.clock.now() + world.random.uniform(0, 2), raw))
            elif world.chance(0.03):
                returning.append((world.clock.now() + world.random.uniform(0, 20), raw))  # the ack got lost
    else:
        raise AssertionError(f"seed {world.seed}: the fleet did not come to rest")
    missing = published - set(world.finished)
    assert not missing, f"seed {world.seed}: lost {sorted(missing)}"


def _waiting(world: World) -> bool:
    if world.broker.depth(QUEUE):
        return True
    due = world.broker._delayed
    if due:
        world.clock.advance(max(0.0, due[0][0] - world.clock.now()))
        return True
    return False


def _redeliver(world: World, raw: RawMessage) -> None:
    calm, world.calm = world.calm, True
    world.broker.send(raw, QUEUE)
    world.calm = calm


def _renew(world: World, busy: dict[int, Any]) -> None:
    """What the main processes' renewal does: extend every lease whose holder lives, unless it has ended already.

    One that has ended may be extended too, but here it stands for a host that was frozen: let the others have it.
    """
    if world.clock.now() < world.store_away_until:
        return
    for key, (record, _) in list(world.store._records.items()):
        number = int(record.holder.split("-")[0]) if record.holder else -1
        if number in busy and world.holders[number] == record.holder and record.until > world.clock.now():
            world.store.renew([(key, record.holder)], LEASE)
