"""What Celery's own ways to end, stop and postpone a task mean under the guard."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from celery_guardrails import GuardedTask, GuardrailsConfigError
from celery_guardrails.errors import RejectedTask
from celery_guardrails.policy.lease import RecordState
from tests.support import consistently, eventually


@pytest.fixture(scope="module")
def app(shared_deploy):
    app = shared_deploy("semantics", result_extended=True, guardrails_lease_seconds=30)
    app.worker(concurrency=4)
    return app


def attempts(app, name, event="start"):
    return [entry.fields["attempt"] for entry in app.ledger.entries(event=event, key=name)]


def state_of(app, name):
    record = app.guardrails.lookup(f"effect:{name}")
    return record.state if record is not None else None


def settle(app):
    """Wait until everything sent so far has been taken by the worker, and what it took has been decided."""
    assert app.send("effect", f"settle{time.monotonic()}").get(timeout=20)
    eventually(lambda: app.depth() == 0, 10)


# -- self.retry() ---------------------------------------------------------------------------------------------------


def test_retry_without_a_countdown_waits_as_the_policy_says_and_not_three_minutes(app, name):
    result = app.send("retry_by_default", name, 2)
    assert result.get(timeout=15) == name
    assert attempts(app, name) == [1, 2, 3]
    first, second, third = (entry.time for entry in app.ledger.entries(event="start", key=name))
    assert second - first >= 0.1
    assert third - second >= 0.2
    assert state_of(app, name) is RecordState.COMPLETED


def test_retry_without_a_countdown_waits_no_shorter_than_the_error_asks_for(app, name):
    assert app.send("retry_when_told", name, 0.9).get(timeout=15) == name  # the policy's own wait would be 0.1 s
    first, second = (entry.time for entry in app.ledger.entries(event="start", key=name))
    assert second - first >= 0.9


def test_retry_without_max_retries_ends_with_the_policys_attempts(app, name):
    result = app.send("retry_by_default", name, 99)
    with pytest.raises(ConnectionError, match="asked for"):
        result.get(timeout=15)
    assert attempts(app, name) == [1, 2, 3]
    found = app.certificate(result.id)
    assert (found["reason"], found["attempts"], found["error"]) == ("exhausted", 3, "ConnectionError")
    assert state_of(app, name) is None


@pytest.mark.parametrize(("max_retries", "runs"), [(0, 1), (1, 2), (4, 5)])
def test_max_retries_given_to_retry_goes_before_the_policy(app, name, max_retries, runs):
    result = app.send("retry_at_most", name, max_retries)
    with pytest.raises(ConnectionError):
        result.get(timeout=15)
    assert attempts(app, name) == list(range(1, runs + 1))
    found = app.certificate(result.id)
    assert (found["reason"], found["attempts"]) == ("exhausted", runs)


def test_retry_may_change_the_arguments_and_keeps_the_key(app, name):
    result = app.send("retry_with_others", name, 1, 3)
    assert result.get(timeout=15) == 3
    effects = app.ledger.entries(event="effect", key=name)
    assert [entry.fields["page"] for entry in effects] == [1, 2, 3]
    assert {entry.fields["task_id"] for entry in effects} == {result.id}
    assert state_of(app, name) is RecordState.COMPLETED
    # what was asked for first is what was completed
    assert app.send("retry_with_others", name, 1, 3).get(timeout=15) == 3
    assert app.ledger.count(name) == 3


def test_retry_without_throw_lets_the_body_go_on_and_the_successor_run(app, name):
    result = app.send("retry_and_go_on", name)
    assert result.get(timeout=15) == "first"
    app.ledger.wait("effect", name)
    assert attempts(app, name) == [1, 2]
    assert app.ledger.count(name, "went on") == 1
    eventually(lambda: state_of(app, name) is RecordState.COMPLETED, 10)
    assert not app.ledger.overlaps(name)


def test_a_task_with_autoretry_for_is_refused_where_it_is_defined():
    celery = Celery("shop", broker="memory://", set_as_current=False)
    with pytest.raises(GuardrailsConfigError, match=r"autoretry_for .*ConnectionError.*retryable"):

        @celery.task(base=GuardedTask, autoretry_for=(ConnectionError,), name="shop.twice", shared=False, lazy=False)
        def twice():
            """Two retry engines."""


# -- Reject, Ignore -------------------------------------------------------------------------------------------------


def test_reject_is_dead_lettered_and_the_result_is_a_failure(app, name):
    result = app.send("reject", name)
    with pytest.raises(RejectedTask, match="on demand"):
        result.get(timeout=15)
    assert app.certificate(result.id)["reason"] == "rejected"
    assert attempts(app, name) == [1]
    assert state_of(app, name) is None


def test_reject_with_requeue_runs_again_at_once_and_charges_nothing(app, name):
    result = app.send("reject", name, requeue=True, times=2)
    assert result.get(timeout=15) == name
    assert attempts(app, name) == [1, 1, 1]
    assert app.ledger.count(name) == 1
    assert app.certificates(result.id) == []


def test_ignore_ends_the_task_without_result_record_or_dead_letter(app, name):
    result = app.send("ignore", name)
    app.ledger.wait("end", name)
    settle(app)
    eventually(lambda: state_of(app, name) is None, 10)
    assert result.state == "PENDING"
    assert app.certificates(result.id) == []
    app.send("ignore", name)  # the key is free
    app.ledger.wait("end", name, times=2)
    assert attempts(app, name) == [1, 1]


# -- time limits ----------------------------------------------------------------------------------------------------


def test_a_soft_time_limit_is_a_failed_attempt_that_is_tried_again(app, name):
    result = app.send("soft_limited", name)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=25)
    assert attempts(app, name) == [1, 2, 3]
    found = app.certificate(result.id)
    assert (found["reason"], found["attempts"], found["crashes"]) == ("exhausted", 3, 0)
    assert found["error"].endswith("SoftTimeLimitExceeded")


def test_a_task_that_catches_its_soft_limit_completes(app, name):
    assert app.send("survives_soft_limit", name).get(timeout=15) == name
    assert attempts(app, name) == [1]
    assert state_of(app, name) is RecordState.COMPLETED


def test_a_hard_time_limit_is_a_failed_attempt_that_is_tried_again_and_no_crash(app, name):
    result = app.send("hard_limited", name)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    assert attempts(app, name) == [1, 2, 3]
    assert not app.ledger.overlaps(name)
    found = app.certificate(result.id)
    assert (found["reason"], found["attempts"], found["crashes"]) == ("exhausted", 3, 0)
    assert found["error"].endswith("TimeLimitExceeded")
    assert state_of(app, name) is None


def test_a_hard_time_limit_given_with_the_call_is_kept_by_the_next_attempts(app, name):
    result = app.task("effect").apply_async((name, 8.0), time_limit=1)
    app.ledger.wait("start", name, times=2)
    assert attempts(app, name)[:2] == [1, 2]
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=20)
    assert app.ledger.count(name) == 0


# -- revoke, expires ------------------------------------------------------------------------------------------------


def test_a_task_revoked_before_it_starts_does_not_run_and_leaves_its_key_free(app, name):
    blockers = [app.send("effect", f"{name}.blocker{number}", 5.0) for number in range(4)]
    for number in range(4):
        app.ledger.wait("start", f"{name}.blocker{number}")
    result = app.send("effect", name)
    app.app.control.revoke(result.id)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert [blocker.get(timeout=20) for blocker in blockers]
    assert app.send("effect", name).get(timeout=20) == name
    assert app.ledger.count(name, "start") == 1
    assert app.certificates(result.id) == []


def test_a_delayed_task_that_is_revoked_does_not_run_when_its_time_comes(app, name):
    result = app.task("effect").apply_async((name,), countdown=4.0)
    eventually(lambda: app.depth() == 0, 10)
    app.app.control.revoke(result.id)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert app.ledger.count(name, "start") == 0


def test_a_running_task_that_is_revoked_with_terminate_gives_its_lease_back_at_once(app, name):
    result = app.send("effect", name, 30.0)
    app.ledger.wait("start", name)
    assert state_of(app, name) is RecordState.LEASED
    app.app.control.revoke(result.id, terminate=True, signal="SIGKILL")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    eventually(lambda: state_of(app, name) is not RecordState.LEASED, 20, because="the lease is given back")
    before = time.monotonic()
    assert app.task("effect").apply_async((name, 30.0), task_id=f"again-{name}")
    app.ledger.wait("start", name, times=2, timeout=20)
    assert time.monotonic() - before < 20, "its lease is 30 s long"
    assert attempts(app, name) == [1, 1]
    assert app.certificates(result.id) == []
    app.app.control.revoke(f"again-{name}", terminate=True, signal="SIGKILL")
    eventually(lambda: state_of(app, name) is not RecordState.LEASED, 10)


def test_a_task_that_has_expired_does_not_run(app, name):
    result = app.task("effect").apply_async((name,), expires=datetime.now(timezone.utc) - timedelta(seconds=1))
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=20)
    assert app.ledger.count(name, "start") == 0
    assert app.certificates(result.id) == []


def test_a_task_that_expires_while_it_waits_for_its_time_does_not_run(app, name):
    result = app.task("effect").apply_async((name,), countdown=2.0, expires=1.0)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=20)
    assert app.ledger.count(name, "start") == 0


# -- countdown, eta -------------------------------------------------------------------------------------------------


def test_delayed_and_retried_tasks_wait_in_the_broker_and_not_in_the_worker_and_run_on_time(app, name):
    if app.broker.server is None:
        pytest.skip("only our own server says what its consumers hold")
    wait = 10.0 if app.broker.kind == "redis" else 35.0  # asking RabbitMQ takes seconds on a busy machine
    due = time.monotonic() + wait
    results = [app.task("effect").apply_async((f"{name}.{number}",), countdown=wait) for number in range(40)]
    at = datetime.now(timezone.utc) + timedelta(seconds=due - time.monotonic())
    results.append(app.task("effect").apply_async((f"{name}.eta",), eta=at))
    retried = [f"{name}.{how}" for how in ("by_countdown", "by_eta")]
    results += [app.send("retry_at", key, at.timestamp(), key.rpartition("_")[2]) for key in retried]
    for key in retried:
        app.ledger.wait("start", key)
    held = "(unacked)" if app.broker.kind == "redis" else app.queue
    eventually(lambda: app.depth() == 0, wait, because="the worker has seen them all")
    eventually(lambda: app.broker.sizes().get(held, (0, 0))[1] == 0, wait, because="and holds none of them")
    assert time.monotonic() < due, "too slow to see them waiting"
    # the worker is free for others meanwhile
    assert app.send("effect", f"{name}.now").get(timeout=10)
    assert [result.get(timeout=wait + 20) for result in results]
    starts = [entry.time for number in range(40) for entry in app.ledger.entries(event="start", key=f"{name}.{number}")]
    starts += [entry.time for entry in app.ledger.entries(event="start", key=f"{name}.eta")]
    assert len(starts) == 41
    for key in retried:
        first, second = (entry.time for entry in app.ledger.entries(event="start", key=key))
        assert first < due - 1
        starts.append(second)
    assert min(starts) >= due - 0.6, "not before their time"
    assert max(starts) <= due + 10.0, "not much after it"
    assert set(attempts(app, f"{name}.0")) == {1}
    assert [attempts(app, key) for key in retried] == [[1, 2], [1, 2]]


def test_a_wait_in_the_broker_counts_neither_as_attempt_nor_against_the_key(app, name):
    first = app.task("effect").apply_async((name,), countdown=1.0)
    assert first.get(timeout=15) == name
    assert app.task("effect").apply_async((name,), countdown=0.7).get(timeout=15) == name
    assert app.ledger.count(name, "start") == 1


def test_tasks_that_were_told_the_same_time_neither_come_before_it_nor_come_together(app, name):
    asked, number = 2.0, 40
    keys = [f"{name}.{each}" for each in range(number)]
    results = [app.send("told_to_wait", key, asked) for key in keys]
    assert [result.get(timeout=30) for result in results] == keys
    waits = []
    for key in keys:
        first, second = (entry.time for entry in app.ledger.entries(event="start", key=key))
        waits.append(second - first)
    assert min(waits) >= asked
    # evenly over as long again: 10 in each of four half seconds, with a deviation of 2.7
    assert max(sum(start <= wait < start + asked / 4 for wait in waits) for start in waits) <= 25


# -- dead_letter=False ----------------------------------------------------------------------------------------------


def test_a_task_without_dead_letters_fails_as_in_plain_celery(app, name):
    result = app.send("fail_plainly", name)
    with pytest.raises(ConnectionError, match="on demand"):
        result.get(timeout=15)
    assert result.state == "FAILURE"
    assert attempts(app, name) == [1, 2, 3]
    settle(app)
    consistently(lambda: app.certificates(result.id) == [], 0.5)
    assert state_of(app, name) is None
