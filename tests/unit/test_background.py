"""Threads of the main process that do one thing every so often, and what they do after a reconnect."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state as worker_state
from kombu.asynchronous import Hub

from celery_guardrails.errors import PublishFailed
from celery_guardrails.integration import stopping
from celery_guardrails.integration.translate import queue_of, remember_tags
from celery_guardrails.worker.background import Background
from celery_guardrails.worker.bad_messages import BadMessages, _Garbage
from celery_guardrails.worker.lost_children import LostChildren
from tests.support import eventually


def test_a_round_that_outlasts_the_end_of_its_thread_does_not_keep_the_next_from_beginning():
    rounds: list[threading.Thread] = []
    hold, inside = threading.Event(), threading.Event()

    def work() -> float:
        rounds.append(threading.current_thread())
        inside.set()
        hold.wait(30)
        return 0.01

    background = Background("held up", work)
    background.start()
    assert inside.wait(10)
    background.stop(timeout=0.05)
    background.start()
    try:
        eventually(lambda: len(set(rounds)) == 2)
        hold.set()
        eventually(lambda: rounds.count(rounds[-1]) > 2, because="the second goes on")
        assert rounds.count(rounds[0]) == 1, "the first has ended"
    finally:
        hold.set()
        background.stop()


def test_a_thread_that_runs_is_not_started_twice():
    rounds: list[threading.Thread] = []
    background = Background("once", lambda: rounds.append(threading.current_thread()) or 0.01)
    for _ in range(5):
        background.start()
    eventually(lambda: len(rounds) > 3)
    background.stop()
    assert len(set(rounds)) == 1


def test_within_a_round_that_is_the_last_one_it_is_said_so_whoever_has_begun_since():
    said: list[bool] = []
    inside, hold = threading.Event(), threading.Event()

    def work() -> float:
        if not inside.is_set():
            inside.set()
            hold.wait(30)
            background.pause(30)
            said.append(background.stopping)
        return 30

    background = Background("last", work)
    background.start()
    assert inside.wait(10)
    background.stop(timeout=0.01)
    background.start()
    hold.set()
    eventually(lambda: said == [True])
    background.stop()


# -- the pool is looked at twice a second ---------------------------------------------------------------------------


def test_after_a_reconnect_the_pool_is_looked_at_as_often_as_before():
    hub, step = Hub(), LostChildren.__new__(LostChildren)
    consumer = SimpleNamespace(pool=SimpleNamespace(maintain_pool=lambda: None))
    for _ in range(3):  # Celery 5.6.2 clears no timer
        step.register_with_event_loop(consumer, hub)
    assert len([entry for entry in hub.timer.queue if not entry.entry.canceled]) == 1


# -- where a message came from --------------------------------------------------------------------------------------


class Consumer:
    """As much of kombu's as cancels a queue: the tag is forgotten first, and messages come until the broker has answered."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        names = {"feed_tasks": "feed.#", "celery": "celery"}
        self.queues = [SimpleNamespace(name=name, routing_key=key, exchange=SimpleNamespace(name="tasks")) for name, key in names.items()]
        self._active_tags = {"feed_tasks": "1", "celery": "2"}
        self._on_cancel = on_cancel

    def cancel_by_queue(self, queue: str) -> None:
        del self._active_tags[queue]
        self._on_cancel()


def message(tag: str) -> Any:
    info = {"consumer_tag": tag, "exchange": "tasks", "routing_key": "feed.import"}
    return SimpleNamespace(delivery_info=info, channel=SimpleNamespace())


@pytest.mark.parametrize("before", ["a message", "the pause"])
def test_what_comes_while_its_queue_is_being_cancelled_came_from_that_queue(before):
    found: list[str] = []

    def meanwhile() -> None:
        remember_tags(consumer)  # another queue is paused as well
        found.append(queue_of(message("1"), consumer))

    consumer = Consumer(meanwhile)
    if before == "a message":
        assert queue_of(message("2"), consumer) == "celery"
    else:
        remember_tags(consumer)
    consumer.cancel_by_queue("feed_tasks")
    assert found == ["feed_tasks"]
    consumer._active_tags["feed_tasks"] = "3"  # it is consumed again
    assert queue_of(message("3"), consumer) == "feed_tasks"


# -- garbage that could not be dead-lettered ------------------------------------------------------------------------


class Broker:
    def __init__(self) -> None:
        self.away = True
        self.letters: list[bytes] = []

    def dead_letter_raw(self, payload: bytes, queue: str, certificate: Any) -> None:
        if self.away:
            raise PublishFailed("no connection")
        self.letters.append(payload)


@pytest.fixture
def garbage():
    broker, timer = Broker(), []
    step: Any = BadMessages.__new__(BadMessages)
    clock = SimpleNamespace(now=lambda: 1000.0)
    step._rails = SimpleNamespace(broker=broker, clock=clock, emit=lambda event: None)
    step._consumer = SimpleNamespace(hostname="w", timer=SimpleNamespace(call_after=lambda seconds, call: timer.append(call)))
    step._held = []
    return SimpleNamespace(step=step, broker=broker, timer=timer)


def connected(garbage: Any) -> None:
    garbage.step.start(SimpleNamespace(task_consumer=SimpleNamespace(channel=SimpleNamespace())))


def test_garbage_that_is_held_in_memory_survives_the_loss_of_the_connection(garbage, monkeypatch):
    monkeypatch.setattr("celery_guardrails.worker.bad_messages.take_safely", lambda channel: None)
    for number in range(3):
        garbage.step._on_garbage(_Garbage(b"%d" % number, "q", ValueError("no message")))
    assert len(garbage.timer) == 1
    garbage.timer.clear()  # Celery before 5.7
    connected(garbage)
    garbage.broker.away = False
    for call in list(garbage.timer):
        call()
    assert garbage.broker.letters == [b"0", b"1", b"2"]
    connected(garbage)
    for call in list(garbage.timer):
        call()
    assert len(garbage.broker.letters) == 3


def test_garbage_is_forgotten_when_it_is_in_the_dead_letter_queue_and_not_before(garbage):
    forgotten: list[bytes] = []
    garbage.step._on_garbage(_Garbage(b"x", "q", ValueError("no message"), lambda: forgotten.append(b"x")))
    assert forgotten == []
    garbage.broker.away = False
    garbage.timer[0]()
    assert (garbage.broker.letters, forgotten) == ([b"x"], [b"x"])


# -- a sound message that this worker cannot take -------------------------------------------------------------------


class Sound:
    """A message, and what was done to it."""

    def __init__(self) -> None:
        self.headers, self.payload = {"task": "t", "id": "id-1"}, [[], {}, None]
        self.acknowledged = False
        self.acts: list[str] = []

    def reject_log_error(self, logger: Any, errors: Any, requeue: bool) -> None:
        self.acts.append(f"requeue {requeue}")


@pytest.fixture
def taken(garbage, monkeypatch):
    """A handler as the one of Celery, whose pool has ended: it has made a request of the message by then, or not."""
    monkeypatch.setattr(worker_state, "requests", {})
    monkeypatch.setattr(worker_state, "task_ready", lambda request: worker_state.requests.pop(request.id, None))
    garbage.step._consumer.connection_errors, garbage.step._consumer.channel_errors = (OSError,), ()
    garbage.later = []
    garbage.step._consumer.timer.call_after = lambda seconds, call, args=(): garbage.later.append((call, args))
    garbage.buried = []
    monkeypatch.setattr(garbage.step, "_bury", lambda message, reason, exc: garbage.buried.append(reason), raising=False)
    garbage.message = Sound()

    def take(*, reserved: bool) -> None:
        def handler(message: Any) -> None:
            if reserved:
                worker_state.requests["id-1"] = SimpleNamespace(id="id-1", name="t", message=message)
            raise AttributeError("'NoneType' object has no attribute '_processes'")

        garbage.step._wrap(handler)(garbage.message)

    garbage.take = take
    stopping.reset()
    yield garbage
    stopping.reset()


def test_a_sound_message_that_a_pool_that_has_ended_does_not_take_goes_back_and_is_not_buried(taken):
    stopping.set_stopping()
    taken.take(reserved=True)
    assert (taken.message.acts, taken.buried, worker_state.requests) == (["requeue True"], [], {})


def test_a_pool_that_takes_nothing_although_nobody_stops_it_does_not_get_the_message_again_at_once(taken):
    taken.take(reserved=True)
    assert (taken.message.acts, taken.buried) == ([], [])
    [(call, args)] = taken.later
    call(*args)
    assert taken.message.acts == ["requeue True"]


def test_a_message_of_which_celery_can_make_no_request_is_buried(taken):
    stopping.set_stopping()
    taken.take(reserved=False)
    assert taken.buried == ["invalid"]
    worker_state.requests["id-1"] = SimpleNamespace(id="id-1", name="t", message=Sound())  # of another delivery
    taken.take(reserved=False)
    assert taken.buried == ["invalid", "invalid"]
