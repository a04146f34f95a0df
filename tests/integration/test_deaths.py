"""How a worker can die, on every pool and both brokers: docs/deaths.md is the table of what this module finds."""

from __future__ import annotations

import os
import signal
from urllib.parse import urlsplit

import pytest
from celery.exceptions import TimeLimitExceeded

from celery_guardrails.errors import PoisonTask
from tests.support import eventually
from tests.support.pools import ANY, IN_MAIN

LEASE = 3.0
#: Seconds. On Redis what a dead worker held comes back after the visibility timeout and the next sweep.
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
POOLS = ("prefork", "threads", "gevent", "solo")
SECONDS = 4.0


@pytest.fixture
def app(deploy, broker):
    options = REDIS if broker.kind == "redis" else {}
    return deploy(guardrails_lease_seconds=LEASE, broker_transport_options=options, guardrails_drain_seconds=20)


def kill(worker):
    worker.kill()


def sigquit(worker):
    worker.signal(signal.SIGQUIT)


def term_then_quit(worker):
    worker.terminate()
    worker.wait_log("Warm shutdown")
    worker.signal(signal.SIGQUIT)


def term_twice(worker):
    worker.terminate()
    worker.wait_log("Warm shutdown")
    worker.terminate()


def dies(app, pool, death, name="a", concurrency=2):
    """Let a worker die in the middle of a task, start the next one, and return the starts of the body."""
    worker = app.worker(pool=pool, concurrency=concurrency)
    result = app.send("effect", name, SECONDS)
    app.ledger.wait("start", name)
    children = worker.children()
    death(worker)
    worker.wait(60)
    eventually(lambda: not any(map(_lives, children)), 30, because="no orphan is left")
    app.worker(pool=pool, concurrency=concurrency)
    assert result.get(timeout=60) == name
    assert app.ledger.count(name) == 1
    assert app.dead() == 0
    assert not app.ledger.overlaps(name)
    eventually(lambda: app.depth() == 0, 30)
    return [(start.fields["attempt"], start.fields["crashes"]) for start in app.ledger.entries(event="start", key=name)]


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


#: Attempt and crashes that each run of the body sees. A worker with others beside it leaves a suspicion, and that charges nothing.
AGAIN, CRASHED = [(1, 0), (1, 0)], [(1, 0), (1, 1)]
DEATHS = [
    # pool       death           runs
    ("prefork", kill, AGAIN),
    ("threads", kill, AGAIN),
    ("gevent", kill, AGAIN),
    ("solo", kill, CRASHED),
    ("prefork", sigquit, AGAIN),
    ("threads", sigquit, AGAIN),  # a thread ends with its process only
    ("gevent", sigquit, AGAIN),
    ("solo", sigquit, AGAIN),
    ("prefork", term_then_quit, AGAIN),
    ("threads", term_then_quit, AGAIN),
    ("gevent", term_then_quit, AGAIN),
    ("solo", term_then_quit, AGAIN),
    ("prefork", term_twice, AGAIN),
    ("threads", term_twice, AGAIN),
    ("gevent", term_twice, AGAIN),
    ("solo", term_twice, AGAIN),
]


@pytest.mark.chaos
@pytest.mark.parametrize(("pool", "death", "runs"), DEATHS, ids=lambda value: getattr(value, "__name__", None))
def test_a_worker_that_ends_in_mid_task_loses_nothing_and_charges_no_attempt(app, pool, death, runs):
    seen = dies(app, pool, death)
    if pool == "gevent" and death is not kill and len(seen) == 1:
        runs = AGAIN[:1]  # Celery's loop for gevent notices a signal seconds later (worker/loops.py, ``synloop``): the task had ended
    assert seen == runs


@pytest.mark.chaos
def test_a_child_stuck_in_c_is_killed_at_its_hard_limit_and_that_is_an_attempt_and_no_crash(app):
    worker = app.worker(concurrency=2)
    result = app.task("hold_gil").apply_async(("a", 60.0), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=60)
    (letter,) = eventually(app.letters, 20)
    found = letter.headers["guardrails"]
    assert (found["reason"], found["attempts"], found["crashes"]) == ("exhausted", 3, 0)
    assert app.ledger.count("a", "start") == 3
    assert worker.alive()


@pytest.mark.chaos
def test_a_hard_time_limit_on_gevent_is_a_failed_attempt_and_its_neighbours_go_on(app):
    worker = app.worker(pool="gevent", concurrency=4)
    neighbour = app.send("effect", "neighbour", 8.0)
    app.ledger.wait("start", "neighbour")
    result = app.task("effect").apply_async(("a", 60.0), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=60)
    (letter,) = eventually(app.letters, 30)
    found = letter.headers["guardrails"]
    assert (found["reason"], found["attempts"], found["crashes"]) == ("exhausted", 3, 0)
    assert app.ledger.count("a", "start") == 3
    assert app.ledger.count("a") == 0
    assert neighbour.get(timeout=60) == "neighbour"
    assert app.ledger.count("neighbour", "start") == 1
    assert [held.key for held in app.guardrails.leases()] == []
    assert worker.alive()


# -- a host that is frozen, and a network that says nothing -----------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.brokers("amqp")
@pytest.mark.parametrize("pool", ANY)
def test_a_worker_that_was_frozen_beyond_its_lease_wakes_up_and_cannot_settle(app, pool):
    frozen = app.worker(pool=pool, concurrency=2, options=["--prefetch-multiplier", "1"])
    first = app.send("token", "a", 1.0)
    app.ledger.wait("start", "a")
    frozen.freeze()
    try:
        app.worker(pool=pool, concurrency=2)
        # until its heartbeats are missed RabbitMQ leaves the frozen one what it holds, and gives it its share of what comes
        others = [app.send("token", "a", 1.0) for _ in range(4)]
        (_, again) = app.ledger.wait("start", "a", times=2, timeout=40)
        app.ledger.wait("effect", "a")
        eventually(lambda: app.guardrails.lookup("effect:a").result)
        record = app.guardrails.lookup("effect:a")
    finally:
        frozen.thaw()
    frozen.wait_log("lost the lease", timeout=30)
    assert app.guardrails.lookup("effect:a") == record
    assert (again.fields["attempt"], again.fields["crashes"]) == (1, 1 if pool == "solo" else 0)
    eventually(lambda: app.depth() == 0, 30)
    assert {result.get(timeout=60) for result in others} == {again.run}
    assert app.app.AsyncResult(first.id).state != "FAILURE"
    assert app.ledger.count("a", "start") == 2


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ANY)
def test_a_connection_that_carries_nothing_and_says_nothing_does_not_make_a_task_run_twice(deploy, broker, proxy, pool):
    between = proxy(urlsplit(broker.url).port)
    redis = REDIS if broker.kind == "redis" else {}
    app = deploy("untouched", broker_transport_options=redis, guardrails_lease_seconds=LEASE, broker_heartbeat=2)
    cut_off = app.worker(pool=pool, env={"TESTAPP_BROKER_URL": between.through(broker.url)})
    result = app.send("token", "a", 24.0)
    (start,) = app.ledger.wait("start", "a")
    between.stall()
    other = app.worker(pool=pool)
    if (pool, broker.kind) != ("solo", "amqp"):  # without an event loop it sends no heartbeats (consumer.py), so RabbitMQ misses none
        other.wait_log(rf"\[{result.id}\] received", 60)
        assert app.ledger.count("a", "end") == 0, "it came again while the first run went on"
    app.ledger.wait("end", "a", timeout=60)
    assert result.get(timeout=60) == start.run
    between.mend()
    names = [f"n{number}" for number in range(8)]
    results = [app.send("effect", name, 0.2) for name in names]
    assert [result.get(timeout=90) for result in results] == names
    eventually(lambda: app.depth() == 0, 60)
    assert app.ledger.counts("start") == app.ledger.counts() == dict.fromkeys(["a", *names], 1)
    assert cut_off.alive()


# -- poison ----------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_poison_in_a_worker_of_one_task_at_a_time_is_dead_after_three_workers(app):
    poison = app.send("kill_self", "a")
    for _ in range(3):
        app.worker(pool="solo", concurrency=1, wait=False).wait(60)
    app.worker(pool="solo", concurrency=1)
    with pytest.raises(PoisonTask):
        poison.get(timeout=60)
    (letter,) = app.letters()
    assert (letter.headers["guardrails"]["reason"], letter.headers["guardrails"]["crashes"]) == ("poison", 3)
    assert app.ledger.count("a", "dies") == 3


# -- bodies that end their process, where the worker would end with it ------------------------------------------------------


@pytest.mark.parametrize("pool", ["threads", *IN_MAIN[1:]])
def test_a_body_that_exits_is_poison_on_every_pool_and_its_worker_lives_on(app, pool):
    worker = app.worker(pool=pool, concurrency=2)
    poison = app.send("exit", "a")
    beside = [app.send("effect", f"beside{number}", 0.3) for number in range(4)]
    with pytest.raises(PoisonTask):
        poison.get(timeout=60)
    assert app.ledger.count("a", "dies") == 3
    assert _charged(app, "a") == [(1, 0), (1, 1), (1, 2)]
    (letter,) = eventually(app.letters, 20, because="a dead letter")
    found = letter.headers["guardrails"]
    assert (found["reason"], found["crashes"], found["attempts"]) == ("poison", 3, 0)
    assert found["error"] == "SystemExit"
    assert [result.get(timeout=40) for result in beside] == [f"beside{number}" for number in range(4)]
    assert app.guardrails.lookup("effect:a") is None
    assert app.send("exit", "b", times=1).get(timeout=40) == "b"
    _holds_nothing(app, worker)


@pytest.mark.chaos
@pytest.mark.parametrize(
    "error", ["SystemExit", "KeyboardInterrupt", "asyncio.CancelledError", "greenlet.GreenletExit", "celery.exceptions.WorkerShutdown"]
)
@pytest.mark.parametrize("pool", POOLS)
def test_what_a_body_raises_that_is_no_exception_is_a_crash_on_every_pool(app, pool, error):
    worker = app.worker(pool=pool, concurrency=2)
    assert app.send("fail", "a", error=error, times=1).get(timeout=60) == "a"
    assert _charged(app, "a") == [(1, 0), (1, 1)]
    assert app.send("effect", "after").get(timeout=40) == "after"
    _holds_nothing(app, worker)


def _charged(app, name):
    """The attempt and the crashes of each run."""
    return [(start.fields["attempt"], start.fields["crashes"]) for start in app.ledger.entries(event="start", key=name)]


def _holds_nothing(app, worker):
    """It is the worker that was started, and its end puts nothing back into the queue."""
    assert worker.alive()
    eventually(lambda: app.depth() == 0)
    assert worker.stop(60) == 0
    assert app.depth() == 0
