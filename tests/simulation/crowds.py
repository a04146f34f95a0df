"""Fleets whose workers run several tasks at a time: long ones, and one that kills whoever runs it.

Guard, policy, store and broker are the real ones, as in :mod:`.fleet`; here nothing fails but what the poison does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery.exceptions import Ignore

from celery_guardrails import events
from celery_guardrails.config import Settings
from celery_guardrails.errors import GuardrailsError
from celery_guardrails.execution import current_execution
from celery_guardrails.guard import Guard, Patience
from celery_guardrails.integration.running import GuardedRun
from celery_guardrails.policy.classification import RETRYABLE, Classification
from celery_guardrails.policy.delivery import TRAVEL_HEADER, Delivery, RawMessage, Travel
from celery_guardrails.policy.verdict import Limits

from .fleet import JsonCodec
from .servers import QUEUE, Broker, BrokerLink, Store, StoreLink
from .world import Crash, Host, World

#: Seconds, the default of ``guardrails_lease_seconds``.
LEASE = 60.0
POISON = "poison"


class SimulatedRoom:
    """A worker's room whose waiting is the world's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._inside: set[str] = set()
        self._suspect = ""
        self._closed = False

    def shared(self) -> bool:
        return True

    def enter(self, holder: str) -> bool:
        if not self._closed:
            self._inside.add(holder)
        return not self._closed

    def alone(self, holder: str, seconds: float) -> bool:
        end = self._world.now + seconds
        self._inside.discard(holder)
        self._suspect, self._closed = holder, True
        while self._inside:
            if self._world.now >= end:
                self._inside.add(holder)
                self._closed = False
                return False
            self._world.wait(0.5)
        return True

    def leave(self, holder: str) -> bool:
        self._inside.discard(holder)
        if self._suspect != holder:
            return False
        self._suspect, self._closed = "", False
        return True


class Crowd:
    """Workers with several slots each, long tasks that come all the time, and the poison among them.

    Args:
        world: without faults.
        workers: hosts.
        slots: of each.
        neighbours: long tasks.
        longest: seconds that one of them takes at most.
        span: seconds in which they are published.
    """

    def __init__(self, world: World, *, workers: int, slots: int, neighbours: int, longest: float, span: float) -> None:
        self.world = world
        self.store, self.broker = Store(world), Broker(world)
        self.seconds = {f"long{number}": world.random.uniform(longest / 10, longest) for number in range(neighbours)}
        self.completed: set[str] = set()
        #: The most crashes that a run of a neighbour knew of.
        self.charged = 0
        #: Suspicions of the poison at each of its runs that should have been alone, and whether it was.
        self.quarantines: list[tuple[int, bool]] = []
        self.lost = 0
        for name in (POISON, *self.seconds):
            world.later(world.random.uniform(0, span / 4 if name == POISON else span), lambda name=name: self._publish(name))  # type: ignore[misc]
        self._left = 1 + neighbours
        for number in range(workers):
            Member(self, number, slots).start()

    def _publish(self, name: str) -> None:
        self._left -= 1
        headers = {"id": name, "task": "work", TRAVEL_HEADER: Travel(key=name, first=self.world.now + self.store.offset).to_header()}
        self.broker.send(RawMessage(b"[[], {}, {}]", "application/json", "utf-8", headers, {}, "", QUEUE), QUEUE)

    def go(self) -> None:
        """Let time pass until everything has come to rest."""
        self.world.run(lambda: not self._left and self.broker.idle(), faults_for=0.0)
        assert not self.world.trouble, f"seed {self.world.seed}: {self.world.trouble}"

    def certificates(self) -> dict[str, tuple[str, int]]:
        """Task id → reason and crashes, of what is in the dead letter queue."""
        letters = [letter.headers for letter in self.broker.messages(f"{QUEUE}.dead")]
        return {str(found["id"]): (found["guardrails"]["reason"], found["guardrails"]["crashes"]) for found in letters}


class Member(Host):
    """A worker of a crowd."""

    def __init__(self, crowd: Crowd, number: int, slots: int) -> None:
        super().__init__(crowd.world, f"worker{number}", 0.0)
        self.crowd, self.slots = crowd, slots
        self.settings = Settings(lease_seconds=LEASE)
        self.held: dict[int, RawMessage] = {}
        self.live: dict[str, str] = {}
        self.holders: set[str] = set()

    def start(self) -> None:
        """Boot, with nothing in memory."""
        self.held, self.live = {}, {}
        self.store = StoreLink(self.crowd.store)
        self.guard = Guard(
            store=self.store,  # type: ignore[arg-type]
            broker=BrokerLink(self.crowd.broker),  # type: ignore[arg-type]
            codec=JsonCodec(),
            clock=self,
            emit=self.emit,
            lease=LEASE,
            node=self.name,
            patience=Patience(),
            room=SimulatedRoom(self.world),
        )
        options = SimpleNamespace(retention=None, retryable=(), permanent=(), atomic=False)
        request = SimpleNamespace(chord=None)
        self.task = SimpleNamespace(name="work", guardrails=self, guard_options=options, _body=self._body, request=request)
        self.world.spawn(self, self._renew)
        for _ in range(self.slots):
            self.world.spawn(self, self._slot)

    # what a guarded run asks of its Guardrails

    def classify(self, exc: BaseException, **_: Any) -> Classification:
        return Classification(RETRYABLE)

    def limits_of(self, _: Any) -> Limits:
        return Limits()

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.Quarantined) and event.key == POISON:
            self.crowd.quarantines.append((event.suspicions, event.alone))

    # -- processes --------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        try:
            while True:
                self.world.wait(LEASE / 3)
                if self.live:
                    leases = [(key, holder) for holder, key in self.live.items()]
                    suspect = self.guard.room._suspect  # type: ignore[union-attr]
                    self.store.renew([*leases, ("\x7fquarantine", suspect)] if suspect in self.live else leases, LEASE)
        except Crash:
            return

    def _slot(self) -> None:
        try:
            while True:
                self.world.wait(self.world.random.uniform(0.01, 0.5))
                found = self.crowd.broker.fetch()
                if found is not None:
                    self._handle(*found)
        except Crash:
            return

    def _handle(self, number: int, message: RawMessage) -> None:
        travel = Travel.from_headers(message.headers)
        assert travel.key is not None
        holder = f"{self.world.random.getrandbits(64):016x}"
        delivery = Delivery(str(message.headers["id"]), "work", travel.key, None, holder, QUEUE, travel, raw=message)
        self.held[number], self.live[holder] = message, travel.key
        try:
            GuardedRun(self.task, delivery).run((travel.key,), {})
            self.crowd.completed.add(travel.key)
        except (Ignore, GuardrailsError):
            pass
        self.live.pop(holder)
        self.held.pop(number)
        self.crowd.broker.ack(number)

    def _body(self, args: Any, kwargs: Any) -> None:
        (key,) = args
        if key == POISON:
            self.world.wait(self.world.random.uniform(0.5, 20.0))
            self._die()
            raise Crash
        self.crowd.charged = max(self.crowd.charged, current_execution().crashes)
        self.world.wait(self.crowd.seconds[key])

    def _die(self) -> None:
        """The whole worker is gone: the broker redelivers what it had, its supervisor starts another."""
        self.crowd.lost += 1
        for number in self.held:
            self.world.later(self.world.random.uniform(0, 5), lambda number=number: self.crowd.broker.requeue(number))  # type: ignore[misc]
        self.world.kill(self)
        self.world.later(self.world.random.uniform(1, 5), self.start)
