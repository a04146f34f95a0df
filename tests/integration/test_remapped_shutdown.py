"""``REMAP_SIGTERM=SIGQUIT``, and Celery's soft shutdown, in every pool: as little is lost or charged as with SIGTERM."""

from __future__ import annotations

import signal

import pytest
from celery import VERSION

from tests.support import eventually
from tests.support.pools import ANY

from .test_loops import begun, handled
from .test_shutdown import cut_off, last_line, starts, uncharged

REMAP = {"REMAP_SIGTERM": "SIGQUIT"}
#: Of the soft shutdown.
SECONDS = 4.0


@pytest.mark.parametrize("pool", ANY)
def test_a_remapped_sigterm_hands_back_what_runs_at_once(deploy, pool):
    cut_off(deploy, pool, signal.SIGTERM, env=REMAP)


@pytest.mark.chaos
@pytest.mark.skipif(VERSION < (5, 5), reason="soft shutdown came with Celery 5.5")
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_in_a_soft_shutdown_tasks_and_loops_are_told_at_its_beginning_and_what_is_deaf_is_handed_back(deploy, pool):
    app = deploy("looping", worker_soft_shutdown_timeout=SECONDS, guardrails_drain_seconds=300, guardrails_lease_seconds=120)
    worker = app.worker(pool=pool, concurrency=3, env=REMAP)
    loop = app.send("rows", "loop", 1000, 0.1)
    app.ledger.wait("effect", "loop", times=3)
    if pool != "solo":  # one at a time
        told = app.send("until_told", "told", 120.0)
        deaf = app.send("effect", "deaf", 30.0)
        app.ledger.wait("start", times=3)
    worker.terminate()
    assert worker.wait(60) == 0
    line = last_line(worker)
    assert line["checkpointed"] == 1
    assert app.guardrails.progress("rows:loop").cursors[""] == handled(app, "loop")[-1]
    assert list(app.guardrails.leases()) == []
    app.worker(concurrency=3)
    assert loop.get(timeout=60) == 1000
    assert handled(app, "loop") == list(range(1, 1001))
    assert begun(app, "loop") == [(1, 0), (1, 0)]
    if pool != "solo":
        assert (line["handed back"], line["abandoned"]) == (1, 0) if pool == "prefork" else line["abandoned"] == 1
        # Celery's loop for gevent takes what comes until it notices the signal (worker/loops.py, ``synloop``): what has just been
        # handed back comes again, is refused, and makes it notice
        assert line["handed back"] <= 2
        assert line["finished"] == 1
        assert told.get(timeout=30) == "told"
        app.ledger.wait("start", "deaf", times=2)
        assert deaf.get(timeout=60) == "deaf"
        assert app.ledger.counts("start") == {"loop": 2, "told": 1, "deaf": 2}
    assert uncharged(app)
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0


@pytest.mark.chaos
@pytest.mark.skipif(VERSION < (5, 5), reason="soft shutdown came with Celery 5.5")
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_what_comes_while_an_idle_worker_waits_in_its_soft_shutdown_is_done_by_the_next_one(deploy, pool):
    app = deploy(worker_soft_shutdown_timeout=SECONDS, worker_enable_soft_shutdown_on_idle=True)
    worker = app.worker(pool=pool, concurrency=2, env=REMAP)
    worker.terminate()
    worker.wait_log("Cold shutdown|Initiating Soft Shutdown")
    names = [f"n{number}" for number in range(6)]
    results = [app.send("effect", name) for name in names]
    assert worker.wait(60) == 0
    app.worker(pool=pool, concurrency=2)
    assert [result.get(timeout=40) for result in results] == names
    assert app.ledger.counts() == app.ledger.counts("start") == dict.fromkeys(names, 1)
    assert starts(app)
    assert uncharged(app)
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0
