"""Which limit counts in which pool, and what is told of tasks that run beyond it."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker import state as worker_state

from celery_guardrails import GuardedTask, Guardrails, RetryPolicy, events
from celery_guardrails.integration.mainstate import state
from celery_guardrails.policy.delivery import Delivery, Travel
from celery_guardrails.worker import overruns
from celery_guardrails.worker.overruns import OverrunWatch, limit_of, report_abandoned, runs_here, where_is


class Request(SimpleNamespace):
    __hash__ = object.__hash__


class Worker:
    """A worker's main process without a worker."""

    def __init__(self, monkeypatch, **pool) -> None:
        self.app = Celery("shop", broker="memory://")
        self.rails = Guardrails(self.app, store="memory://")
        self.told = []
        self.rails._listeners.append(self.told.append)
        monkeypatch.setattr(state, "consumer", SimpleNamespace(pool=SimpleNamespace(**{"options": {}, **pool})))
        self.watch = OverrunWatch(SimpleNamespace(app=self.app))

    def task(self, **options):
        def body() -> None: ...

        return self.app.task(base=GuardedTask, name=f"shop.t{len(self.app.tasks)}", shared=False, **options)(body)

    def begin(self, task, *, age=0.0, child=False, limits=(None, None), travel=Travel(), thread=None):  # noqa: B008 - frozen
        number = f"r{len(state.live)}"
        delivery = Delivery(number, task.name, f"key-{number}", None, number, "q", travel=travel)
        request = Request(
            name=task.name,
            id=number,
            task=task,
            delivery=delivery,
            own_time_limits=limits,
            time_start=time.time() - age,
            worker_pid=1 if child else os.getpid(),
            thread=thread,
            acknowledged=False,
        )
        state.live[number] = request
        worker_state.active_requests.add(request)
        return request

    def round(self):
        self.told.clear()
        self.watch._round()
        return self.told


@pytest.fixture(autouse=True)
def nothing_runs():
    state.live.clear()
    yield
    state.live.clear()
    worker_state.active_requests.clear()


@pytest.mark.parametrize(
    ("options", "message", "line", "limit"),
    [
        ({}, (None, None), {}, None),
        ({"soft_time_limit": 5}, (None, None), {}, 5),
        ({"time_limit": 7}, (None, None), {}, 7),
        ({"soft_time_limit": 5, "time_limit": 7}, (None, None), {}, 5),
        ({"soft_time_limit": 5}, (None, 3), {}, 3),
        ({"soft_time_limit": 5}, (2, None), {}, 2),
        ({}, (None, None), {"soft_timeout": 9, "timeout": 10}, 9),
        ({"soft_time_limit": 5}, (None, None), {"soft_timeout": 9}, 5),
    ],
)
def test_a_thread_is_beyond_the_first_limit_of_message_task_or_command_line(monkeypatch, options, message, line, limit):
    worker = Worker(monkeypatch, options=line)
    assert limit_of(worker.rails, worker.begin(worker.task(**options), limits=message)) == (limit, 0.0)


def test_a_deadline_is_a_limit_too_where_nothing_kills_the_task(monkeypatch):
    worker = Worker(monkeypatch)
    task = worker.task(retry=RetryPolicy(deadline=100.0), soft_time_limit=500)
    request = worker.begin(task, age=20.0, travel=Travel(first=time.time() - 30.0))
    limit, grace = limit_of(worker.rails, request)
    assert limit == pytest.approx(90.0, abs=1)
    assert grace == 0
    assert limit_of(worker.rails, worker.begin(task, child=True)) == (500, 50.0), "a pool process is killed at its deadline"


def test_a_pool_process_may_clean_up_after_its_soft_limit_and_is_killed_at_the_hard_one(monkeypatch):
    worker = Worker(monkeypatch)
    assert limit_of(worker.rails, worker.begin(worker.task(soft_time_limit=5), child=True)) == (5, 5.0)
    assert limit_of(worker.rails, worker.begin(worker.task(soft_time_limit=600), child=True)) == (600, 60.0)
    assert limit_of(worker.rails, worker.begin(worker.task(time_limit=5), child=True)) == (None, 0.0)


def test_greenlets_run_in_this_process_and_only_their_hard_limit_is_the_pools(monkeypatch):
    worker = Worker(monkeypatch, is_green=True)
    request = worker.begin(worker.task(soft_time_limit=5, time_limit=3), child=True)  # their number is no process
    assert runs_here(request)
    assert limit_of(worker.rails, request) == (5, 0.0)


def test_what_runs_beyond_its_limit_is_told_and_then_that_it_has_ended(monkeypatch):
    worker = Worker(monkeypatch)
    over = worker.begin(worker.task(soft_time_limit=5), age=6.0)
    worker.begin(worker.task(soft_time_limit=5), age=3.0)
    worker.begin(worker.task(), age=9999.0)
    (event,) = worker.round()
    assert event == events.StillRunning(over.name, over.id, over.delivery.key, event.seconds, 5, "unknown")
    assert event.seconds == pytest.approx(6, abs=1)
    assert worker.round() == []
    over.time_start -= 7
    assert [type(event) for event in worker.round()] == [events.StillRunning]
    worker_state.active_requests.discard(over)
    (event,) = worker.round()
    assert (type(event), event.task_id, event.limit) == (events.Overran, over.id, 5)
    assert worker.round() == []


def test_what_has_ended_with_the_pool_is_told_as_well(monkeypatch):
    worker = Worker(monkeypatch)
    over = worker.begin(worker.task(soft_time_limit=5), age=6.0)
    worker.round()
    worker_state.active_requests.discard(over)
    worker.watch.shutdown(None)
    assert type(worker.told[-1]) is events.Overran


def test_a_worker_can_be_asked_what_runs_beyond_its_limit(monkeypatch):
    worker = Worker(monkeypatch)
    over = worker.begin(worker.task(soft_time_limit=5), age=6.0)
    worker.round()
    (found,) = overruns.overruns(None)
    assert {name: found[name] for name in ("name", "id", "key", "limit")} == {
        "name": over.name,
        "id": over.id,
        "key": over.delivery.key,
        "limit": 5,
    }
    state.live.clear()
    worker.round()
    assert overruns.overruns(None) == []


def test_at_the_end_of_the_drain_time_what_cannot_be_ended_here_is_named(monkeypatch):
    worker = Worker(monkeypatch)
    here = worker.begin(worker.task(), age=60.0)
    worker.begin(worker.task(), age=60.0, child=True)
    worker.begin(worker.task(), age=60.0).acknowledged = True
    ended = worker.begin(worker.task(), age=60.0)
    worker_state.active_requests.discard(ended)
    report_abandoned(worker.rails)
    (event,) = worker.told
    assert (type(event), event.task_id) == (events.Abandoned, here.id)


def test_where_a_greenlet_is_can_be_told_too(monkeypatch):
    greenlet = SimpleNamespace(gr_frame=sys._getframe())
    worker = Worker(monkeypatch, is_green=True, _pool_map={1: greenlet})
    request = worker.begin(worker.task(), child=True)
    assert where_is(request).split(" < ")[0].endswith(" test_where_a_greenlet_is_can_be_told_too")
    worker_gone = worker.begin(worker.task())
    assert where_is(worker_gone) == "unknown"


def test_where_a_thread_is_is_told_by_file_line_and_function_and_by_no_value(monkeypatch):
    worker, over = Worker(monkeypatch), threading.Event()

    def charge(card_number):
        over.wait()

    thread = threading.Thread(target=charge, args=("4111-1111",))
    thread.start()
    try:
        request = worker.begin(worker.task(), thread=thread.ident)
        deadline = time.monotonic() + 30
        while "charge" not in where_is(request) and time.monotonic() < deadline:
            time.sleep(0.01)
        found = where_is(request)
        assert "test_overruns_watched.py" in found
        assert "charge" in found
        assert "4111" not in found
        request.worker_pid = 1
        assert where_is(request) == "unknown", "in another process nobody can see"
    finally:
        over.set()
        thread.join()
