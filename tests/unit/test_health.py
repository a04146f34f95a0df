"""When a worker counts as dead, and when as ready. No broker, no store, no time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker import state as worker_state

from celery_guardrails import Guardrails
from celery_guardrails.integration import stopping
from celery_guardrails.integration.mainstate import state
from celery_guardrails.worker import health
from celery_guardrails.worker.health import STANDS, STUCK, Health, Pulse, Question, pulse


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(health, "time", made)
    monkeypatch.setattr(pulse, "turned", made.seconds)
    return made


class Patient:
    """A worker that is well."""

    def __init__(self, clock, monkeypatch, pool=PreforkPool, hub="a hub", limit=1) -> None:
        self.clock = clock
        self.answers = True
        monkeypatch.setattr(state, "started", True)
        monkeypatch.setattr(state, "taking", True)
        made = pool.__new__(pool)
        made.limit = limit
        app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
        self.health = Health(SimpleNamespace(pool=made, hub=hub), Guardrails(app, store="memory://"))
        self.store = self.health.store = Question("store", self.answer)
        self.broker = self.health.broker = Question("broker", self.answer)
        self.ask()

    def answer(self):
        if not self.answers:
            raise ConnectionError("redis://:hunter2@host")

    def ask(self, **answers):
        for name, question in (("store", self.store), ("broker", self.broker)):
            self.answers = answers.get(name, True)
            question.round()
        self.answers = True

    def later(self, seconds, *, turning=False, **answers):
        """Let time pass, in which questions go on."""
        end = self.clock.seconds + seconds
        while self.clock.seconds < end:
            self.clock.seconds += 1
            self.ask(**answers)
            if turning:
                pulse.turned = self.clock.seconds
        return self

    def says(self):
        return bool(self.health.dead()), self.health.unready()


@pytest.fixture
def patient(clock, monkeypatch):
    stopping.reset()
    yield Patient(clock, monkeypatch)
    stopping.reset()
    worker_state.active_requests.clear()


def test_a_worker_that_takes_messages_is_ready(patient):
    assert patient.says() == (False, "")
    assert patient.later(500, turning=True).says() == (False, "")


def test_a_loop_that_stands_still_is_not_ready_after_a_while_and_dead_after_a_longer_one(patient):
    assert patient.later(STANDS).says() == (False, "")
    assert patient.later(1).says() == (False, "loop stands still")
    assert patient.later(STUCK - STANDS - 1).says() == (False, "loop stands still")
    assert patient.later(1).says() == (True, "loop stands still")
    assert patient.health.dead() == "the consumer's loop has not turned for 91 s"


@pytest.mark.parametrize("away", ["broker", "store"])
def test_a_loop_that_stands_still_while_broker_or_store_are_away_is_not_dead_for_a_restart_would_not_help(patient, away):
    assert patient.later(1000, **{away: False}).says() == (False, f"{away} away")
    # and has time to notice that they are back
    assert patient.later(STUCK).says() == (False, "loop stands still")
    assert patient.later(2).says() == (True, "loop stands still")


@pytest.mark.parametrize("away", ["broker", "store"])
def test_one_question_without_an_answer_is_enough_not_to_be_ready_and_one_answer_to_be(patient, away):
    assert patient.later(1, turning=True, **{away: False}).says() == (False, f"{away} away")
    assert patient.later(1, turning=True).says() == (False, "")


def test_a_question_that_takes_long_is_no_answer(patient, clock):
    clock.seconds += 21
    pulse.turned = clock.seconds
    assert patient.says() == (False, "broker away")


def test_before_the_first_answer_a_worker_starts(patient, monkeypatch):
    patient.store = patient.health.store = Question("store", patient.answer)
    assert patient.says() == (False, "starting")
    patient.health.store.round()
    assert patient.says() == (False, "")
    monkeypatch.setattr(state, "started", False)
    assert patient.later(1000).says() == (False, "starting"), "how long may it take? that is for a startup probe to say"


def test_a_worker_that_has_lost_its_connection_is_not_ready(patient, monkeypatch):
    monkeypatch.setattr(state, "taking", False)
    assert patient.says() == (False, "broker away")
    # it has not come back although the broker is there
    assert patient.later(STUCK + 1).says() == (True, "broker away")


def test_a_worker_that_stops_is_not_ready_and_not_dead_however_long_it_drains(patient):
    stopping.set_stopping()
    assert patient.later(1000, broker=False).says() == (False, "stopping")


class Request(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.mark.parametrize(("pool", "hub", "limit", "full"), [(SoloPool, "a hub", 1, 1), (PreforkPool, None, 3, 3)])
def test_a_loop_may_stand_still_while_the_pool_is_full_where_it_waits_for_the_pool(patient, clock, monkeypatch, pool, hub, limit, full):
    other = Patient(clock, monkeypatch, pool=pool, hub=hub, limit=limit)
    for _ in range(full):
        request = Request()
        other.__dict__.setdefault("kept", []).append(request)
        worker_state.active_requests.add(request)
    assert other.later(1000).says() == (False, "")
    worker_state.active_requests.discard(request)
    assert other.says() == (True, "loop stands still")


def test_an_outage_is_one_line_in_the_log_and_says_no_password(patient, caplog):
    patient.later(30, store=False)
    assert [record.getMessage() for record in caplog.records] == [
        "guardrails_http: the store does not answer (ConnectionError): the worker is not ready"
    ]


def test_the_pulse_is_taken_in_both_of_celerys_loops(monkeypatch, clock):
    app = Celery("shop", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://", http="127.0.0.1:0")
    done = []
    consumer = SimpleNamespace(app=app, steps=[], perform_pending_operations=lambda: done.append(1))
    Pulse(consumer).include(consumer)
    assert len(consumer.steps) == 1
    clock.seconds += 50
    consumer.perform_pending_operations()
    assert (done, pulse.turned) == ([1], 1050.0)
    timers = []
    hub = SimpleNamespace(call_repeatedly=lambda seconds, call: timers.append((seconds, call)))
    clock.seconds += 50
    consumer.steps[0].register_with_event_loop(consumer, hub)
    assert pulse.turned == 1100.0
    clock.seconds += 50
    ((seconds, call),) = timers
    call()
    assert (seconds, pulse.turned) == (1.0, 1150.0)


def test_nobody_takes_a_pulse_where_nobody_asks(monkeypatch):
    app = Celery("shop", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://")
    consumer = SimpleNamespace(app=app, steps=[], perform_pending_operations=None)
    Pulse(consumer).include(consumer)
    assert consumer.steps == []
