"""A task that has put another in its place, delivered again. The guard is real, on memory; Celery's worker is not there."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject

from celery_guardrails import DuplicateTask, GuardedTask, Guardrails, GuardrailsConfigError
from celery_guardrails.errors import PublishFailed, StoreUnavailable
from celery_guardrails.integration.running import GuardedRun
from celery_guardrails.policy.lease import RecordState
from tests.unit.test_guard import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def app(bench: Bench) -> Celery:
    app = Celery("replacing", broker="memory://", backend="cache+memory://", set_as_current=True)
    rails = Guardrails(app, store="memory://", result_retention=600)
    rails.clock = bench.clock

    class Parts:
        guard = bench.guard

    rails._opened = (os.getpid(), Parts())  # type: ignore[assignment]
    app.backend.client.cache.clear()  # Celery keeps it for all apps of a process
    return app


class Stage:
    """A task, and how often its body has begun."""

    def __init__(self, app: Celery, bench: Bench, **options: Any) -> None:
        self.bench, self.begun = bench, 0
        stage = self

        @app.task(base=GuardedTask, name="replacing.later", shared=False)
        def later() -> str:
            return "later"

        @app.task(base=GuardedTask, name="replacing.task", bind=True, shared=False, **options)
        def body(self: Any) -> Any:
            stage.begun += 1
            raise self.replace(later.si())

        self.task = app.tasks["replacing.task"]

    def deliver(self, task_id: str, *, root_id: str | None = None, nesting: int = 0, holder: str | None = None) -> Any:
        """Run it as a worker does that has received the message of a task."""
        delivery = replace(self.bench.delivery(holder or task_id), task_id=task_id)
        self.task.push_request(id=task_id, root_id=root_id or task_id, replaced_task_nesting=nesting)
        try:
            return GuardedRun(self.task, delivery).run((), {})
        finally:
            self.task.pop_request()


@pytest.fixture
def stage(app: Celery, bench: Bench) -> Stage:
    return Stage(app, bench)


def end(app: Celery, task_id: str, value: Any, state: str = "SUCCESS") -> None:
    app.backend.store_result(task_id, value, state)


def test_the_same_message_is_not_replaced_again(stage, bench):
    for holder in ("a", "b", "c"):
        with pytest.raises(Ignore):
            stage.deliver("one", holder=holder)
    assert stage.begun == 1
    record = bench.store.lookup("key")
    assert (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 0, 0)


def test_another_message_waits_in_the_broker_then_has_the_value_of_the_replacement(app, stage, bench):
    with pytest.raises(Ignore):
        stage.deliver("one")
    assert bench.broker.next_due is None
    with pytest.raises(Ignore, match="runs still"):
        stage.deliver("two")
    assert bench.broker.next_due is not None
    end(app, "one", "later")
    assert stage.deliver("two", holder="again") == "later"
    assert stage.begun == 1
    assert bench.store.lookup("key").state is RecordState.IDLE


def test_another_message_fails_as_the_replacement_did(app, stage):
    with pytest.raises(Ignore):
        stage.deliver("one")
    end(app, "one", KeyError("no"), "FAILURE")
    with pytest.raises(KeyError, match="no"):
        stage.deliver("two")


def test_it_stays_in_its_queue_where_the_broker_does_not_take_it(stage, bench, monkeypatch):
    with pytest.raises(Ignore):
        stage.deliver("one")

    def away(*_: Any) -> None:
        raise PublishFailed("away")

    monkeypatch.setattr(bench.broker, "delay", away)
    with pytest.raises(Reject) as caught:
        stage.deliver("two")
    assert caught.value.requeue


def test_a_result_backend_that_is_away_is_asked_again(stage, bench, monkeypatch):
    with pytest.raises(Ignore):
        stage.deliver("one")

    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("away")

    monkeypatch.setattr(stage.task.backend, "get_task_meta", away)
    with pytest.raises(Ignore, match="runs still"):
        stage.deliver("two")
    assert bench.broker.next_due is not None


def test_without_a_result_backend_there_is_no_value_to_wait_for(app, stage, monkeypatch):
    monkeypatch.setattr(type(stage.task), "backend", DisabledBackend(app=app))
    with pytest.raises(Ignore):
        stage.deliver("one")
    assert stage.deliver("two") is None


def test_it_is_remembered_for_the_time_of_retention(stage, bench):
    with pytest.raises(Ignore):
        stage.deliver("one")
    bench.clock.advance(601)
    with pytest.raises(Ignore):
        stage.deliver("two")
    assert stage.begun == 2


def test_what_was_put_in_its_place_may_have_the_same_key(stage):
    with pytest.raises(Ignore):
        stage.deliver("one", root_id="root")
    with pytest.raises(Ignore):
        stage.deliver("one", root_id="root", nesting=1, holder="replacement")
    assert stage.begun == 2
    with pytest.raises(Ignore, match="runs still"):
        stage.deliver("two", root_id="other", nesting=1)  # replaces something else
    assert stage.begun == 2


@pytest.mark.parametrize(("on_duplicate", "raised"), [("ignore", Ignore), ("raise", DuplicateTask)])
def test_a_duplicate_is_ignored_or_refused_where_the_task_says_so(app, bench, on_duplicate, raised):
    stage = Stage(app, bench, on_duplicate=on_duplicate)
    with pytest.raises(Ignore):
        stage.deliver("one")
    with pytest.raises(raised):
        stage.deliver("two")
    with pytest.raises(Ignore):
        stage.deliver("one", holder="again")  # the same message is no duplicate that anybody has made
    assert stage.begun == 1


def test_a_store_that_is_away_afterwards_does_not_make_a_failure_of_it(stage, bench, monkeypatch, caplog):
    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(bench.store, "save_step", away)
        with pytest.raises(Ignore):
            stage.deliver("one")
    assert "once more" in caplog.text
    with pytest.raises(Ignore):
        stage.deliver("one", holder="again")
    assert stage.begun == 2


def test_one_that_was_overtaken_leaves_the_key_to_the_other(stage, bench, monkeypatch):
    monkeypatch.setattr(bench.store, "save_step", lambda *_, **__: False)
    with pytest.raises(Ignore):
        stage.deliver("one")
    assert bench.store.lookup("key").state is RecordState.LEASED


def test_an_ignore_of_its_own_is_not_a_replacement(app, stage, bench):
    @app.task(base=GuardedTask, name="replacing.ignored", shared=False)
    def ignored() -> None:
        raise Ignore("mine")

    stage.task = app.tasks["replacing.ignored"]
    with pytest.raises(Ignore, match="mine"):
        stage.deliver("one")
    assert bench.store.lookup("key") is None


def test_an_atomic_task_cannot_be_replaced(app, stage, monkeypatch):
    monkeypatch.setattr(type(stage.task), "atomic", True)
    monkeypatch.setattr(GuardedRun, "_atomic", lambda self, run, args, kwargs: self.task._body(args, kwargs))
    with pytest.raises(GuardrailsConfigError, match="atomic"):
        stage.deliver("one")
