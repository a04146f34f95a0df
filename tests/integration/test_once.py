"""One key, one effect: however often it is published, by whomever, and whenever."""

from __future__ import annotations

import pytest

from celery_guardrails.policy.lease import RecordState
from tests.support import consistently, eventually


@pytest.fixture(scope="module")
def app(shared_deploy):
    app = shared_deploy()
    app.start_workers(2)
    return app


def publish(app, how, name, *args):
    if how == "apply_async":
        return app.task("token").apply_async((name, *args))
    return app.app.send_task("testapp.token", args=(name, *args))  # no guard on this side


@pytest.mark.parametrize("ways", [["apply_async"], ["send_task"], ["apply_async", "send_task"]], ids=" and ".join)
def test_a_key_published_twenty_times_at_once_has_one_effect_and_one_value(app, name, ways):
    results = [publish(app, how, name, 0.3) for _ in range(20) for how in ways]
    values = [result.get(timeout=60) for result in results]
    (effect,) = app.ledger.entries(event="effect", key=name)
    assert set(values) == {effect.run}
    assert len(values) == 20 * len(ways)
    assert app.ledger.count(name, "start") == 1


def test_keys_do_not_wait_for_each_other(app, name):
    results = {number: app.send("token", f"{name}.{number}") for number in range(40)}
    values = {number: result.get(timeout=30) for number, result in results.items()}
    assert len(set(values.values())) == 40
    assert [app.ledger.count(f"{name}.{number}") for number in results] == [1] * 40


@pytest.mark.parametrize("how", ["apply_async", "send_task"])
def test_a_completed_key_sent_again_returns_the_stored_result_and_does_not_run(app, name, how):
    first = app.send("token", name).get(timeout=20)
    again = publish(app, how, name)
    assert again.get(timeout=20) == first
    assert app.ledger.count(name, "start") == 1
    assert app.guardrails.lookup(f"effect:{name}").state is RecordState.COMPLETED


def test_the_same_message_delivered_again_after_its_completion_does_not_run(app, name):
    task_id = f"id-{name}"
    first = app.task("token").apply_async((name,), task_id=task_id).get(timeout=20)
    app.task("by_id").apply_async((name,), task_id=f"by-{task_id}").get(timeout=20)
    starts = app.ledger.count(name, "start")
    app.task("token").apply_async((name,), task_id=task_id)
    app.task("by_id").apply_async((name,), task_id=f"by-{task_id}")
    # both are through when what was sent after them is, and the queue is empty
    results = [app.send("token", f"{name}.after.{number}") for number in range(8)]
    assert all(result.get(timeout=20) for result in results)
    eventually(lambda: app.depth() == 0)
    consistently(lambda: app.ledger.count(name, "start") == starts == 2, 0.5)
    assert app.app.AsyncResult(task_id).get(timeout=5) == first


def test_a_completed_key_is_known_to_workers_that_start_later(app, name, shared_workers):
    first = app.send("token", name).get(timeout=20)
    for worker in shared_workers.all:
        if worker.alive():
            assert worker.stop() == 0
    app.start_workers(2)
    values = [publish(app, how, name).get(timeout=20) for how in ("apply_async", "send_task")]
    assert values == [first, first]
    assert app.ledger.count(name, "start") == 1


def test_a_forgotten_key_runs_again(app, name):
    first = app.send("token", name).get(timeout=20)
    assert app.guardrails.forget(f"effect:{name}")
    assert app.send("token", name).get(timeout=20) != first
    assert app.ledger.count(name) == 2
