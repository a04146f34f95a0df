"""A worker in this process, without a pool: every message goes the way through Celery's own code and ours.

What is replaced is the consumer around Celery's strategy, and the pool: a child is a function call, which a
:class:`~.crashes.Crash` can end anywhere.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import _state
from celery.exceptions import InvalidTaskError, WorkerLostError
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import state as worker_state
from celery.worker.request import TaskRevokedError
from kombu.exceptions import ContentDisallowed
from kombu.message import Message
from kombu.serialization import prepare_accept_content

from ..integration import stopping
from ..integration.app import Guardrails
from ..integration.mainstate import state
from ..integration.strategy import SHORT, seconds_to_wait
from ..integration.translate import raw_message
from ..policy.delivery import RawMessage
from ..worker.bad_messages import BadMessages
from .crashes import Crash, CrashPlan
from .memory_broker import MemoryBroker

__all__ = ["InlineWorker"]

#: In the past for every clock.
_LONG_AGO = "2000-01-01T00:00:00+00:00"


@dataclass
class _Run:
    """One message on its way through the worker; bodies that deliver others make it a stack."""

    request: Any = None
    #: A simulated child has it.
    in_child: bool = False
    in_body: bool = False
    crash: Crash | None = None


class InlineWorker:
    """Consumer, strategies and pool of one worker.

    Args:
        app: whose tasks run.
        rails: its guardrails.
        broker: messages come from and go back to.
    """

    hostname = "harness@localhost"
    connection_errors: tuple[type[BaseException], ...] = ()
    channel_errors: tuple[type[BaseException], ...] = ()
    event_dispatcher = None
    disable_rate_limits = True

    on_decode_error: Callable[[Any, BaseException], None]
    on_unknown_message: Callable[[Any, Any], None]
    on_unknown_task: Callable[[Any, Any, BaseException], None]
    on_invalid_task: Callable[[Any, Any, BaseException], None]

    def __init__(self, app: Any, rails: Guardrails, broker: MemoryBroker) -> None:
        self.app, self.rails, self.broker = app, rails, broker
        self.plans: list[CrashPlan] = []
        #: Bodies that have begun, by task id.
        self.begun: dict[str, int] = defaultdict(int)
        self._runs: list[_Run] = []
        #: Numbers of messages that have been delivered before.
        self.known: set[int] = set()
        self._strategies: dict[str, Callable[..., Any]] = {}
        # what Celery's strategy and ours, and BadMessages, ask of a consumer
        self.pool = SimpleNamespace(apply_async=self._run_child, options={})
        self.timer = SimpleNamespace(
            call_at=lambda _when, function, args=(), **_: function(*args), call_after=lambda _seconds, function, args=(): function(*args)
        )
        self.qos = SimpleNamespace(increment_eventually=lambda: None)
        self.task_buckets: dict[str, Any] = defaultdict(lambda: None)
        self.controller = SimpleNamespace(state=worker_state)
        BadMessages(self)
        self._on_message = self.create_task_handler()

    # -- what a test does -------------------------------------------------------------------------------------

    def handle(self, number: int, queue: str, message: RawMessage) -> None:
        """Do with a message in hand what a worker does."""
        run, before, consumer, stopped = _Run(), _state._tls.current_app, state.consumer, stopping.is_stopping()
        self._runs.append(run)
        stopping.reset()  # within the body of a worker that stops it is another one
        redelivered = number in self.known
        self.known.add(number)
        self.app.set_current()
        state.consumer = self
        done = False
        try:
            self._check(message)
            self._on_message(self._received(number, queue, message, redelivered))
            done = True
        except Crash:
            pass  # of the whole worker
        finally:
            if not done:  # the broker gives it to another worker
                self.broker.requeue(number)
            if run.request is not None:
                self._forget(run.request)
            state.consumer = consumer
            (stopping.set_stopping if stopped else stopping.reset)()
            _state._set_current_app(before)
            self._runs.pop()

    def _check(self, message: RawMessage) -> None:
        """Refuse a task that a worker would refuse when it starts."""
        name = message.headers.get("task")
        task: Any = self.app.tasks.get(name) if isinstance(name, str) else None
        if getattr(task, "guarded", False):
            self.rails.check_task(task.guard_options)

    def is_early(self, message: RawMessage) -> bool:
        """Whether a worker puts a message back to wait for its ETA."""
        return seconds_to_wait(message.headers, self.app, self.rails.clock.now()) > SHORT

    def reach(self, point: str) -> None:
        """Die here if a crash is planned for this point.

        Raises:
            Crash: it is.
        """
        run = self._runs[-1] if self._runs else None
        if run is None or not (run.in_child or point == "before_ack"):
            return
        if run.crash is None:
            if point == "in_publish" and run.in_body:
                return  # what the body itself publishes is its effect
            run.crash = next(filter(None, (plan.strike(point) for plan in self.plans)), None)
        if run.crash is not None:
            raise run.crash  # once dead it does nothing more, whatever the body has caught

    def crash(self, how: str) -> None:
        """Die inside the body that runs now.

        Raises:
            Crash: always.
        """
        run = self._runs[-1]
        run.crash = Crash(how)
        raise run.crash

    @property
    def in_body(self) -> bool:
        """Whether the caller is a task's body."""
        return bool(self._runs) and self._runs[-1].in_body

    def renew(self, lease: float) -> None:
        """Extend the leases and slots of what runs, as the main process does."""
        live = [run.request for run in self._runs if run.in_child and run.crash is None and hasattr(run.request, "delivery")]
        if not live:
            return
        store: Any = self.rails.store
        store.renew([(request.delivery.key, request.delivery.holder) for request in live], lease)
        slots = [(request.resource, request.delivery.holder) for request in live if request.resource is not None]
        if slots:
            store.hold(slots, lease)

    # -- the consumer -----------------------------------------------------------------------------------------

    @property
    def task_consumer(self) -> Any:
        """As much of kombu's consumer as is asked for."""
        return SimpleNamespace(_active_tags={queue: queue for queue in self.broker.queues()}, queues=[])

    def create_task_handler(self) -> Callable[[Any], Any]:
        """Return what Celery's consumer does with a message."""

        def on_message(message: Any) -> Any:
            name = (message.headers or {}).get("task")
            payload = None
            if name is None:  # protocol 1
                payload = message.decode()
                name = payload["task"]
            if name not in self.app.tasks:
                return self.on_unknown_task(None, message, KeyError(name))
            try:
                if self._holds_back(message):
                    return None
                return self._strategy(name)(message, payload, message.ack_log_error, message.reject_log_error, ())
            except (InvalidTaskError, ContentDisallowed) as exc:
                return self.on_invalid_task(payload, message, exc)

        return on_message

    def _holds_back(self, message: Any) -> bool:
        """A task without a guard waits for its ETA in the worker's memory, which this worker does not have."""
        wait = seconds_to_wait(message.headers, self.app, self.rails.clock.now())
        if wait <= SHORT or getattr(self.app.tasks[message.headers["task"]], "guarded", False):
            return False
        self.broker.delay(raw_message(message), message.delivery_info["consumer_tag"], wait)
        message.ack()
        return True

    def on_task_request(self, request: Any) -> None:
        """Hand a request to the pool."""
        self._runs[-1].request = request
        with suppress(TaskRevokedError):
            request.execute_using_pool(self.pool)

    apply_eta_task = on_task_request

    def _limit_task(self, request: Any, *_: Any) -> None:
        self.on_task_request(request)

    _limit_post_eta = _limit_task

    def _strategy(self, name: str) -> Callable[..., Any]:
        if name not in self._strategies:
            self._strategies[name] = self.app.tasks[name].start_strategy(self.app, self)
        return self._strategies[name]

    def _received(self, number: int, queue: str, raw: RawMessage, redelivered: bool) -> Any:
        headers = dict(raw.headers)
        if headers.get("expires") and self._is_over(headers["expires"]):
            headers["expires"] = _LONG_AGO  # Celery looks at the real clock
        message: Any = Message(
            body=raw.body,
            delivery_tag=number,
            content_type=raw.content_type,
            content_encoding=raw.content_encoding,
            delivery_info={
                "exchange": raw.exchange,
                "routing_key": raw.routing_key,
                "consumer_tag": queue,
                "redelivered": redelivered,
            },
            properties=dict(raw.properties),
            headers=headers,
            accept=prepare_accept_content(self.app.conf.accept_content),
            channel=_Channel(self, number),
        )
        message.guardrails_body = raw.body  # as the wire had it, also where it was compressed
        return message

    def _is_over(self, expires: Any) -> bool:
        try:
            end: float = maybe_make_aware(maybe_iso8601(expires), self.app.timezone).timestamp()
        except (ValueError, TypeError, AttributeError):
            return False
        return end < self.rails.clock.now()

    def _forget(self, request: Any) -> None:
        """Leave nothing of a request in the tables of this process; in a worker its renewal tidies up."""
        worker_state.task_ready(request)
        delivery = getattr(request, "delivery", None)
        if delivery is not None:
            state.live.pop(delivery.holder, None)

    # -- the pool ---------------------------------------------------------------------------------------------

    def _run_child(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        *,
        accept_callback: Callable[..., Any],
        callback: Callable[..., Any],
        error_callback: Callable[..., Any],
        **_: Any,
    ) -> None:
        run = self._runs[-1]
        accept_callback(os.getpid(), time.monotonic())
        run.in_child = True
        lost: BaseException | None = None
        result: Any = None
        try:
            self.reach("before_start")
            with self._watching(run):
                result = target(*pickle.loads(pickle.dumps(args)))  # noqa: S301 - as on the way to a child
        except Crash as crash:
            if crash.how == "worker":
                raise
            run.crash = None  # from here on it is the main process that acts
            lost = WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 0.")
        except SystemExit as exc:
            lost = exc
        finally:
            run.in_child = run.in_body = False
        if lost is not None:
            error_callback(_info(lost))
        else:
            callback(result)

    @contextmanager
    def _watching(self, run: _Run) -> Iterator[None]:
        """Know when the body begins and ends."""
        task = run.request.task
        body, attributes = getattr(type(task), "_body", None), vars(task)
        if body is None:  # no guard of ours is around it
            yield
            return

        def watched(args: Any, kwargs: Any) -> Any:
            self.reach("before_effect")
            self.begun[run.request.id] += 1
            run.in_body = True
            try:
                return body(task, args, kwargs)
            finally:
                run.in_body = False
                self.reach("after_effect")

        attributes["_body"] = watched
        try:
            yield
        finally:
            attributes.pop("_body", None)


class _Channel:
    """Where a message is acknowledged."""

    no_ack_consumers = None

    def __init__(self, worker: InlineWorker, number: int) -> None:
        self._worker, self._number = worker, number

    def basic_ack(self, _tag: Any, multiple: bool = False) -> None:
        self._worker.reach("before_ack")
        self._worker.broker.ack(self._number)

    def basic_reject(self, _tag: Any, requeue: bool = False) -> None:
        if requeue:
            self._worker.broker.requeue(self._number)
        else:
            self._worker.broker.ack(self._number)


def _info(exc: BaseException) -> Any:
    try:
        raise exc
    except BaseException:  # noqa: BLE001 - raised here, only to give it a traceback, as billiard wants it
        return ExceptionInfo()
