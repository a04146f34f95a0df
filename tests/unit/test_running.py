"""What Celery sees of a guarded run. The guard is real, on memory; Celery's worker is not there."""

from __future__ import annotations

import os
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from celery_guardrails import GuardedTask, Guardrails, IdempotencyConflict, RejectedTask
from celery_guardrails.errors import PublishFailed
from celery_guardrails.integration.running import GuardedRun
from celery_guardrails.policy.delivery import Delivery, Travel
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.policy.verdict import Returned
from tests.unit.test_guard import LIMITS, Bench, dead


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def task(bench: Bench) -> Any:
    """A task whose body is ``task.todo``."""
    app = Celery("running", broker="memory://", set_as_current=True)
    rails = Guardrails(app, store="memory://")
    rails.clock = bench.clock

    class Parts:
        guard = bench.guard

    rails._opened = (os.getpid(), Parts())  # type: ignore[assignment]
    state: dict[str, Any] = {"todo": lambda: "value"}

    @app.task(base=GuardedTask, name="running.task", permanent=(KeyError,), shared=False)
    def body() -> Any:
        return state["todo"]()

    chosen = app.tasks["running.task"]
    type(chosen).state = state
    return chosen


def run(task: Any, delivery: Delivery, todo: Any) -> Any:
    task.state["todo"] = todo
    return GuardedRun(task, delivery).run((), {})


def fail(error: BaseException) -> Any:
    def body() -> None:
        raise error

    return body


def taken_over(bench: Bench) -> Any:
    """A body during which the lease ends and another execution takes and completes the key."""

    def body() -> None:
        bench.clock.advance(61)
        other = bench.delivery("other")
        _, claim = bench.guard.admit(other, LIMITS)
        bench.guard.settle(other, claim, Returned("theirs"), LIMITS)

    return body


def test_a_value_is_returned_and_recorded(task, bench):
    assert run(task, bench.delivery(), lambda: 5) == 5
    assert bench.store.lookup("key").state is RecordState.COMPLETED
    assert run(task, bench.delivery("again"), fail(AssertionError("the body must not run"))) == 5


def test_a_retryable_failure_is_celerys_retry(task, bench):
    with pytest.raises(Retry):
        run(task, bench.delivery(), fail(ConnectionError("gone")))


def test_a_permanent_failure_is_itself(task, bench):
    with pytest.raises(KeyError):
        run(task, bench.delivery(), fail(KeyError("no")))
    assert dead(bench)[1].reason == "permanent"


@pytest.mark.parametrize("error", [KeyError("no"), Reject("no"), ConnectionError("gone")], ids=["permanent", "reject", "retryable"])
def test_a_failure_after_the_lease_was_taken_over_leaves_the_others_success_alone(task, bench, error):
    other = taken_over(bench)

    def body() -> None:
        other()
        raise error

    with pytest.raises((Ignore, Retry)):
        run(task, bench.delivery(), body)
    assert not list(bench.broker.browse("q.dead"))
    assert bench.store.lookup("key").state is RecordState.COMPLETED


def test_a_value_after_the_lease_was_taken_over_is_not_the_result(task, bench):
    other = taken_over(bench)
    with pytest.raises(Ignore):
        run(task, bench.delivery(), lambda: other() or "mine")


def test_reject_is_a_dead_letter_and_a_failure(task, bench):
    with pytest.raises(RejectedTask):
        run(task, bench.delivery(), fail(Reject("no")))
    assert dead(bench)[1].reason == "rejected"


def test_a_conflict_is_a_failure_of_its_own(task, bench):
    run(task, bench.delivery(), lambda: 5)
    first = bench.delivery("b")
    other = Delivery(first.task_id, first.task_name, "key", "different", "b", "q", first.travel, raw=first.raw)
    with pytest.raises(IdempotencyConflict):
        run(task, other, lambda: 6)


def test_running_out_of_memory_is_reported_as_something_that_does_not_end_the_worker(task, bench):
    with pytest.raises(Retry):
        run(task, bench.delivery(), fail(MemoryError()))


@pytest.mark.parametrize("step", ["complete", "release"])
def test_a_soft_time_limit_in_the_middle_of_settling_does_not_undo_it(task, bench, monkeypatch, step):
    call = getattr(bench.store, step)
    struck = []

    def late(*args: Any, **kwargs: Any) -> Any:
        answer = call(*args, **kwargs)
        if not struck:
            struck.append(step)
            raise SoftTimeLimitExceeded
        return answer

    monkeypatch.setattr(bench.store, step, late)
    if step == "complete":
        assert run(task, bench.delivery(), lambda: 5) == 5
        assert bench.store.lookup("key").state is RecordState.COMPLETED
    else:
        with pytest.raises(Retry):
            run(task, bench.delivery(), fail(ConnectionError("gone")))
        assert bench.store.lookup("key").attempts == 1
    assert struck


def test_a_soft_time_limit_behind_the_letter_does_not_send_the_task_round_again(task, bench, monkeypatch):
    reset, struck = bench.store.reset, []

    def late(*args: Any, **kwargs: Any) -> Any:
        answer = reset(*args, **kwargs)
        if not struck:
            struck.append("reset")
            raise SoftTimeLimitExceeded
        return answer

    monkeypatch.setattr(bench.store, "reset", late)
    with pytest.raises(KeyError):
        run(task, bench.delivery(), fail(KeyError("no")))
    assert struck
    assert dead(bench)[1].reason == "permanent"
    assert bench.broker.delayed() == []
    assert list(bench.broker.browse("q")) == []


def test_a_letter_that_cannot_be_published_before_the_body_leaves_no_lease(task, bench, monkeypatch):
    def away(*args: Any, **kwargs: Any) -> None:
        raise PublishFailed("no connection")

    monkeypatch.setattr(bench.broker, "dead_letter", away)
    late = Travel(first=bench.clock.now(), until=bench.clock.now() - 1)
    with pytest.raises(Reject):
        run(task, bench.delivery(travel=late), fail(AssertionError("the body must not run")))
    record = bench.store.lookup("key")
    assert record is None or record.state is RecordState.IDLE
    bench.clock.advance(120)
    _, claim = bench.guard.admit(bench.delivery("again"), LIMITS)
    assert (claim.crashes, claim.suspicions) == (0, 0)


def test_a_soft_time_limit_before_the_body_hands_the_message_back(task, bench, monkeypatch):
    def slow(*args: Any, **kwargs: Any) -> Any:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(bench.store, "claim", slow)
    with pytest.raises(Reject) as caught:
        run(task, bench.delivery(), fail(AssertionError("the body must not run")))
    assert caught.value.requeue


def test_a_channel_that_cannot_give_back_what_it_holds_is_closed_all_the_same():
    """An error here ends the worker: the broker is away, and its transport has been taken apart already."""
    from celery_guardrails.worker.safe_pop import _close_without_a_broker

    class Qos:
        def __init__(self) -> None:
            self.asked = 0

        def restore_unacked_once(self, stderr: Any = None) -> None:
            self.asked += 1
            raise AttributeError("'NoneType' object has no attribute 'hostname'")

    qos = Qos()
    _close_without_a_broker(qos)
    qos.restore_unacked_once(stderr=None)
    assert qos.asked == 1
