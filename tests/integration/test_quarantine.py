"""Poison that takes the whole worker with it: dead at its third, and none of the many that ran beside it is charged."""

from __future__ import annotations

import pytest
from celery.exceptions import TimeoutError as ResultTimeout

from celery_guardrails.errors import PoisonTask
from tests.support import eventually

LEASE = 2.0
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def poison_is_found(deploy, broker, pool, task):
    """Let ``task`` end its worker beside three others, start another each time as a supervisor does, and see who is charged."""
    options = REDIS if broker.kind == "redis" else {}
    app = deploy(guardrails_lease_seconds=LEASE, broker_transport_options=options)

    def supervised():
        if not any(worker.alive() for worker in app.workers.all):
            app.worker(pool=pool, concurrency=4)

    def is_dead():
        supervised()
        try:
            poison.get(timeout=0.2)
        except PoisonTask:
            return True
        except ResultTimeout:
            return False

    supervised()
    innocent = [f"innocent{number}" for number in range(3)]
    results = [app.send("effect", name, 3.0) for name in innocent]
    app.ledger.wait("start", times=3)
    poison = app.send(task, "poison", times=None)
    eventually(is_dead, 120, because="the poison is dead")
    (letter,) = app.letters()
    found = letter.headers["guardrails"]
    assert (found["reason"], found["crashes"], found["attempts"]) == ("poison", 3, 0)
    assert app.ledger.count("poison", "dies") == 3
    assert len(app.workers.all) == 4
    assert [result.get(timeout=60) for result in results] == innocent
    starts = [entry for entry in app.ledger.entries(event="start") if entry.key != "poison"]
    assert len(starts) > 3, "they did run beside it"
    assert {(start.fields["attempt"], start.fields["crashes"]) for start in starts} == {(1, 0)}
    assert not [pair for name in innocent for pair in app.ledger.overlaps(name)]


@pytest.mark.brokers("redis")
def test_a_task_that_kills_the_main_process_is_dead_after_three_and_who_ran_beside_it_pays_nothing(deploy, broker):
    poison_is_found(deploy, broker, "prefork", "kill_main")


@pytest.mark.chaos
@pytest.mark.brokers("amqp")
def test_a_thread_that_takes_all_others_with_it_is_dead_after_three_and_they_pay_nothing(deploy, broker):
    poison_is_found(deploy, broker, "threads", "kill_self")
