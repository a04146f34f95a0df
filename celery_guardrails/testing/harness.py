"""Users' tests: guarded tasks in this process, on a memory broker and store, with a clock that is told the time.

Celery's strategy, request and tracer run, and the same guard and :func:`~celery_guardrails.policy.verdict.decide` as in a
worker; docs/testing.md shows how to use it.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from celery import _state, uuid
from kombu.pools import ProducerPool
from kombu.transport import virtual

from ..dead_letters.letter import DeadLetter
from ..errors import GuardrailsConfigError, GuardrailsError
from ..events import Event, Started
from ..integration import stopping
from ..integration.app import Guardrails, ensure_guardrails
from ..integration.parts import Parts
from ..policy.delivery import RawMessage
from ..ports import IdempotencyStore
from ..stores import open_store
from ..stores.memory import MemoryStore
from .clock import FakeClock
from .crashes import CrashPlan
from .memory_broker import MemoryBroker
from .results import MemoryResults
from .transport import connection_to
from .worker import InlineWorker

__all__ = ["Harness", "Pending"]

#: Settling calls of a store: when one has returned, how the body ended is known.
_SETTLING = ("complete", "release", "reset")


@dataclass(frozen=True)
class Pending:
    """A message that nobody has run yet.

    Args:
        task: registered name.
        task_id: Celery's id.
        queue: it stands in, or comes back to.
        due: unix time in seconds at which it becomes ready, or None where it is.
        message: byte for byte.
    """

    task: str
    task_id: str
    queue: str
    due: float | None
    message: RawMessage


class Harness:
    """Runs an app's tasks one delivery at a time; the pytest fixture ``guardrails_harness`` is one.

    While it is in use, what the app publishes goes to its memory broker, the guard's store and the result backend are in
    memory, and the guard's time is :attr:`clock`. :meth:`close` puts everything back.
    """

    clock: FakeClock
    store: IdempotencyStore
    broker: MemoryBroker
    guardrails: Guardrails

    def __init__(self) -> None:
        self._app: Any = None
        self._undo = ExitStack()
        self._last: tuple[str, RawMessage] | None = None
        #: Everything that the guard has told of, see :mod:`celery_guardrails.events`.
        self.events: list[Event] = []

    def __call__(self, app: Any, *, store: IdempotencyStore | str | None = None, start: float | None = None) -> Harness:
        """The same as :meth:`use`."""
        return self.use(app, store=store, start=start)

    # -- an app -----------------------------------------------------------------------------------------------

    def use(self, app: Any, *, store: IdempotencyStore | str | None = None, start: float | None = None) -> Harness:
        """Take an app over, empty; the one before is put back.

        Args:
            app: the Celery app.
            store: or its URL, instead of a new :class:`~celery_guardrails.stores.memory.MemoryStore`, for tasks with ``atomic``;
                then leases and completion records live by that store's own clock.
            start: unix time in seconds at which :attr:`clock` starts; now, if not given.

        Returns:
            This harness.
        """
        self.close()
        if hasattr(app, "_get_current_object"):
            app = app._get_current_object()
        try:
            self._begin(app, store, start)
        except BaseException:
            self.close()
            self._app = None
            raise
        return self

    def _begin(self, app: Any, store: IdempotencyStore | str | None, start: float | None) -> None:
        self._app, self.guardrails = app, ensure_guardrails(app)
        app.loader.import_default_modules()  # its tasks, as when a worker starts
        self.clock = FakeClock(float(int(time.time())) if start is None else start)
        self.store = self._open(store)
        self.events, self._last = [], None
        self.broker = MemoryBroker(
            app.amqp.queues,
            dead_letter_queue=self.guardrails.settings.dead_letter_queue,
            clock=self.clock,
            on_operation=self._on_operation,
        )
        self._take_over()
        self._worker = InlineWorker(app, self.guardrails, self.broker)

    def _open(self, store: IdempotencyStore | str | None) -> IdempotencyStore:
        if store is None:
            return MemoryStore(now=self.clock.now)
        if not isinstance(store, str):
            return store
        opened: IdempotencyStore = open_store(store, namespace=self.guardrails.namespace)
        self._undo.callback(opened.close)
        return opened

    def use_current_app(self) -> None:
        """Take the current app over, if it has guardrails."""
        app = _state._tls.current_app or _state.default_app
        if isinstance(getattr(app, "guardrails", None), Guardrails):
            self.use(app)

    def close(self) -> None:
        """Put the app back as it was; what the harness has seen can still be looked at."""
        self._undo.close()

    @property
    def app(self) -> Any:
        """The Celery app.

        Raises:
            GuardrailsConfigError: there is none yet.
        """
        if self._app is None:
            raise GuardrailsConfigError("the harness has no app: guardrails_harness.use(app) with the Celery app comes first")
        return self._app

    def _take_over(self) -> None:
        app, rails = self._app, self.guardrails
        self._parts = parts = Parts(rails, rails._store_hooks)
        vars(parts).update(store=self.store, broker=self.broker)  # before their first use
        for hook in rails._store_hooks:
            hook(self.store)
        results, connect = MemoryResults(app), functools.partial(connection_to, self.broker, virtual.BrokerState())
        pool = connect().Pool(4)
        self._replace(vars(rails), clock=self.clock, _opened=(os.getpid(), parts), _listeners=[*rails._listeners, self._heard])
        self._replace(vars(app), now=self._now, _connection=lambda *_, **__: connect(), _pool=pool, _backend_cache=results)
        self._replace(vars(app._local), backend=results)
        self._replace(vars(app.amqp), _producer_pool=ProducerPool(pool, limit=4))
        self._replace(vars(self.store), **{name: self._settling(getattr(self.store, name)) for name in _SETTLING})
        self._results = results
        eager = app.conf.task_always_eager
        app.conf.task_always_eager = False
        self._undo.callback(setattr, app.conf, "task_always_eager", eager)

    def _replace(self, attributes: dict[str, Any], **values: Any) -> None:
        before = {name: attributes[name] for name in values if name in attributes}

        def put_back() -> None:
            for name in values:
                attributes.pop(name, None)
            attributes.update(before)

        attributes.update(values)
        self._undo.callback(put_back)

    def _settling(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def settle(*args: Any, **options: Any) -> Any:
            answer = call(*args, **options)
            self._worker.reach("in_store")
            return answer

        return settle

    def _on_operation(self, point: str) -> None:
        if point in ("after delay", "after dead_letter", "after put"):
            self._worker.reach("in_publish")

    def _heard(self, event: Event) -> None:
        self.events.append(event)

    def _now(self) -> datetime:
        now: datetime = datetime.fromtimestamp(self.clock.now(), timezone.utc).astimezone(self._app.timezone)
        return now

    # -- messages ---------------------------------------------------------------------------------------------

    def send(self, task: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Publish a task by its name, as ``app.send_task`` does, and return its ``AsyncResult``."""
        return self.app.send_task(task, args, dict(kwargs or {}), **options)

    def put(
        self,
        task: str,
        body: bytes,
        *,
        content_type: str = "application/json",
        content_encoding: str = "utf-8",
        headers: Mapping[str, Any] | None = None,
        queue: str | None = None,
    ) -> str:
        """Put a message with this very body into a queue, as a program in another language would.

        Args:
            task: registered name.
            body: bytes on the wire.
            content_type: of the body.
            content_encoding: of the body.
            headers: besides ``task`` and ``id``.
            queue: name; the app's default queue, if not given.

        Returns:
            The task id.
        """
        task_id = str((headers or {}).get("id") or uuid())
        queue = queue or str(self.app.conf.task_default_queue)
        properties = {"correlation_id": task_id, "delivery_mode": 2}
        whole = {"lang": "py", "root_id": task_id, **dict(headers or {}), "task": task, "id": task_id}
        self.broker.put(RawMessage(body, content_type, content_encoding, whole, properties, "", queue), queue)
        return task_id

    def deliver(self) -> str:
        """Run the message that has waited longest, and return its task id.

        Raises:
            GuardrailsError: none is waiting.
        """
        waiting = self._ready()
        if not waiting:
            delayed = self.delayed
            when = f"; the next of {len(delayed)} is due in {(delayed[0].due or 0.0) - self.clock.now():.1f} s" if delayed else ""
            raise GuardrailsError(f"no message is waiting{when}")
        number, queue, message = waiting[0]
        self._last = (queue, message)
        self._handle(number, queue)
        return str(message.headers.get("id") or "")

    def redeliver(self) -> str:
        """Deliver a copy of the message that was delivered last, as brokers do, and return its task id.

        Within a task's body it is another worker that gets the copy.

        Raises:
            GuardrailsError: none has been delivered yet.
        """
        if self._last is None:
            raise GuardrailsError("no message has been delivered yet: there is nothing to deliver again")
        queue, message = self._last
        number = self.broker._put(message, queue)
        self._worker.known.add(number)
        self._handle(number, queue)
        return str(message.headers.get("id") or "")

    def drain(self, limit: int = 1000) -> int:
        """Deliver until nothing waits any more; the clock goes on to whatever is due next.

        Args:
            limit: deliveries.

        Returns:
            Deliveries.

        Raises:
            GuardrailsError: there is no end to it.
        """
        for count in range(limit + 1):
            while not self._ready():
                due = self.broker.next_due
                if due is None:
                    return count
                self.advance(max(0.0, due - self.clock.now()))
            if count < limit:
                self.deliver()
        raise GuardrailsError(
            f"{limit} deliveries, and messages are still waiting: tasks that publish themselves? drain(limit=…) allows more"
        )

    def advance(self, seconds: float, *, renew: bool = True) -> None:
        """Let time pass; within a task's body its worker renews the lease meanwhile, as long as ``renew`` is true."""
        rails, end = self.guardrails, self.clock.now() + seconds
        step = rails.settings.lease_seconds / 3
        while renew and self._worker.in_body and self.clock.now() + step < end:
            self.clock.advance(step)
            self._worker.renew(rails.settings.lease_seconds)
        self.clock.advance(end - self.clock.now())

    def crash_at(self, point: str, *, how: str | None = None, times: int = 1) -> CrashPlan:
        """Let the next process that comes to ``point`` die there; see :class:`~celery_guardrails.testing.crashes.CrashPlan`.

        As a context manager it fails the test if nothing comes to that point.

        Args:
            point: ``"before_start"``, ``"before_effect"``, ``"after_effect"``, ``"in_store"``, ``"in_publish"``, ``"before_ack"``.
            how: ``"child"`` (default; the main process charges a crash) or ``"worker"`` (the lease stays until it ends).
            times: that many in a row.
        """
        plan = CrashPlan(point, how, times)
        self._worker.plans.append(plan)
        return plan

    def crash(self, how: str = "child") -> None:
        """Called within a task's body: the process dies here.

        Raises:
            GuardrailsError: no body is running.
        """
        if not self._worker.in_body:
            raise GuardrailsError("crash() is for a task's body; crash_at(point) plans one from outside")
        CrashPlan("before_effect", how)  # refuses what it does not know
        self._worker.crash(how)

    def stop(self) -> None:
        """Called within a task's body: its worker is told to stop (SIGTERM) here; the next delivery is another worker's.

        Raises:
            GuardrailsError: no body is running.
        """
        if not self._worker.in_body:
            raise GuardrailsError("stop() is for a task's body: no worker is running one")
        stopping.set_stopping()

    # -- what there is ----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Pending]:
        """Messages that are ready, the oldest first."""
        return [_pending(message, queue, None) for _, queue, message in self._ready()]

    @property
    def delayed(self) -> list[Pending]:
        """Messages that wait for their time (retries, hand-backs, an ETA), the next one first."""
        self._ready()
        return [_pending(message, queue, due) for due, queue, message in self.broker.delayed()]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What died, the oldest of each queue first; ``harness.guardrails.dead_letters`` is the service, with replay and all."""
        return list(self._parts.dead_letters.list())

    @property
    def results(self) -> dict[str, Any]:
        """Task id → what it returned, or the exception that it failed with, for every task that has ended."""
        return {task_id: self._results.get_result(task_id) for task_id in self._results.ended()}

    def attempts(self, task_id: str) -> int:
        """Return the number of the last attempt that began, as ``current_execution().attempt`` counts; 0 where none did."""
        return max((event.attempt for event in self.events if isinstance(event, Started) and event.task_id == task_id), default=0)

    def runs(self, task_id: str) -> int:
        """Return how often the body has begun, those that crashed included."""
        return self._worker.begun[task_id]

    # -- how --------------------------------------------------------------------------------------------------

    def _ready(self) -> list[tuple[int, str, RawMessage]]:
        """Return what is ready, when everything with an ETA has been put to wait as a worker does."""
        _ = self.app
        waiting = self.broker.waiting()
        early = [entry for entry in waiting if entry[2].headers.get("eta")]
        for number, queue, message in early:
            if self._worker.is_early(message):
                self._handle(number, queue)
        return self.broker.waiting() if early else waiting

    def _handle(self, number: int, queue: str) -> None:
        found = self.broker.receive(queue, number)
        assert found is not None
        self._worker.handle(number, queue, found[1])


def _pending(message: RawMessage, queue: str, due: float | None) -> Pending:
    return Pending(str(message.headers.get("task") or ""), str(message.headers.get("id") or ""), queue, due, message)
