"""The time limits that the pool gets, and what becomes of a task that one strikes. No pool, no broker."""

from __future__ import annotations

import os
from asyncio import CancelledError
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery, uuid
from celery.concurrency.base import apply_target
from celery.concurrency.gevent import TaskPool
from celery.worker import state as worker_state
from celery.worker.request import create_request_cls
from greenlet import GreenletExit
from kombu.utils.json import dumps

from celery_guardrails import DeadlineExceeded, GuardedTask, Guardrails, RetryPolicy
from celery_guardrails.integration import request as module
from celery_guardrails.integration.mainstate import state
from celery_guardrails.policy.deadletter import ErrorReport
from celery_guardrails.policy.delivery import TRAVEL_HEADER, Travel
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.policy.verdict import Returned
from tests.unit.test_guard import LIMITS, Bench, dead

SPAN = 30.0


def received(headers: dict[str, Any]) -> Any:
    """A message without arguments, as a worker's consumer has it."""
    return SimpleNamespace(
        headers=headers,
        properties={},
        delivery_info={"exchange": "", "routing_key": "q"},
        body=dumps([[], {}, {}]),
        payload=([], {}, {}),
        content_type="application/json",
        content_encoding="utf-8",
        channel=None,
    )


class Desk:
    """A worker's main process with one task, which it hands to a pool that only writes down."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.app = Celery("desk", broker="memory://", backend="cache+memory://", set_as_current=True)
        rails = Guardrails(self.app, store="memory://")
        rails.clock = self.bench.clock
        desk = self

        class Parts:
            guard = main_guard = desk.bench.guard
            broker = desk.bench.broker

        rails._opened = (os.getpid(), Parts())  # type: ignore[assignment]
        self.id = uuid()
        self.given: list[dict[str, Any]] = []
        self.acts: list[str] = []

    def apply_async(self, target: Any, **options: Any) -> None:
        self.given.append(options)

    def request(
        self, *, deadline: float | None = SPAN, timelimit: Any = None, until: float | None = None, count: int | None = None, **options: Any
    ) -> Any:
        """Receive a message of a task that was published just now."""

        name = f"desk.task{len(self.given)}"

        @self.app.task(base=GuardedTask, name=name, retry=RetryPolicy(deadline=deadline), shared=False, lazy=False, **options)
        def task() -> None: ...

        travel = Travel(key="key", first=self.bench.clock.now(), until=until)
        headers = {"id": self.id, "task": name, "timelimit": timelimit, TRAVEL_HEADER: travel.to_header()}
        if count is not None:
            headers["x-delivery-count"] = count
        message = received(headers)
        cls = create_request_cls(module.GuardedRequest, task, SimpleNamespace(apply_async=self.apply_async), "here", None, app=self.app)
        return cls(
            message,
            app=self.app,
            task=task,
            on_ack=lambda *_: self.acts.append("ack"),
            on_reject=lambda *args: self.acts.append(f"reject, requeue {args[-1]}"),
        )

    def limits(self, request: Any) -> tuple[Any, Any]:
        """Hand it to the pool; return the hard and the soft limit that the pool gets."""
        request.execute_using_pool(None)
        return self.given[-1]["timeout"], self.given[-1]["soft_timeout"]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    worker_state.reset_state()  # what another test has left there never ends
    monkeypatch.setattr(state, "consumer", None)
    monkeypatch.setattr(worker_state, "revoked", {})
    return Desk()


def test_a_task_without_a_deadline_has_its_own_limits(desk: Desk) -> None:
    assert desk.limits(desk.request(deadline=None)) == (None, None)
    assert desk.limits(desk.request(deadline=None, time_limit=50, soft_time_limit=40)) == (50, 40)
    assert desk.limits(desk.request(deadline=None, time_limit=50, timelimit=[9, 8])) == (9, 8)


def test_a_task_without_limits_has_its_deadline_as_the_hard_one(desk: Desk) -> None:
    assert desk.limits(desk.request()) == (SPAN, None)


def test_an_inherited_deadline_cuts_like_one_of_its_own(desk: Desk) -> None:
    assert desk.limits(desk.request(deadline=None, until=desk.bench.clock.now() + 7)) == (7.0, None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time_limit": 50, "soft_time_limit": 40}, (SPAN, 0.9 * SPAN)),
        ({"time_limit": 20, "soft_time_limit": 10}, (20, 10)),
        ({"time_limit": 20, "timelimit": [50, 40]}, (SPAN, 0.9 * SPAN)),
        ({"time_limit": 50, "timelimit": [20, None]}, (20, None)),
        ({"soft_time_limit": 5}, (SPAN, 5)),
    ],
)
def test_a_later_limit_is_cut_wherever_it_comes_from(desk: Desk, options: dict[str, Any], expected: Any) -> None:
    assert desk.limits(desk.request(**options)) == expected


def test_shorter_limits_of_the_command_line_are_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimpleNamespace(options={"timeout": 20, "soft_timeout": 10})
    monkeypatch.setattr(state, "consumer", SimpleNamespace(pool=pool))
    assert desk.limits(desk.request()) == (20, 10)
    assert desk.limits(desk.request(deadline=15)) == (15.0, 10)


def test_the_time_that_it_waited_in_this_worker_is_taken_off(desk: Desk) -> None:
    request = desk.request()
    desk.bench.clock.advance(20)
    assert desk.limits(request) == (10.0, None)


# -- struck ---------------------------------------------------------------------------------------------------------


def test_a_task_that_is_killed_at_its_deadline_is_dead_of_it_though_its_error_would_be_retried(desk: Desk) -> None:
    request = desk.request(time_limit=50)
    hard, _ = desk.limits(request)
    desk.bench.guard.admit(request.delivery, LIMITS)
    desk.bench.clock.advance(hard)
    request.on_timeout(False, hard)
    assert dead(desk.bench)[1].reason == "deadline"
    assert dead(desk.bench)[1].error.endswith("DeadlineExceeded")
    result = desk.app.AsyncResult(desk.id)
    assert result.state == "FAILURE"
    assert isinstance(result.result, DeadlineExceeded)
    assert desk.acts == ["ack"]


def test_a_limit_of_its_own_is_a_failed_attempt_as_ever(desk: Desk) -> None:
    request = desk.request(deadline=3000, time_limit=5)
    hard, _ = desk.limits(request)
    desk.bench.guard.admit(request.delivery, LIMITS)
    desk.bench.clock.advance(hard)
    request.on_timeout(False, hard)
    assert desk.app.AsyncResult(desk.id).state == "RETRY"
    assert not list(desk.bench.broker.browse("q.dead"))


def test_a_task_that_completed_in_the_moment_of_the_kill_goes_back_and_gets_its_value(desk: Desk) -> None:
    request = desk.request()
    hard, _ = desk.limits(request)
    _, claim = desk.bench.guard.admit(request.delivery, LIMITS)
    desk.bench.guard.settle(request.delivery, claim, Returned(5), LIMITS)
    request.on_timeout(False, hard)
    assert desk.acts == ["reject, requeue True"]
    assert desk.app.AsyncResult(desk.id).state == "PENDING"
    assert not list(desk.bench.broker.browse("q.dead"))


# -- back into its queue ----------------------------------------------------------------------------------------------


def test_what_the_broker_has_counted_goes_back_as_a_copy_that_it_has_not(desk: Desk) -> None:
    request = desk.request(count=1)
    assert request in state.counted
    request.reject(requeue=True)
    (letter,) = desk.bench.broker.browse("q")
    assert "x-delivery-count" not in letter.message.headers
    travel = Travel.from_headers(letter.message.headers)
    assert (travel.key, travel.attempts, travel.deferrals, travel.deliveries) == ("key", 0, 0, 0)
    assert letter.message.headers["id"] == desk.id
    assert desk.acts == ["ack"], "the copy first"
    assert request not in state.counted


@pytest.mark.parametrize("count", [None, 0])
def test_what_it_has_not_counted_is_rejected_as_ever(desk: Desk, count: int | None) -> None:
    request = desk.request(count=count)
    assert request not in state.counted
    request.reject(requeue=True)
    assert desk.acts == ["reject, requeue True"]
    assert not list(desk.bench.broker.browse("q"))


def test_what_is_not_to_go_back_is_not_copied(desk: Desk) -> None:
    request = desk.request(count=1)
    request.reject()
    assert desk.acts == ["reject, requeue False"]
    assert not list(desk.bench.broker.browse("q"))
    assert request not in state.counted


def test_a_copy_that_cannot_be_published_leaves_the_message_with_its_count(desk: Desk) -> None:
    request = desk.request(count=1)
    desk.bench.down.add("broker")
    request.reject(requeue=True)
    assert desk.acts == ["reject, requeue True"]


def test_what_is_settled_is_not_put_back_once_more(desk: Desk) -> None:
    request = desk.request(count=1)
    request.acknowledge()
    assert not request.return_afresh()
    assert not list(desk.bench.broker.browse("q"))


# -- a cold shutdown --------------------------------------------------------------------------------------------------


class ColdPool:
    """A pool that is told to end a task."""

    def __init__(self, *, green: bool = False) -> None:
        self.is_green = green

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        if not self.is_green:
            raise NotImplementedError


def running(desk: Desk) -> Any:
    request = desk.request()
    request.execute_using_pool(None)
    request.on_accepted(os.getpid(), desk.bench.clock.now())
    desk.bench.guard.admit(request.delivery, LIMITS)
    return request


def test_a_task_that_its_pool_cannot_end_goes_on_and_is_told_nothing(desk: Desk) -> None:
    request = running(desk)
    request.cancel(ColdPool())
    request.acknowledge()
    assert desk.acts == ["ack"]


def test_a_greenlet_that_was_ended_has_not_succeeded_whatever_its_pool_says(desk: Desk) -> None:
    request = running(desk)
    request.cancel(ColdPool(green=True))
    request.acknowledge()
    assert desk.acts == ["reject, requeue True"]
    record = desk.bench.store.lookup("key")
    assert record is not None
    assert (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 0, 0)


# -- bodies that end their process, where that is the worker ----------------------------------------------------------------


def pool_runs(request: Any, target: Any, *, green: bool = False) -> None:
    """Run it as Celery's pools in the main process do, and let them report how it ended."""
    target = TaskPool._make_killable_target(target) if green else target
    apply_target(target, callback=request.on_success)


def ends_with(error: BaseException) -> Any:
    def target() -> None:
        raise error

    return target


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("why"), KeyboardInterrupt(), CancelledError()], ids=repr)
def test_what_is_no_exception_is_a_crash_and_its_message_goes_back(desk: Desk, error: BaseException) -> None:
    request = running(desk)
    pool_runs(request, ends_with(error))
    assert desk.acts == ["reject, requeue True"]
    record = desk.bench.store.lookup("key")
    assert record is not None
    assert (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 0, 1)
    assert request not in worker_state.active_requests


@pytest.mark.parametrize("error", [SystemExit(0), CancelledError()], ids=repr)
def test_what_a_pool_process_reports_that_is_no_exception_is_a_crash_too(desk: Desk, error: BaseException) -> None:
    request = running(desk)
    request.on_failure(module._info(error))
    assert desk.acts == ["reject, requeue True"]
    record = desk.bench.store.lookup("key")
    assert record is not None
    assert (record.state, record.crashes) == (RecordState.IDLE, 1)


def test_the_last_crash_is_poison_and_its_letter_says_what_the_body_did(desk: Desk) -> None:
    request = running(desk)
    for _ in range(2):
        desk.bench.guard.lost(request.delivery, LIMITS, ErrorReport())
        desk.bench.guard.admit(request.delivery, LIMITS)
    pool_runs(request, ends_with(SystemExit("no licence")))
    assert desk.acts == ["ack"]
    certificate = dead(desk.bench)[1]
    assert (certificate.reason, certificate.crashes, certificate.attempts) == ("poison", 3, 0)
    assert (certificate.error, certificate.message) == ("SystemExit", "no licence")
    assert "raise error" in certificate.traceback


def test_a_greenlet_that_somebody_kills_is_a_crash(desk: Desk) -> None:
    request = running(desk)
    pool_runs(request, ends_with(GreenletExit()), green=True)
    assert desk.acts == ["reject, requeue True"]
    record = desk.bench.store.lookup("key")
    assert record is not None
    assert (record.state, record.crashes) == (RecordState.IDLE, 1)


def test_a_greenlet_that_is_killed_because_its_task_was_revoked_gives_its_lease_back_and_is_charged_nothing(desk: Desk) -> None:
    request = running(desk)

    class Green(ColdPool):
        def terminate_job(self, pid: int, signal: int | None = None) -> None:
            pool_runs(request, ends_with(GreenletExit()), green=True)

    request.terminate(Green(green=True))
    assert desk.acts == ["ack"]
    record = desk.bench.store.lookup("key")
    assert record is not None
    assert (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 0, 0)


def test_a_result_is_a_success_as_ever(desk: Desk) -> None:
    request = running(desk)
    pool_runs(request, lambda: (0, "value", 0.1))
    assert desk.acts == ["ack"]


def test_a_process_that_dies_with_a_message_that_is_acknowledged_already_leaves_no_lease_and_no_room_behind(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    request = desk.request(acks_late=False)
    desk.bench.guard.admit(request.delivery, LIMITS)
    monkeypatch.setattr(desk.bench.guard, "surrender", lambda delivery, limits: left.append(delivery.key))
    request.on_accepted(1, 0.0)
    assert desk.acts == ["ack"]
    request.on_failure(module._info(WorkerLostError("signal 9 (SIGKILL)")))
    assert left == ["key"]
    assert desk.acts == ["ack"]
