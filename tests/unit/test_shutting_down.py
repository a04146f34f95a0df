"""What the main process does when it is told to stop. No pool, no broker, no signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import Ignore, Reject
from celery.worker import state as worker_state
from vine import promise

from celery_guardrails import events
from celery_guardrails.integration import stopping
from celery_guardrails.integration.mainstate import MainState, Tally, state
from celery_guardrails.worker import cutting_off, drain, giving_back
from celery_guardrails.worker.listing import listed
from tests.unit.test_guard import LIMITS
from tests.unit.test_guarded_request import Desk, desk

__all__ = ["desk"]


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(state, "tally", Tally())
    monkeypatch.setattr(state, "live", {})
    monkeypatch.setattr(state, "killing", False)
    monkeypatch.setattr(worker_state, "requests", {})
    stopping.reset()
    yield
    stopping.reset()
    worker_state.active_requests.clear()


def tallied() -> tuple[int, int, int, int]:
    tally = state.tally
    return tally.finished, tally.checkpointed, tally.handed_back, tally.abandoned


def ended(desk: Desk, error: BaseException | None = None) -> Any:
    """Return a request whose run has come back with this."""
    request = desk.request()
    desk.bench.guard.admit(request.delivery, LIMITS)
    request.on_accepted(1, 0.0)
    if error is None:
        request.on_success((0, None, 0.1))  # celery/app/trace.py, fast_trace_task
        return request
    try:
        raise error
    except BaseException:  # noqa: BLE001 - as the pool reports it
        request.on_failure(ExceptionInfo(), return_ok=True)
    return request


# -- counting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (None, (1, 0, 0, 0)),
        (Ignore("held"), (1, 0, 0, 0)),
        (stopping.Checkpointed("its loop goes on"), (0, 1, 0, 0)),
        (Reject("the worker is stopping", requeue=True), (0, 0, 1, 0)),
    ],
    ids=["returned", "ignored", "checkpointed", "not begun"],
)
def test_what_ends_after_sigterm_is_counted_once_by_how_it_ended(desk: Desk, error: BaseException | None, count: Any) -> None:
    stopping.set_stopping()
    request = ended(desk, error)
    request.acknowledge()
    request.reject(requeue=True)
    assert tallied() == count


def test_what_ends_before_sigterm_is_not_counted(desk: Desk) -> None:
    ended(desk)
    assert tallied() == (0, 0, 0, 0)


def test_a_worker_is_ready_while_it_takes_messages_and_has_not_been_told_to_stop() -> None:
    main = MainState(started=True, taking=True)
    assert main.ready
    assert not MainState(started=False, taking=True).ready
    assert not MainState(started=True, taking=False).ready
    stopping.set_stopping()
    assert not main.ready


# -- children -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [WorkerLostError("Worker exited prematurely: signal 15 (SIGTERM) Job: 3."), SystemExit(signal.SIGTERM - 256)],
    ids=["killed", "exits"],
)
def test_a_child_that_sigterm_reached_with_the_whole_group_is_no_crash(desk: Desk, lost: BaseException) -> None:
    stopping.set_stopping()
    ended(desk, lost)
    assert desk.acts == ["reject, requeue True"]
    record = desk.bench.store.lookup("key")
    assert record is None or (record.crashes, record.attempts, record.holder) == (0, 0, "")


@pytest.mark.parametrize(
    ("told", "lost"),
    [(False, "signal 15 (SIGTERM)"), (True, "signal 9 (SIGKILL)"), (True, "signal 11 (SIGSEGV)")],
)
def test_any_other_child_that_is_lost_is_charged_also_at_a_shutdown(desk: Desk, told: bool, lost: str) -> None:
    if told:
        stopping.set_stopping()
    ended(desk, WorkerLostError(f"Worker exited prematurely: {lost} Job: 3."))
    record = desk.bench.store.lookup("key")
    assert record is not None
    assert record.crashes == 1


# -- giving back ----------------------------------------------------------------------------------------------------


class Message:
    def __init__(self, channel: Any = None) -> None:
        self.acts: list[str] = []
        self.channel = channel

    def reject_log_error(self, logger: Any, errors: Any, requeue: bool) -> None:
        self.acts.append(f"requeue {requeue}")


def held(**fields: Any) -> Any:
    """Return a request that this worker holds and that no guard is around."""

    class Held:
        acknowledged = False
        _apply_result = None
        id = "id"
        message = Message()

    request = Held()
    request.message = Message()
    for name, value in fields.items():
        setattr(request, name, value)
    worker_state.requests[str(id(request))] = request
    return request


class Consumer:
    """Of a worker that is about to stop."""

    def __init__(self, pool: Any = None) -> None:
        self.acts: list[str] = []
        self.connection_errors = ()
        self.pool = pool or SimpleNamespace()
        self.controller = SimpleNamespace(semaphore=SimpleNamespace(clear=lambda: self.acts.append("clear")))
        self.timer = SimpleNamespace(cancel=lambda entry: self.acts.append(f"cancel {entry}"))
        self.task_consumer = SimpleNamespace(cancel=lambda: self.acts.append("stop consuming"), channel=None)
        self.connection = SimpleNamespace(connection_errors=(), channel_errors=())


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    monkeypatch.setattr(giving_back, "ignore_errors", lambda connection, act: act())
    return Consumer()


def close(consumer: Consumer) -> None:
    step = giving_back.GivingBack.__new__(giving_back.GivingBack)
    step.close(SimpleNamespace(consumer=consumer))


def test_what_no_process_has_been_given_goes_back_and_its_timer_is_stopped(consumer: Consumer) -> None:
    waiting, delayed = held(), held(_eta_timer_entry="entry")
    close(consumer)
    assert waiting.message.acts == delayed.message.acts == ["requeue True"]
    assert waiting.acknowledged
    assert consumer.acts == ["stop consuming", "clear", "cancel entry"], "first nothing is taken any more, or it would come again"
    assert tallied() == (0, 0, 2, 0)


def test_what_came_over_a_connection_that_was_lost_is_left_to_the_broker(consumer: Consumer) -> None:
    stale, waiting = held(), held()
    stale.message.channel = object()
    close(consumer)
    assert stale.message.acts == [], "another worker may have it"
    assert waiting.message.acts == ["requeue True"]
    assert tallied() == (0, 0, 1, 0)


def test_no_task_that_waits_gets_its_place_in_the_pool_when_another_is_heard_to_have_ended(consumer: Consumer) -> None:
    consumer.pool = SimpleNamespace(_pool=SimpleNamespace(hear=lambda: consumer.acts.append("hear")))
    close(consumer)
    assert consumer.acts == ["stop consuming", "clear", "hear"]


def test_requests_are_listed_while_another_thread_changes_them() -> None:
    class Changing:
        tries = 0

        def __iter__(self) -> Iterator[int]:
            self.tries += 1
            yield 1
            if self.tries == 1:
                raise RuntimeError("Set changed size during iteration")

    assert listed(Changing()) == [1]


def test_what_runs_what_a_process_has_been_given_and_what_is_acknowledged_stays(consumer: Consumer) -> None:
    running, given, done = held(), held(_apply_result=object()), held(acknowledged=True)
    worker_state.active_requests.add(running)
    close(consumer)
    assert running.message.acts == given.message.acts == done.message.acts == []
    assert tallied() == (0, 0, 0, 0)


def test_in_a_thread_pool_guarded_tasks_in_its_own_queue_go_back_and_plain_ones_are_left_to_it(
    consumer: Consumer, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = []
    consumer.pool = SimpleNamespace(executor=SimpleNamespace(shutdown=lambda **options: cancelled.append(options)))
    plain, guarded = held(_apply_result=object()), desk.request()
    monkeypatch.setattr(guarded, "_apply_result", object())
    monkeypatch.setattr(guarded, "_message", Message())
    worker_state.requests["guarded"] = guarded
    close(consumer)
    assert plain.message.acts == []
    assert guarded.message.acts == ["requeue True"]
    assert cancelled == [{"wait": False, "cancel_futures": True}]


# -- the drain time -------------------------------------------------------------------------------------------------


def drained(desk: Desk, monkeypatch: pytest.MonkeyPatch, pool: type, seconds: float = 3600.0, **conf: Any) -> Any:
    """Return a Drain whose end of time is only written down."""
    desk.app.conf.update(conf)
    desk.app.guardrails.settings = SimpleNamespace(drain_seconds=seconds)
    step = drain.Drain.__new__(drain.Drain)
    step._worker = SimpleNamespace(pool=object.__new__(pool), app=desk.app, hostname="here", exitcode=None)
    step._rails = desk.app.guardrails
    step._words = drain.queue.SimpleQueue()
    step._told, step._told_at, step._over = False, 0.0, False
    step._cut_off = SimpleNamespace(begun=False)
    step.ups = []
    monkeypatch.setattr(step, "_time_is_up", lambda: step.ups.append("up"), raising=False)
    return step


def test_the_drain_is_over_when_its_time_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    step = drained(desk, monkeypatch, PreforkPool, seconds=0.01)
    step.on_shutting_down(how="Warm")
    step._wait()
    assert step.ups == ["up"]
    assert stopping.is_stopping()


@pytest.mark.parametrize("second", ["Warm", "Cold"])
def test_a_second_signal_ends_the_drain_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch, second: str) -> None:
    step = drained(desk, monkeypatch, PreforkPool)
    step.on_shutting_down(how="Warm")
    step.on_shutting_down(how=second)
    step._wait()
    assert step.ups == ["up"]


def test_nothing_is_killed_when_all_has_ended_in_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    step = drained(desk, monkeypatch, PreforkPool)
    heard: list[Any] = []
    desk.app.guardrails.listen(heard.append)
    step.on_shutting_down(how="Warm")
    step.close(step._worker)
    step.on_shutdown()
    step._wait()
    assert step.ups == []
    assert [type(event) for event in heard] == [events.Drained], "and it is said once"


@pytest.mark.parametrize(
    ("pool", "how", "seconds"),
    [(PreforkPool, "warm", 25.0), (ThreadPool, "warm", 25.0), (PreforkPool, "cold", drain._COLD_GRACE), (ThreadPool, "cold", 7.0)],
)
def test_how_long_is_waited(desk: Desk, monkeypatch: pytest.MonkeyPatch, pool: type, how: str, seconds: float) -> None:
    step = drained(desk, monkeypatch, pool, seconds=25.0, worker_soft_shutdown_timeout=7.0)
    assert step._seconds(how) == seconds


def test_tasks_are_told_at_the_beginning_of_a_soft_shutdown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    step = drained(desk, monkeypatch, PreforkPool)
    heard: list[bool] = []
    step._worker.wait_for_soft_shutdown = lambda: heard.append(stopping.is_stopping())
    step._hear_of_soft_shutdown()
    step._worker.wait_for_soft_shutdown()
    assert heard == [True]


# -- cutting off ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ending(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The end of a process, written down instead of done."""
    acts: list[str] = []
    monkeypatch.setattr(cutting_off.os, "_exit", lambda code: acts.append(f"exit {code}"))
    monkeypatch.setattr(cutting_off.CutOff, "_farewell", lambda self: acts.append("farewell"))
    monkeypatch.setattr(cutting_off, "_return_messages", lambda: acts.append("messages go back"))
    monkeypatch.setattr(cutting_off, "_acknowledge_the_finished", lambda: None)
    monkeypatch.setattr(state, "taking", False)
    worker = SimpleNamespace(pool=object.__new__(ThreadPool), exitcode=None)
    return SimpleNamespace(acts=acts, cut_off=cutting_off.CutOff(worker, desk.app.guardrails))


def test_leases_are_held_until_all_else_is_done_and_given_back_before_the_messages(desk: Desk, ending: Any) -> None:
    stopping.set_stopping()
    request = desk.request()
    desk.bench.guard.admit(request.delivery, LIMITS)
    request.on_accepted(1, 0.0)
    surrender = request.surrender
    request.surrender = lambda: (ending.acts.append("lease"), surrender())
    ending.cut_off(lambda: ending.acts.append("last line"))
    assert ending.acts == ["farewell", "last line", "lease", "messages go back", "exit 0"]
    assert tallied() == (0, 0, 0, 1)
    record = desk.bench.store.lookup("key")
    assert record is None or (record.holder, record.attempts, record.crashes) == ("", 0, 0)


def test_the_interpreter_returns_no_message_while_its_lease_is_held(desk: Desk, ending: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # kombu's Redis transport puts back what is unacknowledged among the functions of ``atexit`` (virtual/base.py, ``QoS``)
    qos = SimpleNamespace(restore_by_tag=None, restore_at_shutdown=True)
    task_consumer = SimpleNamespace(channel=SimpleNamespace(qos=qos))
    monkeypatch.setattr(state, "consumer", SimpleNamespace(task_consumer=task_consumer))
    returned: list[bool] = []
    monkeypatch.setattr(cutting_off.CutOff, "_farewell", lambda self: returned.append(qos.restore_at_shutdown))
    desk.request().on_accepted(1, 0.0)
    ending.cut_off(lambda: None)
    assert returned == [False]


def test_nothing_is_given_back_while_this_worker_would_still_take_it(desk: Desk, ending: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "taking", True)
    desk.request().on_accepted(1, 0.0)
    thread = threading.Thread(target=ending.cut_off, args=(lambda: None,))
    thread.start()
    thread.join(0.5)
    assert ending.acts == []
    state.taking = False
    thread.join(30)
    assert ending.acts == ["farewell", "messages go back", "exit 0"]


def test_a_worker_that_never_stops_taking_is_not_waited_for_without_end(desk: Desk, ending: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "taking", True)
    monkeypatch.setattr(cutting_off, "_NOTICE", 0.1)
    desk.request().on_accepted(1, 0.0)
    ending.cut_off(lambda: None)
    assert ending.acts[-1] == "exit 0"


def test_the_acknowledgement_that_an_event_loop_has_not_got_round_to_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    acts: list[str] = []

    def ack_log_error() -> None:
        acts.append("ack")

    def flush() -> None:
        acts.append("something else")

    hub = SimpleNamespace(_pop_ready=lambda: [promise(ack_log_error), promise(flush)])
    monkeypatch.setattr(state, "consumer", SimpleNamespace(hub=hub))
    cutting_off._acknowledge_the_finished()
    assert acts == ["ack"]


def test_a_lease_that_cannot_be_given_back_keeps_no_other_and_no_message(desk: Desk, ending: Any) -> None:
    request = desk.request()
    request.on_accepted(1, 0.0)
    request.surrender = lambda: 1 / 0
    ending.cut_off(lambda: None)
    assert ending.acts[-2:] == ["messages go back", "exit 0"]


def test_the_process_does_not_end_while_a_task_runs_whose_message_would_not_come_back(desk: Desk, ending: Any) -> None:
    request, plain = desk.request(), held(acknowledged=True)
    request.on_accepted(1, 0.0)
    worker_state.active_requests.add(plain)
    thread = threading.Thread(target=ending.cut_off, args=(lambda: None,))
    thread.start()
    thread.join(0.5)
    assert ending.acts == []
    worker_state.active_requests.discard(plain)
    thread.join(30)
    assert ending.acts[-1] == "exit 0"


def test_nothing_is_cut_off_where_all_has_ended_meanwhile(ending: Any) -> None:
    ending.cut_off(lambda: ending.acts.append("last line"))
    assert ending.acts == []
    assert not ending.cut_off.begun
