"""A message that comes again while its first execution still runs: one execution at a time, one effect."""

from __future__ import annotations

import os
import re
import signal
from urllib.parse import urlsplit

import pytest

from tests.support import consistently, eventually
from tests.support.pools import ANY

#: Seconds; the tasks run nearly three times as long.
VISIBILITY = 2
LONG = 2.8 * VISIBILITY
#: kombu sweeps every second, not every hundred.
REDIS = {"visibility_timeout": VISIBILITY, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def receipts(workers, result):
    """How often a worker has received the message of a task."""
    return sum(len(re.findall(rf"\[{result.id}\] received", worker.log())) for worker in workers)


def worker_of(workers, pid):
    return next(worker for worker in workers if pid in (worker.pid, *worker.children()))


def accepted_by_fence(app, name):
    """The effects that a downstream takes which refuses a fencing token below the highest it has seen."""
    highest, taken = 0, []
    for effect in app.ledger.entries(event="effect", key=name):
        if effect.fields["fence"] >= highest:
            highest = effect.fields["fence"]
            taken.append(effect)
    return taken


# -- Redis' visibility timeout --------------------------------------------------------------------------------------


@pytest.mark.brokers("redis")
def test_a_task_longer_than_the_visibility_timeout_is_not_even_delivered_again(deploy, queue):
    app = deploy(broker_transport_options=REDIS)
    workers = app.start_workers(2)
    long = app.send("token", "a", LONG)
    value = long.get(timeout=40)
    assert receipts(workers, long) == 1
    (start,) = app.ledger.entries(event="start", key="a")
    assert (value, start.fields["deliveries"]) == (start.run, 1)


@pytest.mark.brokers("redis")
def test_a_message_that_redis_delivers_again_and_again_has_one_execution_and_one_effect(deploy):
    app = deploy("untouched", broker_transport_options=REDIS, guardrails_lease_seconds=VISIBILITY)
    workers = app.start_workers(2)
    long = app.send("token", "a", LONG)
    by_id = app.send("by_id", "b", LONG)  # the task's id is its key
    value = long.get(timeout=40)
    assert by_id.get(timeout=40) == "b"
    assert receipts(workers, long) > 1, "the broker did deliver it again"
    assert receipts(workers, by_id) > 1
    assert [effect.run for effect in app.ledger.entries(event="effect", key="a")] == [value]
    assert app.ledger.counts("start") == {"a": 1, "b": 1}
    # the copies come to an end, too, and change nothing
    eventually(lambda: all(size == (0, 0) for size in app.broker.sizes().values()), 20, because=lambda: str(app.broker.sizes()))
    eventually(lambda: app.guardrails.broker.delayed() == 0)
    assert app.ledger.counts("start") == {"a": 1, "b": 1}
    assert app.app.AsyncResult(long.id).get(timeout=5) == value


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("pool", ANY)
def test_a_worker_paused_beyond_the_visibility_timeout_but_not_its_lease_keeps_its_task(deploy, pool):
    app = deploy(broker_transport_options=REDIS, guardrails_lease_seconds=20)
    workers = app.start_workers(2, pool=pool, concurrency=1)
    result = app.send("token", "a", 4.0)
    (start,) = app.ledger.wait("start", "a")
    frozen = worker_of(workers, start.pid)
    (other,) = [worker for worker in workers if worker is not frozen]
    frozen.freeze()
    other.wait_log(rf"\[{result.id}\] received", timeout=30)  # the broker has given it up
    consistently(lambda: app.ledger.count("a", "start") == 1, 1.0)
    frozen.thaw()
    assert result.get(timeout=40) == start.run
    assert app.ledger.counts("start") == app.ledger.counts() == {"a": 1}


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("pool", ANY)
def test_a_worker_paused_beyond_its_lease_finds_its_task_taken_over_and_cannot_undo_that(deploy, pool):
    app = deploy(broker_transport_options=REDIS, guardrails_lease_seconds=VISIBILITY)
    workers = app.start_workers(2, pool=pool, concurrency=1)
    result = app.send("token", "a", 3.0)
    (first,) = app.ledger.wait("start", "a")
    frozen = worker_of(workers, first.pid)
    frozen.freeze()
    (_, second) = app.ledger.wait("start", "a", times=2, timeout=40)
    assert result.get(timeout=20) == second.run
    record = app.guardrails.lookup("effect:a")
    frozen.thaw()
    app.ledger.wait("end", "a", times=2)
    frozen.wait_log("lost the lease", timeout=20)
    assert app.guardrails.lookup("effect:a") == record, "the late one does not write over the record"
    assert app.app.AsyncResult(result.id).get(timeout=5) == second.run
    assert app.send("token", "a", 3.0).get(timeout=20) == second.run
    # nothing can hold back the body of a process that wakes up; its fencing token tells the downstream
    assert first.fields["fence"] < second.fields["fence"]
    assert [effect.run for effect in accepted_by_fence(app, "a")] == [second.run]
    assert app.ledger.count("a", "start") == 2


# -- the connection to the broker -----------------------------------------------------------------------------------


@pytest.fixture
def between(broker, proxy):
    """The broker behind a proxy that can be cut; the store and the publisher's own way are not touched."""
    return proxy(urlsplit(broker.url).port)


@pytest.fixture
def cut_off(deploy, broker, between, pool):
    """An app whose workers reach the broker through the proxy only."""
    options = REDIS if broker.kind == "redis" else {}
    app = deploy("untouched", broker_transport_options=options, guardrails_lease_seconds=4)
    app.start_workers(2, pool=pool, env={"TESTAPP_BROKER_URL": between.through(broker.url)})
    return app


@pytest.mark.parametrize("pool", ANY)
def test_a_connection_cut_in_mid_task_does_not_make_it_run_twice(cut_off, between, workers, pool):
    app = cut_off
    results = {name: app.send("token", name, LONG) for name in ("a", "b")}
    for name in results:
        app.ledger.wait("start", name)
    between.drop_connections()
    values = {name: result.get(timeout=60) for name, result in results.items()}
    if pool != "solo":  # there nobody looks at the connection before the body has ended, and then Redis takes the ack over a new one
        assert all(receipts(workers.all, result) > 1 for result in results.values()), "the broker did deliver it again"
    assert values == {effect.key: effect.run for effect in app.ledger.entries(event="effect")}
    assert app.ledger.counts("start") == app.ledger.counts() == {"a": 1, "b": 1}
    eventually(lambda: app.depth() == 0)
    assert app.send("effect", "after").get(timeout=30) == "after", "the workers go on"


def test_what_lay_in_the_pipe_of_a_process_when_the_connection_was_lost_keeps_its_lease_when_it_runs(deploy, broker, between):
    redis = REDIS if broker.kind == "redis" else {}
    app = deploy("untouched", broker_transport_options=redis, guardrails_lease_seconds=VISIBILITY)
    worker = app.worker(concurrency=2, env={"TESTAPP_BROKER_URL": between.through(broker.url)})
    children = worker.children_up(app.app)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)  # they get a message into their pipes and do not take it out
    results = {name: app.send("token", name, LONG) for name in ("a", "b")}
    worker.wait_log("received", times=2)
    worker.turn(app.app)
    app.app.control.cancel_consumer(app.queue, destination=[worker.hostname])
    worker.turn(app.app)
    between.drop_connections()
    worker.wait_log("Connected to", times=2, timeout=60)
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    app.ledger.wait("start", times=2)
    other = app.worker(concurrency=2)
    values = {name: result.get(timeout=60) for name, result in results.items()}
    assert receipts([other], results["a"]) + receipts([other], results["b"]) >= 2, "the broker did deliver both again"
    assert app.ledger.counts("start") == app.ledger.counts() == {"a": 1, "b": 1}
    assert {effect.pid for effect in app.ledger.entries(event="effect")} == set(children)
    assert values == {effect.key: effect.run for effect in app.ledger.entries(event="effect")}
    eventually(lambda: app.depth() == 0, 30)


@pytest.mark.brokers("amqp")
@pytest.mark.parametrize("task", ["token", "unguarded"])
@pytest.mark.parametrize("pool", ["threads", pytest.param("gevent", marks=pytest.mark.chaos)])
def test_a_worker_that_is_connected_again_in_mid_task_takes_as_many_messages_as_before(deploy, broker, between, pool, task):
    app = deploy("slow_listener", guardrails_lease_seconds=4)
    worker = app.worker(pool=pool, concurrency=2, env={"TESTAPP_BROKER_URL": between.through(broker.url)})
    app.send(task, "a", LONG)
    app.ledger.wait("start", "a")
    between.drop_connections()
    worker.wait_log("Temporarily reducing the prefetch count to 4", timeout=30)
    # an acknowledgement raises the count again, and the pool's thread that has ended a task is not the one that may read the answer
    worker.wait_log("Prefetch count has been restored to the maximum of 8", timeout=40)
    assert set(app.ledger.counts("qos")) == {"MainThread"}
    results = [app.send(task, f"after{number}") for number in range(3)]
    assert [result.get(timeout=40) for result in results]
    eventually(lambda: app.depth() == 0)


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_where_celery_ends_what_runs_when_the_connection_is_lost_nobody_is_charged(deploy, broker, between, pool):
    redis = REDIS if broker.kind == "redis" else {}
    app = deploy(worker_cancel_long_running_tasks_on_connection_loss=True, broker_transport_options=redis, guardrails_lease_seconds=120)
    worker = app.worker(pool=pool, env={"TESTAPP_BROKER_URL": between.through(broker.url)})
    result = app.send("effect", "a", 6.0)
    app.ledger.wait("start", "a")
    between.drop_connections()
    assert result.get(timeout=60) == "a", "long before its lease would have ended"
    assert app.ledger.count("a") == 1
    starts = app.ledger.entries(event="start", key="a")
    assert len(starts) == (2 if pool in ("prefork", "gevent") else 1), "threads and solo cannot end a task"
    assert {(start.fields["attempt"], start.fields["crashes"]) for start in starts} == {(1, 0)}
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0
    assert worker.alive()


@pytest.mark.parametrize("pool", ANY)
def test_a_broker_out_of_reach_for_a_while_does_not_make_a_task_run_twice(cut_off, broker, between, workers, pool):
    app = cut_off
    result = app.send("token", "a", LONG)
    app.ledger.wait("start", "a")
    between.cut()
    app.ledger.wait("end", "a")  # the task ends, and is completed in the store, while nobody can acknowledge it
    eventually(lambda: app.guardrails.lookup("effect:a").result)
    between.mend()
    # the acknowledgement may find the broker again before the worker does: Redis takes it over any connection
    if pool != "solo" and (pool, broker.kind) != ("gevent", "redis"):
        eventually(lambda: receipts(workers.all, result) > 1, 40, because="the broker did deliver it again")
    (effect,) = app.ledger.entries(event="effect", key="a")
    assert result.get(timeout=40) == effect.run
    eventually(lambda: app.depth() == 0)
    assert app.send("token", "a", LONG).get(timeout=40) == effect.run
    assert app.ledger.counts("start") == {"a": 1}
    if broker.kind == "redis":
        eventually(lambda: all(size == (0, 0) for size in broker.sizes().values()), 20, because=lambda: str(broker.sizes()))


@pytest.mark.long_on("redis")
def test_what_runs_goes_on_while_a_gevent_worker_waits_for_its_broker(deploy, broker, between):
    app = deploy("looping", guardrails_lease_seconds=VISIBILITY)
    worker = app.worker(pool="gevent", env={"TESTAPP_BROKER_URL": between.through(broker.url)})
    result = app.send("rows", "loop", 200, 0.1)
    app.ledger.wait("effect", "loop", times=3)
    between.cut()
    worker.wait_log(r"Trying again in 6\.00 seconds", timeout=40)
    before = app.ledger.count("loop")
    eventually(lambda: app.ledger.count("loop") >= before + 10, 4)
    between.mend()
    assert result.get(timeout=60) == 200
    assert app.ledger.count("loop", "start") == 1


@pytest.mark.brokers("amqp")
@pytest.mark.parametrize("pool", ANY)
def test_a_connection_that_rabbitmq_closes_in_mid_task_does_not_make_it_run_twice(deploy, broker, workers, pool):
    if broker.server is None:
        pytest.skip("only our own node closes connections when told to")
    app = deploy(guardrails_lease_seconds=4)
    app.start_workers(2, pool=pool)
    # rabbitmqctl takes a second, on a busy machine ten
    result = app.send("token", "a", 15.0)
    app.ledger.wait("start", "a")
    broker.server.ctl("close_all_connections", "--vhost", broker.vhost, "test")
    value = result.get(timeout=60)
    eventually(lambda: receipts(workers.all, result) > 1, 20, because="the broker did deliver it again")
    eventually(lambda: app.depth() == 0)
    assert [effect.run for effect in app.ledger.entries(event="effect", key="a")] == [value]
    assert app.ledger.counts("start") == {"a": 1}
