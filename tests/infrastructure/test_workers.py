"""Plain Celery on the infrastructure: no guard here, so what fails here is not the guard's fault."""

from __future__ import annotations

import psutil
import pytest

from tests.support import eventually


def test_a_task_runs_in_a_worker_and_its_result_comes_back(deploy):
    app = deploy("plain")
    app.worker()
    assert app.send("effect", "a").get(timeout=10) == "a"
    assert app.ledger.counts() == {"a": 1}


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_every_pool_starts(deploy, pool):
    app = deploy("plain")
    app.worker(pool=pool)
    assert app.send("add", 1, 2).get(timeout=10) == 3


@pytest.mark.brokers("redis")
def test_a_killed_child_is_replaced_and_the_ledger_knows_its_run_did_not_end(deploy):
    app = deploy("plain")
    worker = app.worker()
    before = worker.children()
    app.send("kill_self", "a")
    app.ledger.wait("start", "a")
    eventually(lambda: len(worker.children()) == 2 and worker.children() != before)
    assert [span.ended for span in app.ledger.spans("a")] == [False]


@pytest.mark.brokers("amqp")
def test_a_killed_main_process_takes_its_children_along_and_the_broker_redelivers(deploy):
    app = deploy("plain")
    first, second = app.start_workers(2, concurrency=1)
    result = app.send("effect", "a", 4.0)
    pid = app.ledger.wait("start", "a")[0].pid
    victim = first if pid in first.children() else second
    victim.kill()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert result.get(timeout=40) == "a"
    assert app.ledger.count("a", "start") == 2


@pytest.mark.brokers("redis")
def test_terminate_is_a_warm_shutdown(deploy):
    app = deploy("plain")
    worker = app.worker()
    app.send("effect", "a", 0.5)
    app.ledger.wait("start", "a")
    assert worker.stop() == 0
    assert app.ledger.count("a") == 1


@pytest.mark.brokers("redis")
def test_holding_the_gil_stops_other_threads(deploy):
    app = deploy("plain")
    app.worker(pool="threads")
    app.send("hold_gil", "a", 1.0)
    app.ledger.wait("start", "a")
    app.send("effect", "b")
    (start,) = app.ledger.wait("start", "b")
    (end,) = app.ledger.wait("end", "a")
    assert start.time >= end.time - 0.2
