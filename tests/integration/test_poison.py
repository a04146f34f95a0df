"""A message that kills its worker: counted, dead-lettered, and nobody else pays for it."""

from __future__ import annotations

import signal
import time

import pytest

from celery_guardrails.errors import PoisonTask, RetryableError
from tests.support import eventually


@pytest.fixture(scope="module")
def app(shared_deploy):
    app = shared_deploy()
    app.main_process = app.worker(concurrency=2)
    return app


def test_a_task_that_kills_its_child_every_time_is_dead_after_three_crashes_and_its_neighbours_pay_nothing(app, name):
    before = [app.send("effect", f"{name}.before{number}", 0.1) for number in range(8)]
    sent = time.monotonic()
    poison = app.send("kill_self", name)
    after = [app.send("effect", f"{name}.after{number}", 0.1) for number in range(24)]
    with pytest.raises(PoisonTask):
        poison.get(timeout=30)
    assert time.monotonic() - sent < 30
    found = app.certificate(poison.id)
    assert (found["reason"], found["crashes"], found["attempts"]) == ("poison", 3, 0)
    assert "PoisonTask" in found["error"] or "WorkerLostError" in found["error"]
    assert app.ledger.count(name, "dies") == 3
    assert [entry.fields["crashes"] for entry in app.ledger.entries(event="start", key=name)] == [0, 1, 2]
    assert not app.ledger.overlaps(name)
    # the innocent, of which a crash found some in the worker's memory
    assert [result.get(timeout=20) for result in before + after]
    runs = [entry for entry in app.ledger.entries(event="start") if entry.key.startswith(f"{name}.")]
    assert len(runs) == 32
    assert {(run.fields["attempt"], run.fields["crashes"]) for run in runs} == {(1, 0)}
    assert not [key for key in app.ledger.repeated() if key.startswith(name)]


def test_a_replayed_poison_message_has_its_three_crashes_again(app, name):
    assert app.guardrails.lookup(f"effect:{name}") is None
    poison = app.send("kill_self", name)
    with pytest.raises(PoisonTask):
        poison.get(timeout=30)
    eventually(lambda: app.guardrails.lookup(f"effect:{name}") is None, 10, because="the record is forgotten")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTERM, signal.SIGKILL, 0], ids=["SIGSEGV", "SIGTERM", "SIGKILL", "os._exit"])
def test_two_crashes_are_survived_without_an_attempt_charged(app, name, number):
    result = app.send("kill_self", name, times=2, number=number)
    assert result.get(timeout=30) == name
    starts = app.ledger.entries(event="start", key=name)
    assert [(start.fields["attempt"], start.fields["crashes"]) for start in starts] == [(1, 0), (1, 1), (1, 2)]
    assert app.ledger.count(name) == 1


def test_a_task_that_ends_its_process_is_poison_too(app, name):
    result = app.send("exit", name)
    with pytest.raises(PoisonTask):
        result.get(timeout=30)
    assert app.certificate(result.id)["reason"] == "poison"
    assert app.ledger.count(name, "dies") == 3


def test_a_memory_error_is_a_failed_attempt_and_the_main_process_lives_on(app, name):
    result = app.send("memory_error", name)
    with pytest.raises(RetryableError, match="MemoryError"):
        result.get(timeout=30)
    found = app.certificate(result.id)
    assert (found["reason"], found["attempts"], found["crashes"]) == ("exhausted", 3, 0)
    assert "MemoryError" in found["error"]
    assert app.send("memory_error", f"{name}.once", times=1).get(timeout=20) == f"{name}.once"
    assert app.main_process.alive()


def test_after_all_this_it_is_still_the_same_worker(app, name):
    assert app.send("effect", name).get(timeout=20) == name
    assert app.main_process.alive()
    assert len(app.workers.all) == 1
