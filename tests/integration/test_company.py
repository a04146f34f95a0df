"""Who runs beside a suspect: plain Celery tasks, long neighbours, and those that come when a pool of one grows."""

from __future__ import annotations

import pytest

from celery_guardrails.errors import PoisonTask
from tests.support import eventually

LEASE = 2.0
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
WAITS = r"testapp\.unguarded\S* waits until the task has ended that runs alone here"


@pytest.fixture
def company(deploy, broker):
    """Deploy the app, with the settings of a fleet that notices quickly who is gone."""

    def start(**settings):
        options = REDIS if broker.kind == "redis" else {}
        return deploy(guardrails_lease_seconds=LEASE, broker_transport_options=options, **settings)

    return start


def suspected(app, **options):
    """Let a worker of several tasks at a time die while it runs one that takes 4 s, and return its result."""
    worker = app.worker(concurrency=3, **options)
    suspect = app.send("effect_in_steps", "suspect", 4.0)
    app.ledger.wait("start", "suspect")
    worker.kill()
    worker.wait(30)
    return suspect


def beside_a_queue(app):
    """Start a worker that consumes from another queue only, and return both."""
    other = f"{app.queue}-other"
    app.broker.used.append(other)
    return app.worker(concurrency=3, queues=[other]), other


def consume(app, worker):
    """Have the worker consume from the app's queue, too."""
    node = worker.hostname
    (answer,) = app.app.control.add_consumer(app.queue, destination=[node], reply=True, timeout=30)
    assert "ok" in answer[node]


@pytest.mark.parametrize("pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.chaos) for pool in ("threads", "gevent"))])
def test_a_plain_task_that_would_kill_the_worker_of_a_suspect_waits_until_that_has_ended(company, pool):
    app = company(guardrails_max_crashes=2)
    suspect = suspected(app, pool=pool)
    worker = app.worker(pool=pool, concurrency=3)
    app.ledger.wait("start", "suspect", times=2)
    plain = [app.send("unguarded", f"plain{number}") for number in range(3)]
    killer = app.send("unguarded_kill", "killer", "parent" if pool == "prefork" else "self")
    assert suspect.get(timeout=30) == "suspect"
    app.ledger.wait("dies", "killer")
    worker.wait(30)
    assert worker.wait_log(r"effect_in_steps\S* in quarantine \(alone: True\)")
    assert worker.wait_log(WAITS)
    app.worker(pool=pool, concurrency=3)
    assert [result.get(timeout=60) for result in (*plain, killer)] == ["plain0", "plain1", "plain2", "killer"]
    begun = [(start.fields["attempt"], start.fields["crashes"]) for start in app.ledger.entries(event="start", key="suspect")]
    assert begun == [(1, 0), (1, 0)]
    assert app.ledger.count("suspect") == 1
    assert app.dead() == 0
    (ended,) = app.ledger.entries(event="effect", key="suspect")
    others = [start for start in app.ledger.entries(event="start") if start.key != "suspect"]
    assert all(start.time >= ended.time for start in others), "no plain task has begun beside it"


@pytest.mark.long_on("redis")
def test_plain_tasks_that_wait_for_a_suspect_at_sigterm_go_back_at_once_and_are_not_lost(company):
    app = company(guardrails_max_crashes=2)
    suspect = suspected(app)
    worker = app.worker(concurrency=3)
    app.ledger.wait("start", "suspect", times=2)
    plain = [app.send("unguarded", f"plain{number}") for number in range(2)]
    worker.wait_log(WAITS, times=2)
    worker.terminate()
    eventually(lambda: app.depth() == 2, 20, because="they are back")
    assert app.ledger.count("suspect") == 0, "it has its drain time meanwhile"
    assert worker.wait(60) == 0
    assert app.ledger.count("suspect") == 1
    app.worker(concurrency=3)
    assert [result.get(timeout=30) for result in (suspect, *plain)] == ["suspect", "plain0", "plain1"]
    assert [app.ledger.count(name, "start") for name in ("plain0", "plain1")] == [1, 1]


@pytest.mark.long_on("amqp")
def test_a_plain_task_that_runs_already_and_kills_the_worker_is_not_mistaken_for_the_suspect(company):
    app = company(guardrails_max_crashes=2)
    suspect = suspected(app)
    worker, other = beside_a_queue(app)
    killer = app.task("unguarded_kill").apply_async(("killer",), {"seconds": 6.0}, queue=other)
    app.ledger.wait("start", "killer")
    consume(app, worker)
    worker.wait_log(r"effect_in_steps\S* handed back for .* crowded")
    worker.wait(30)
    assert app.ledger.count("killer", "dies") == 1
    assert app.ledger.count("suspect", "start") == 1
    app.worker(concurrency=3, queues=[other, app.queue])
    assert (suspect.get(timeout=60), killer.get(timeout=60)) == ("suspect", "killer")
    begun = [(start.fields["attempt"], start.fields["crashes"]) for start in app.ledger.entries(event="start", key="suspect")]
    assert begun == [(1, 0), (1, 0)]
    assert app.dead() == 0


@pytest.mark.long_on("redis")
def test_poison_beside_a_neighbour_that_outlasts_its_wait_is_tried_again_and_dead_at_its_third_worker(company):
    app = company()
    poison = app.send("kill_main", "poison", times=None)

    for times in (1, 2):
        worker = app.worker(concurrency=3)
        app.ledger.wait("dies", "poison", times=times, timeout=60)
        worker.wait(30)
    worker, other = beside_a_queue(app)
    neighbour = app.task("effect").apply_async(("neighbour", 12.0), queue=other)
    app.ledger.wait("start", "neighbour")
    consume(app, worker)
    worker.wait_log(r"kill_main\S* handed back for .* crowded", 60)
    worker.wait(90)
    app.worker(concurrency=3, queues=[app.queue, other])
    with pytest.raises(PoisonTask):
        poison.get(timeout=60)
    (letter,) = app.letters()
    found = letter.headers["guardrails"]
    assert (found["reason"], found["crashes"], found["attempts"]) == ("poison", 3, 0)
    assert app.ledger.count("poison", "dies") == 3
    assert neighbour.get(timeout=60) == "neighbour"
    starts = app.ledger.entries(event="start", key="neighbour")
    assert [(start.fields["attempt"], start.fields["crashes"]) for start in starts] == [(1, 0)]


@pytest.mark.long_on("amqp")
def test_what_runs_in_a_pool_of_one_while_it_grows_does_not_pay_for_a_new_neighbour(company):
    app = company()
    worker = app.worker(concurrency=1)
    first = app.send("effect", "first", 5.0)
    app.ledger.wait("start", "first")
    node = worker.hostname
    assert app.app.control.pool_grow(1, destination=[node], reply=True, timeout=30) == [{node: {"ok": "pool will grow"}}]
    second = app.send("kill_main", "second")
    app.ledger.wait("dies", "second")
    worker.wait(30)
    app.worker(concurrency=2)
    assert (first.get(timeout=60), second.get(timeout=60)) == ("first", "second")
    starts = app.ledger.entries(event="start")
    assert {(start.fields["attempt"], start.fields["crashes"]) for start in starts} == {(1, 0)}
    assert sorted(start.key for start in starts) == ["first", "first", "second", "second"]
