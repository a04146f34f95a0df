"""A fleet in one process: workers, broker and store, and faults at every step of theirs.

The workers run the real guarded run, guard, policy and transitions; what is simulated is Celery's part (take a message,
run the body, acknowledge, notice a lost child, renew leases) and the world's.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from celery_guardrails import events
from celery_guardrails.config import Settings
from celery_guardrails.dead_letters import DeadLetters, KombuDecoder
from celery_guardrails.errors import PublishFailed, StoreUnavailable
from celery_guardrails.execution import current_execution
from celery_guardrails.guard import ErrorReport, Guard, Patience
from celery_guardrails.integration import overtaken
from celery_guardrails.integration.running import GuardedRun
from celery_guardrails.policy.classification import PERMANENT, RETRYABLE, Classification
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER, TRAVEL_HEADER, Delivery, RawMessage, Travel
from celery_guardrails.policy.lease import StoredResult
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import DeadLetterNow, Fail, Limits

from .servers import QUEUE, Broker, BrokerLink, Store, StoreLink
from .world import LEASE, Crash, Host, World

#: Seconds during which the world interferes.
TROUBLED = 90.0


class JsonCodec:
    """Results as JSON."""

    def encode(self, value: Any, task_id: str) -> StoredResult:
        return StoredResult("application/json", "utf-8", json.dumps(value).encode(), task_id)

    def decode(self, result: StoredResult | None) -> Any:
        return None if result is None else json.loads(result.data)

    def pack(self, value: Any) -> StoredResult:
        return self.encode(value, "")

    def unpack(self, kept: StoredResult) -> Any:
        return json.loads(kept.data)


@dataclass
class Run:
    """One run of a body, and what became of it.

    Args:
        key: of the task.
        holder: of the lease.
        fence: of the lease.
        attempt: 1-based.
        began: unix time in seconds by the store's clock.
        worker: that runs it.
        effects: what it did, by name.
        recorded: steps that it knows to be recorded.
        inside: its body has not ended.
        fate: ``"running"``, ``"returned"``, ``"failed"``, ``"overtaken"``, ``"crashed"`` or ``"back"`` (to the queue).
    """

    key: str
    holder: str
    fence: int
    attempt: int
    began: float
    worker: Worker = field(repr=False)
    effects: Counter[str] = field(default_factory=Counter)
    recorded: set[str] = field(default_factory=set)
    fate: str = "running"
    inside: bool = True


Body = Callable[["Fleet", Run], Any]


class Fleet:
    """Workers, store and broker in a world.

    Args:
        world: they live in.
        body: of every task.
        tasks: number of keys.
        workers: number of hosts, each with one child.
        limits: of the task.
        atomic: the body runs in a transaction.
        skewed: the hosts' clocks are up to an hour off.
    """

    def __init__(
        self,
        world: World,
        body: Body,
        *,
        tasks: int = 5,
        workers: int = 3,
        limits: Limits | None = None,
        atomic: bool = False,
        skewed: bool = True,
        operator: bool = False,
    ) -> None:
        overtaken._table[:] = bytes(len(overtaken._table))  # as in a fleet that has just been started
        self.world, self.body, self.atomic = world, body, atomic
        self.limits = limits or Limits(retry=RetryPolicy(max_attempts=4, base=0.5, cap=3.0), max_crashes=10**6)
        self.store, self.broker = Store(world), Broker(world)
        self.runs: list[Run] = []
        #: Bodies that ran at once with a slot of the resource.
        self.most = 0
        self.keys = [f"k{number}" for number in range(tasks)]
        #: Task id → key.
        self.published: dict[str, str] = {}
        #: Task id → what Celery was told of it last.
        self.results: dict[str, list[Any]] = defaultdict(list)
        #: Task ids that were told a result that the store would not remember.
        self.unrecorded: set[str] = set()
        self.step_keys: dict[tuple[str, str], set[str]] = defaultdict(set)
        for key in self.keys:
            for copy in range(1 + world.random.randrange(3)):
                self.published[f"t{key[1:]}.{copy}"] = key
        for name, key in self.published.items():
            headers = {"id": name, "task": "work", TRAVEL_HEADER: Travel(key=key, first=world.now + self.store.offset).to_header()}
            self.broker.send(RawMessage(b"[[], {}, {}]", "application/json", "utf-8", headers, {}, "", QUEUE), QUEUE)
        self.workers = [Worker(self, number, world.random.uniform(-3600, 3600) if skewed else 0.0) for number in range(workers)]
        for worker in self.workers:
            worker.start()
        if operator:
            self.operate()

    def go(self, done: Callable[[], bool] = lambda: True) -> None:
        """Let time pass until everything has come to rest, then look whether all promises were kept.

        Raises:
            AssertionError: with the seed.
        """
        world = self.world
        world.run(lambda: world.now > world.start + 1.0 and self.broker.idle() and done(), faults_for=TROUBLED if world.faults else 0.0)
        self.check()

    def operate(self) -> None:
        """Do at random times what operators do: break leases, forget keys that are not there."""
        world = self.world

        def act() -> None:
            if not world.calm:
                key = world.random.choice(self.keys)
                if key not in self.store.locks:
                    self.store.execute("break_lease", (key,), {})
                self.store.execute("forget", ("nothing",), {})
                world.later(world.random.uniform(1, 4 * LEASE), act)

        world.later(world.random.uniform(0, LEASE), act)

    def replay(self) -> None:
        """Have an operator replay the dead letters again and again, with a command that may die at any step."""
        world = self.world
        host = Host(world, "operator", world.random.uniform(-3600, 3600))
        service = DeadLetters(
            BrokerLink(self.broker),  # type: ignore[arg-type]
            None,
            settings=Settings(),
            clock=host,
            decoder=KombuDecoder(("json",)),
        )

        def command() -> None:
            while True:
                try:
                    world.wait(world.random.uniform(5, 20))
                    service.replay(max_replays=1000)
                except Crash:
                    if not world.alive():
                        return

        world.spawn(host, command)

    # -- what the bodies do -----------------------------------------------------------------------------------

    def work(self) -> None:
        """Do something that takes time, during which anything may happen."""
        for _ in range(self.world.random.randrange(4)):
            self.world.wait(self.world.random.choice((0.01, 0.2, 2.0)))
            self.world.step()
            self.look_around()

    def look_around(self) -> None:
        """Complain if more bodies run than the resource has slots; whose slot ended, because of a fault, does not count."""
        resource, now = self.limits.resource, self.store.records.now()
        if resource is None or resource.max_concurrency is None:
            return
        running = [run.holder for run in self.runs if run.inside and run.fate == "running"]
        there = [holder for holder in running if not self.world.faults or self.store.slots.get(holder, 0.0) > now]
        self.most = max(self.most, len(there))
        if len(there) > resource.max_concurrency:
            self.world.complain(f"{len(there)} run at once, and {resource.max_concurrency} may")

    def effect(self, run: Run, name: str = "") -> None:
        """Do what must not be done twice."""
        run.effects[name] += 1

    def effects(self, key: str, name: str = "") -> int:
        """How often an effect was done."""
        return sum(run.effects[name] for run in self.runs if run.key == key)

    def step(self, run: Run, name: str) -> Any:
        """A recovery point with an effect outside; returns its value."""
        with current_execution().step(name) as step:
            self.step_keys[run.key, name].add(step.key)
            if not step.done:
                if self.store.steps.get((run.key, name), run.fence) < run.fence:
                    self.world.complain(f"step {name} of {run.key} is done already, and is done again")
                self.effect(run, name)
                self.work()
                step.value = f"{name} by {run.holder}"
        if run.effects[name]:
            run.recorded.add(name)
        return step.value

    # -- promises ---------------------------------------------------------------------------------------------

    def certificates(self) -> dict[str, DeathCertificate]:
        """Task id → certificate of what is in the dead letter queue."""
        letters = self.broker.messages(f"{QUEUE}.dead")
        return {str(letter.headers["id"]): DeathCertificate.from_header(letter.headers[DEAD_LETTER_HEADER]) for letter in letters}

    def letters(self) -> dict[str, str]:
        """Task id → reason of what is in the dead letter queue."""
        return {name: certificate.reason for name, certificate in self.certificates().items()}

    def acknowledged(self, message: RawMessage) -> None:
        """Called when a message is gone: it must be completed, or somewhere else."""
        name = str(message.headers["id"])
        kept = self.published[name] in self.store.completed or any(str(other.headers["id"]) == name for other in self.broker.copies())
        if not kept and name not in self.unrecorded:
            self.world.complain(f"{name} is lost")

    def check(self) -> None:
        """Look at what has to be true of every fleet."""
        trouble = list(self.world.trouble)
        letters = self.letters()
        for name, key in self.published.items():
            if key not in self.store.completed and name not in letters and name not in self.unrecorded:
                trouble.append(f"{name} is neither completed nor dead")
            told = {json.dumps(value) for value in self.results[name]}
            right = self.store.completed.get(key, (0, b""))[1].decode()
            if name not in self.unrecorded and not told <= {right}:
                trouble.append(f"{name} was told {told}, and the result is {right}")
        for key in self.keys:
            returned = [run for run in self.runs if run.key == key and run.fate == "returned"]
            if len(returned) > 1 + len(self.unrecorded):
                trouble.append(f"{key} was returned by {len(returned)} runs")
        assert not trouble, f"seed {self.world.seed}: {'; '.join(trouble)}"


class Worker(Host):
    """A host with a main process and one child: it does with messages what Celery does."""

    def __init__(self, fleet: Fleet, number: int, offset: float) -> None:
        super().__init__(fleet.world, f"worker{number}", offset)
        self.fleet = fleet
        self.live: dict[str, str] = {}
        self.lost: list[tuple[int, RawMessage, Delivery]] = []
        self.held: dict[int, RawMessage] = {}
        self.gave_up = False
        self.run: Run | None = None
        self.store = StoreLink(fleet.store)
        self.settings = Settings(lease_seconds=LEASE, max_crashes=fleet.limits.max_crashes)
        self.guard = self._guard(Patience(complete=LEASE * 4, release=1.0, publish=1.0))
        self.main_guard = self._guard(Patience(complete=0.0, release=0.0, publish=0.0))
        options = SimpleNamespace(retention=None, retryable=(), permanent=(), atomic=fleet.atomic)
        request = SimpleNamespace(chord=None)
        self.task = SimpleNamespace(name="work", guardrails=self, guard_options=options, _body=self._body, request=request)

    def _guard(self, patience: Patience) -> Guard:
        return Guard(
            store=self.store,  # type: ignore[arg-type]
            broker=BrokerLink(self.fleet.broker),  # type: ignore[arg-type]
            codec=JsonCodec(),
            clock=self,
            emit=self.emit,
            lease=LEASE,
            node=self.name,
            patience=patience,
        )

    # what a guarded run asks of its Guardrails

    def classify(self, exc: BaseException, **_: Any) -> Classification:
        return Classification(PERMANENT if isinstance(exc, ValueError) else RETRYABLE)

    def transactional(self, _: Any) -> StoreLink:
        return self.store

    def limits_of(self, _: Any) -> Limits:
        return self.fleet.limits

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.StoreFailed) and event.operation == "complete":
            self.gave_up = True  # perhaps: a completion that came through later says so
        elif isinstance(event, events.Completed):
            self.gave_up = False

    # -- processes --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot."""
        self.live.clear()
        self.lost.clear()
        self.held.clear()
        self.world.spawn(self, self._main)
        self.world.spawn(self, self._child)

    def _die(self) -> None:
        """Everything on this host is gone; the broker notices, and somebody starts it again."""
        world, broker = self.world, self.fleet.broker
        if self.run is not None:
            self.run.fate, self.run = "crashed", None
        for number in self.held:
            world.later(world.random.uniform(0, 20), lambda number=number: broker.requeue(number))  # type: ignore[misc]
        world.kill(self)
        world.later(world.random.uniform(0.5, 5.0), self.start)

    def _main(self) -> None:
        """Renew leases and look after lost children."""
        renewed = 0.0
        try:
            while True:
                self.world.wait(0.5)
                while self.lost:
                    self._bury_child(*self.lost.pop(0))
                if self.world.now >= renewed + LEASE / 3 and self.live:
                    renewed = self.world.now
                    self._renew()
        except Crash:
            if self.world.alive():
                self._die()

    def _renew(self) -> None:
        leases = [(key, holder) for holder, key in self.live.items()]
        resource = self.fleet.limits.resource
        try:
            if resource is not None:
                self.store.hold([(resource.name, holder) for _, holder in leases], LEASE)
            for (_, holder), held in zip(leases, self.store.renew(leases, LEASE), strict=True):
                if not held:
                    overtaken.mark(holder)
        except StoreUnavailable:
            pass  # the next round is near

    def _bury_child(self, number: int, message: RawMessage, delivery: Delivery) -> None:
        try:
            verdict = self.main_guard.lost(delivery, self.fleet.limits, ErrorReport("WorkerLostError"))
        except PublishFailed:
            verdict = None
        self.world.step()
        if isinstance(verdict, (DeadLetterNow, Fail)):
            self._ack(number, message)
        else:
            self.fleet.broker.requeue(number)
            self.held.pop(number, None)

    def _child(self) -> None:
        """Take messages one by one and run them."""
        while True:
            found = None
            delivery = None
            try:
                self.world.wait(self.world.random.choice((0.01, 0.05, 0.3)))
                found = self.fleet.broker.fetch()
                if found is None:
                    self.world.wait(0.5)
                    continue
                self.held[found[0]] = found[1]
                delivery = self._delivery(found[1])
                self._handle(*found, delivery)
            except Crash:
                if not self.world.alive():
                    return  # with the whole host
                if self.run is not None:
                    self.run.fate, self.run = "crashed", None
                if self.world.random.random() < 0.5:
                    self._die()
                    return
                if found is not None and delivery is not None:  # the main process will see to it, and has another child
                    self.live.pop(delivery.holder, None)
                    self.lost.append((*found, delivery))

    def _delivery(self, message: RawMessage) -> Delivery:
        travel = Travel.from_headers(message.headers)
        assert travel.key is not None
        return Delivery(
            task_id=str(message.headers["id"]),
            task_name="work",
            key=travel.key,
            fingerprint=None,
            holder=f"{self.world.random.getrandbits(64):016x}",
            queue=QUEUE,
            travel=travel,
            raw=message,
        )

    # -- one message ------------------------------------------------------------------------------------------

    def _body(self, args: Any, kwargs: Any) -> Any:
        key, holder = args
        execution = current_execution()
        self.run = Run(key, holder, execution.fence, execution.attempt, self.fleet.store.records.now(), self)
        self.fleet.runs.append(self.run)
        run = self.run
        self.fleet.look_around()
        try:
            return self.fleet.body(self.fleet, run)
        finally:
            run.inside = False

    def _handle(self, number: int, message: RawMessage, delivery: Delivery) -> None:
        self.live[delivery.holder] = delivery.key
        self.run, self.gave_up = None, False
        fate = "failed"
        try:
            value = GuardedRun(self.task, delivery).run((delivery.key, delivery.holder), {})
            fate = "returned"
            if self.gave_up:
                self.fleet.unrecorded.add(delivery.task_id)
            self.fleet.results[delivery.task_id].append(value)
        except Reject:
            fate = "back"
        except Ignore:
            fate = "overtaken"
        except Retry:
            fate = "retried"
        except Exception as exc:
            if isinstance(exc, (AssertionError, TypeError, AttributeError, NameError)):
                raise
        if self.run is not None:
            self.run.fate, self.run = fate, None
        self.world.step()
        self.live.pop(delivery.holder, None)
        if fate == "back":
            self.fleet.broker.requeue(number)
            self.held.pop(number, None)
        else:
            self._ack(number, message)

    def _ack(self, number: int, message: RawMessage) -> None:
        self.held.pop(number, None)
        if self.world.chance(self.world.faults / 2):  # it got lost, and with it the connection
            self.world.later(self.world.random.uniform(0, 20), lambda: self.fleet.broker.requeue(number))
            return
        self.fleet.broker.ack(number)
        self.fleet.acknowledged(message)
