"""Plain tasks before the door: they wait while somebody is alone in there, and are counted while they are in."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.worker import state as worker_state
from celery.worker.request import Request, create_request_cls, revoked_tasks

from celery_guardrails.errors import StoreUnavailable
from celery_guardrails.integration import stopping
from celery_guardrails.integration.app import ensure_guardrails
from celery_guardrails.integration.solitude import Solitude
from celery_guardrails.worker import doorkeeper
from celery_guardrails.worker.doorkeeper import Connected, Doorkeeper
from tests.unit.test_guard import LIMITS
from tests.unit.test_guarded_request import Desk, desk, received

__all__ = ["desk"]


class Given:
    """What a pool answers with, and keeps until it ends."""

    def __init__(self, options: dict[str, Any], cache: dict[int, Any]) -> None:
        self.options = options
        self._cache, self._job = cache, len(cache)
        cache[self._job] = self


class Yard:
    """A worker whose pool only writes down what it is given, and whose timer runs when it is told to."""

    def __init__(self, app: Celery, room: Solitude) -> None:
        self.app, self.room = app, room
        self.given: list[Given] = []
        self.cache: dict[int, Any] = {}
        self.timer_calls: list[Any] = []
        self.released = 0
        self.grown: list[int] = []
        self.worker = SimpleNamespace(
            app=app,
            pool=SimpleNamespace(apply_async=self._take, grow=self.grown.append),
            timer=SimpleNamespace(call_after=lambda seconds, call, args: self.timer_calls.append(partial(call, *args))),
            _quick_release=self._release,
        )

        @app.task(name="yard.task", shared=False, lazy=False)
        def task() -> None: ...

        self.task = task
        self.keeper = Doorkeeper(self.worker)
        self.keeper.create(self.worker)

    def _take(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Given:
        self.given.append(Given(options, self.cache))
        return self.given[-1]

    def _release(self) -> None:
        self.released += 1

    def prefork(self, flush: Callable[[], Any]) -> Any:
        """Let the worker start with a prefork pool, which forgets by ``flush``."""
        pool: Any = PreforkPool(1)
        self.worker.pool = pool
        pool.flush, pool.grow, pool.apply_async = flush, self.grown.append, self.keeper.apply_async
        self.keeper.start(self.worker)
        return pool

    def connected(self) -> None:
        """Let the worker be connected, for the first time or once more."""
        Connected.start(Connected.__new__(Connected), SimpleNamespace(controller=self.worker))

    def look(self) -> None:
        """Let the timer come to its time."""
        calls, self.timer_calls = self.timer_calls, []
        for call in calls:
            call()

    def send(self, name: str) -> Any:
        """Receive a message of a plain task, and give it to the pool."""
        message = received({"id": name, "task": "yard.task"})
        cls = create_request_cls(Request, self.task, self.worker.pool, "here", None, app=self.app)
        acts: dict[str, Any] = {"on_ack": lambda *_: None, "on_reject": lambda *_: None}
        request = cls(message, app=self.app, headers=message.headers, body=message.body, decoded=False, task=self.task, **acts)
        worker_state.task_reserved(request)
        request.execute_using_pool(self.worker.pool)
        return request


@pytest.fixture
def yard(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    room = Solitude()
    room.open(4)
    monkeypatch.setattr(doorkeeper, "solitude", room)
    monkeypatch.setattr(worker_state, "requests", {})
    stopping.reset()
    yield Yard(desk.app, room)
    stopping.reset()
    worker_state.reserved_requests.clear()
    worker_state.active_requests.clear()
    revoked_tasks.clear()


@contextmanager
def suspect(room: Solitude) -> Iterator[None]:
    """A child that is alone, until the end of the block, where it is killed and the main process makes room."""
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            os.write(said, b"1" if room.alone("suspect", 0.0) else b"0")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"1"
        yield
    finally:
        os.close(ready)
        os.close(said)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        room.leave("suspect")


def can_be_alone(room: Solitude) -> bool:
    """Whether a child would be alone now."""
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(said, b"1" if room.alone("suspect", 0.0) else b"0")
        finally:
            os._exit(1)
    answer = os.read(ready, 1)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(said)
    room.leave("suspect")
    return answer == b"1"


def test_a_plain_task_waits_while_somebody_is_alone_and_starts_afterwards(yard: Yard) -> None:
    with suspect(yard.room):
        request = yard.send("waits")
        yard.look()
        yard.look()
        assert yard.given == []
        assert request._apply_result is None
    yard.look()
    (given,) = yard.given
    assert request._apply_result() is given
    assert not can_be_alone(yard.room)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ("callback", ((0, None, 0.1),)),
        ("error_callback", (None,)),
        ("timeout_callback", (False, 1.0)),
    ],
)
def test_nobody_is_alone_while_a_plain_task_runs_however_it_ends(yard: Yard, event: str, told: Any) -> None:
    heard: list[Any] = []
    yard.worker.pool.apply_async(print, **{event: lambda *args: heard.append(args)})
    assert not can_be_alone(yard.room)
    yard.given[0].options[event](*told)
    assert can_be_alone(yard.room)
    assert heard == [told]


def test_a_soft_time_limit_is_not_the_end(yard: Yard) -> None:
    yard.worker.pool.apply_async(print, timeout_callback=lambda soft, timeout: None)
    yard.given[0].options["timeout_callback"](soft=True, timeout=1.0)
    assert not can_be_alone(yard.room)


def test_a_plain_task_that_ends_by_an_error_that_celery_cannot_take_has_ended_all_the_same(yard: Yard) -> None:
    def fails(result: Any) -> None:
        raise TypeError

    yard.worker.pool.apply_async(print, callback=fails)
    with pytest.raises(TypeError):
        yard.given[0].options["callback"](None)
    assert can_be_alone(yard.room)


def test_a_pool_that_takes_nothing_more_leaves_nobody_inside(yard: Yard) -> None:
    def closed(*args: Any, **options: Any) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    yard.keeper._submit = closed
    with pytest.raises(RuntimeError):
        yard.worker.pool.apply_async(print)
    assert can_be_alone(yard.room)


def test_one_that_was_revoked_while_it_waited_does_not_start_and_makes_room_in_the_pool(yard: Yard) -> None:
    with suspect(yard.room):
        yard.send("revoked")
        revoked_tasks.add("revoked")
    yard.look()
    assert (yard.given, yard.released) == ([], 1)
    assert can_be_alone(yard.room)


def test_one_whose_connection_was_lost_while_it_waited_does_not_start_since_it_comes_again(yard: Yard) -> None:
    with suspect(yard.room):
        yard.send("lost")
        worker_state.reserved_requests.clear()  # celery/worker/consumer/consumer.py, on_close
    yard.look()
    assert (yard.given, yard.released) == ([], 0)


def test_what_waits_when_the_worker_is_told_to_stop_does_not_start_and_counts_as_not_begun(yard: Yard) -> None:
    with suspect(yard.room):
        request = yard.send("waits")
    stopping.set_stopping()
    yard.look()
    assert yard.given == []
    assert request._apply_result is None, "so giving_back returns it"


def test_those_who_wait_start_in_the_order_in_which_they_came(yard: Yard) -> None:
    with suspect(yard.room):
        requests = [yard.send(f"waits{number}") for number in range(3)]
        yard.look()
    yard.look()
    assert [given.options["correlation_id"] for given in yard.given] == [request.id for request in requests]


def test_a_timer_that_celery_has_cleared_when_the_connection_was_lost_is_set_again(yard: Yard) -> None:
    with suspect(yard.room):
        lost = [yard.send("one"), yard.send("two")]
        assert len(yard.timer_calls) == 1
        yard.timer_calls.clear()
        for request in lost:
            worker_state.reserved_requests.discard(request)
        yard.connected()
        again = [yard.send(name) for name in ("one", "two", "three")]
        assert len(yard.timer_calls) == 1
    yard.look()
    assert [given.options["correlation_id"] for given in yard.given] == [request.id for request in again]
    assert yard.timer_calls == []


def test_a_timer_that_was_not_cleared_does_not_look_beside_the_new_one(yard: Yard) -> None:
    with suspect(yard.room):
        yard.send("one")
        for _ in range(3):
            yard.connected()
        assert len(yard.timer_calls) == 4
        yard.look()
        assert len(yard.timer_calls) == 1, "one goes on"
    yard.look()
    assert len(yard.given) == 1


def test_connected_and_nobody_waits_there_is_nothing_to_look_at(yard: Yard) -> None:
    yard.connected()
    assert yard.timer_calls == []


def test_one_that_cannot_be_let_in_is_tried_again_and_holds_up_nobody(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    away = False

    def revoked(self: Any) -> bool:
        if away and self.id == "first":
            raise OSError("the result backend is away")
        return False

    monkeypatch.setattr(Request, "revoked", revoked)
    with suspect(yard.room):
        first, second = yard.send("first"), yard.send("second")
    away = True
    yard.look()
    assert [given.options["correlation_id"] for given in yard.given] == [second.id]
    yard.given[0].options["callback"]((0, None, 0.1))
    assert can_be_alone(yard.room), "the first is not inside while it waits"
    away = False
    yard.look()
    assert [given.options["correlation_id"] for given in yard.given] == [second.id, first.id]


def test_one_that_the_pool_refuses_is_given_to_it_later_with_all_that_celery_wants_to_hear(yard: Yard) -> None:
    submit, refused = yard.keeper._submit, []

    def once(*args: Any, **options: Any) -> Any:
        if not refused:
            refused.append(options)
            raise OSError("not now")
        return submit(*args, **options)

    yard.keeper._submit = once
    with suspect(yard.room):
        yard.send("refused")
    yard.look()
    assert can_be_alone(yard.room)
    yard.look()
    (given,) = yard.given
    assert given.options == refused[0]
    assert {"accept_callback", "callback", "error_callback"} <= given.options.keys()


def test_the_end_of_a_process_is_heard_also_where_nobody_asked_for_it(yard: Yard) -> None:
    yard.worker.pool.apply_async(print, callback=lambda result: None)  # celery-batches
    assert not can_be_alone(yard.room)
    yard.given[0].options["error_callback"](None)
    assert can_be_alone(yard.room)


def test_what_is_dropped_with_its_request_is_not_inside_any_more(yard: Yard) -> None:
    def flush() -> None:
        yard.cache.clear()
        gc.collect()

    pool = yard.prefork(flush)
    worker_state.task_ready(yard.send("dropped"))  # out of Celery's tables (celery/worker/consumer/consumer.py 5.7, on_close)
    yard.given.clear()
    assert not can_be_alone(yard.room)
    pool.flush()
    assert can_be_alone(yard.room)


def test_what_the_pool_drops_when_the_connection_is_lost_is_not_inside_any_more_but_what_runs_or_will_run_is(yard: Yard) -> None:
    pool = yard.prefork(flush=yard.cache.clear)
    dropped = yard.send("dropped")
    assert not can_be_alone(yard.room)
    pool.flush()
    assert yard.cache == {}
    assert can_be_alone(yard.room)
    runs = yard.send("runs")
    runs.on_accepted(os.getpid(), 0.0)
    pool.flush()
    assert not can_be_alone(yard.room)
    yard.given[-1].options["callback"]((0, None, 0.1))
    assert can_be_alone(yard.room)
    assert dropped is not runs


def test_what_the_pool_remembers_when_the_connection_is_lost_is_inside_until_it_ends(yard: Yard) -> None:
    pool = yard.prefork(flush=lambda: None)
    piped = yard.send("piped")
    pool.flush()
    assert not can_be_alone(yard.room)
    yard.given[-1].options["callback"]((0, None, 0.1))
    assert can_be_alone(yard.room)
    assert piped not in worker_state.active_requests


def test_guarded_tasks_pass_since_they_go_in_by_themselves(yard: Yard, desk: Desk) -> None:
    request = desk.request()
    with suspect(yard.room):
        yard.worker.pool.apply_async(print, accept_callback=request.on_accepted)
        assert len(yard.given) == 1
    assert can_be_alone(yard.room)


# -- a pool that grows ----------------------------------------------------------------------------------------------


def test_a_pool_of_one_that_grows_says_of_what_it_runs_that_it_is_not_alone_any_more(yard: Yard, desk: Desk) -> None:
    yard.room.open(1)
    yard.keeper.start(yard.worker)
    request = desk.request()
    desk.bench.guard.admit(request.delivery, LIMITS)
    worker_state.task_reserved(request)
    yard.worker.pool.grow(2)
    assert yard.grown == [2]
    assert yard.room.shared()
    record = desk.bench.store.lookup(request.delivery.key)
    assert record is not None
    assert record.beside


def test_a_pool_of_one_does_not_grow_while_the_store_is_away(yard: Yard, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.room.open(1)
    yard.keeper.start(yard.worker)
    request = desk.request()
    worker_state.task_reserved(request)

    def away(delivery: Any) -> None:
        raise StoreUnavailable("no connection")

    monkeypatch.setattr(ensure_guardrails(desk.app).main_guard, "expose", away)
    with pytest.raises(StoreUnavailable):
        yard.worker.pool.grow(1)
    assert (yard.grown, yard.room.shared()) == ([], False)


def test_a_pool_of_several_grows_without_asking_the_store(yard: Yard, desk: Desk) -> None:
    yard.keeper.start(yard.worker)
    worker_state.task_reserved(desk.request())
    desk.bench.log.clear()
    yard.worker.pool.grow(1)
    assert (yard.grown, desk.bench.log) == ([1], [])
