"""The store, or the broker, away under load: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import time

import pytest
from celery.exceptions import OperationalError

from celery_guardrails.policy.lease import RecordState
from tests.support import BrokerUnderTest, consistently, eventually
from tests.support.pools import ANY

#: The outage itself, not a wait for something.
SECONDS = 5.0


def names(prefix, number):
    return [f"{prefix}{index}" for index in range(number)]


def outage(begin, end, meanwhile):
    """Let it be away for a while, and do something in the middle of it."""
    begin()
    start = time.monotonic()
    meanwhile()
    time.sleep(max(0.0, SECONDS - (time.monotonic() - start)))
    end()


@pytest.mark.parametrize("how", ["frozen", "killed"])
@pytest.mark.parametrize("pool", ANY)
def test_a_store_that_is_away_under_load_loses_and_repeats_no_effect(deploy, private_redis, how, pool):
    store = private_redis(persistent=True)
    app = deploy(store_url=store.url(1), guardrails_store_failure="defer", worker_prefetch_multiplier=1)
    worker = app.worker(pool=pool, concurrency=2)
    before, during = names("before", 30), names("during", 10)
    results = [app.send("effect", name, 0.1) for name in before]
    app.ledger.wait("effect", times=4)
    begin, end = (store.freeze, store.thaw) if how == "frozen" else (store.kill, store.start)
    # publishing needs no store
    outage(begin, end, lambda: results.extend(app.send("effect", name, 0.1) for name in during))
    done_meanwhile = app.ledger.count()
    assert done_meanwhile < 40, "the outage came under load"
    assert [result.get(timeout=90) for result in results] == before + during
    assert app.ledger.counts() == dict.fromkeys(before + during, 1)
    assert app.ledger.count(event="start") == 40, "not even begun twice"
    assert {run.fields["attempt"] for run in app.ledger.entries(event="start")} == {1}, "nobody is charged"
    assert app.dead() == 0
    assert worker.alive()
    for name in before + during:
        assert app.guardrails.lookup(f"effect:{name}").state is RecordState.COMPLETED


@pytest.mark.parametrize("pool", ANY)
def test_a_task_that_ends_while_the_store_is_away_waits_for_it_to_record_its_completion(deploy, private_redis, pool):
    store = private_redis(persistent=True)
    app = deploy(store_url=store.url(1))
    app.worker(pool=pool, concurrency=1)
    result = app.send("effect", "a", 3.0)
    app.ledger.wait("start", "a")
    store.kill()
    app.ledger.wait("end", "a")
    consistently(lambda: result.state != "SUCCESS", 1.5, because="not done before it is on record")
    store.start()
    assert result.get(timeout=30) == "a"
    assert app.guardrails.lookup("effect:a").state is RecordState.COMPLETED
    assert app.send("effect", "a", 3.0).get(timeout=20) == "a"
    assert app.ledger.count("a", "start") == 1


def test_no_guarded_task_runs_while_the_store_is_away(deploy, private_redis):
    store = private_redis(persistent=True)
    app = deploy(store_url=store.url(1))
    worker = app.worker(concurrency=2)
    assert app.send("effect", "warm").get(timeout=20)
    store.kill()
    result = app.send("effect", "a")
    worker.wait_log(r"store away", times=2, timeout=30)
    assert app.ledger.count("a", "start") == 0
    store.start()
    assert result.get(timeout=60) == "a"
    (start,) = app.ledger.entries(event="start", key="a")
    assert (start.fields["attempt"], start.fields["crashes"]) == (1, 0)
    assert start.fields["deliveries"] > 2


@pytest.mark.long_on("amqp")
def test_with_store_failure_open_tasks_run_unguarded_while_the_store_is_away(deploy, private_redis):
    store = private_redis()
    app = deploy(store_url=store.url(1), guardrails_store_failure="open")
    worker = app.worker(concurrency=2)
    assert app.send("effect", "warm").get(timeout=20)
    store.kill()
    results = [app.send("effect", name) for name in names("n", 6)]
    assert [result.get(timeout=30) for result in results] == names("n", 6)
    assert app.ledger.counts() == dict.fromkeys(["warm", *names("n", 6)], 1)
    # unguarded: what has been done is done again
    assert app.send("effect", "n0").get(timeout=30) == "n0"
    assert app.ledger.count("n0") == 2
    # and a failure is still tried again and dead-lettered
    with pytest.raises(ConnectionError):
        app.send("fail", "f").get(timeout=60)
    assert [run.fields["attempt"] for run in app.ledger.entries(event="start", key="f")] == [1, 2, 3]
    eventually(lambda: app.dead() == 1, 10)
    assert worker.alive()


@pytest.mark.parametrize("pool", ANY)
def test_a_broker_that_is_restarted_under_load_loses_and_repeats_no_effect(request, broker, deploy, pool):
    if broker.kind == "redis":
        server = request.getfixturevalue("private_redis")(persistent=True)
        on = BrokerUnderTest("redis", server.url(1), server)
        redis = {"visibility_timeout": 40, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    else:
        server = request.getfixturevalue("private_rabbitmq")()
        on = BrokerUnderTest("amqp", server.url(), server)
        redis = {}
    app = deploy(on=on, broker_transport_options=redis)
    worker = app.worker(pool=pool, concurrency=2)
    wanted = names("n", 40)
    for name in wanted:
        app.send("effect", name, 0.2)
    app.ledger.wait("effect", times=4)
    server.kill()
    with pytest.raises((OperationalError, OSError)):
        app.task("effect").apply_async(("refused",), retry=False)
    time.sleep(1)
    server.start()
    if broker.kind == "redis":
        # What the worker held does not wait for the visibility timeout. One message may: the one that Redis was handing out
        # when it died. It is among the unacknowledged, and no worker ever heard of it.
        eventually(lambda: len(app.ledger.counts()) >= 39, 30, because=lambda: f"what was held: {app.ledger.counts()}")
    eventually(lambda: len(app.ledger.counts()) >= 40, 90, because=lambda: f"all effects: {app.ledger.counts()}")
    assert app.ledger.repeated() == {}
    assert set(app.ledger.counts()) == set(wanted), "what was refused did not happen"
    assert not app.ledger.overlaps()
    # the worker goes on, and in the end nothing is left
    eventually(lambda: app.send("effect", "after").get(timeout=20) == "after", 30, ignoring=(OperationalError,))
    assert {run.fields["attempt"] for run in app.ledger.entries(event="start")} == {1}
    assert app.dead() == 0
    assert worker.alive()


@pytest.mark.chaos
def test_a_store_that_has_lost_its_memory_lets_what_runs_end_once_and_does_again_what_comes_again(deploy, private_redis):
    store = private_redis()
    app = deploy(store_url=store.url(1), guardrails_lease_seconds=3)
    worker = app.worker(concurrency=2)
    assert app.send("effect", "done").get(timeout=30) == "done"
    running = app.send("effect", "running", 8.0)
    app.ledger.wait("start", "running")
    store.restart()
    assert app.guardrails.lookup("effect:done") is None, "it did forget"
    assert running.get(timeout=60) == "running"
    assert app.ledger.counts("start") == app.ledger.counts() == {"done": 1, "running": 1}
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0
    assert app.send("effect", "done").get(timeout=30) == "done"
    assert app.ledger.count("done") == 2, "what had completed is done again when it is published again"
    assert worker.alive()
