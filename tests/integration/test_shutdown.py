"""SIGTERM: what runs is finished or handed back, what waits is left alone, and nobody is charged for a deploy."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from celery_guardrails.policy.lease import RecordState
from tests.support import consistently, eventually
from tests.support.rolling import DRAIN, assert_nothing_lost_and_nobody_charged, roll


def starts(app):
    return app.ledger.entries(event="start")


def uncharged(app):
    """No run was a second attempt, none followed a crash."""
    return {(run.fields["attempt"], run.fields["crashes"]) for run in starts(app)} == {(1, 0)}


def records(app, names):
    return {name: app.guardrails.lookup(f"effect:{name}") for name in names}


LAST = r"stopped after [\d.]+ s: (\d+) finished, (\d+) checkpointed, (\d+) handed back, (\d+) abandoned"


def last_line(worker):
    """What the last line of its log says became of its messages."""
    lines = [line for line in worker.log().splitlines() if line.strip()]
    found = re.search(LAST, lines[-1])
    assert found, lines[-1]
    return dict(zip(("finished", "checkpointed", "handed back", "abandoned"), map(int, found.groups()), strict=True))


def test_rolling_restarts_under_load_lose_nothing_and_charge_nobody(deploy):
    app = deploy(guardrails_drain_seconds=DRAIN)
    rolled = roll(app, 3, seed=7)
    assert_nothing_lost_and_nobody_charged(app, rolled)


def test_what_was_prefetched_goes_back_at_once_and_a_second_sigterm_ends_the_drain(deploy):
    app = deploy(guardrails_drain_seconds=300)
    worker = app.worker(concurrency=1)
    app.send("effect", "long", 300.0)
    app.ledger.wait("start")
    for number in range(5):
        app.send("effect", f"n{number}")
    worker.wait_log("received", times=4)  # of four that it may hold
    worker.terminate()
    eventually(lambda: app.depth() == 5, 20, because="others could take what waits")
    assert worker.alive()
    assert app.ledger.count(event="end") == 0
    worker.terminate()
    assert worker.wait(30) == 0
    assert app.depth() == 6
    assert last_line(worker) == {"finished": 0, "checkpointed": 0, "handed back": 4, "abandoned": 0}
    app.worker(concurrency=2)
    app.ledger.wait("start", "long", times=2)
    app.ledger.wait("effect", times=5)
    assert uncharged(app)


def cut_off(deploy, pool, number, env=None):
    """Tell a worker to stop whose task nothing else stops."""
    app = deploy(guardrails_drain_seconds=1, guardrails_lease_seconds=120)
    worker = app.worker(pool=pool, concurrency=1, env=env or {})
    app.send("effect", "a", 300.0)
    app.ledger.wait("start")
    worker.signal(number)
    assert worker.wait(40) == 0
    assert last_line(worker) == {
        "finished": 0,
        "checkpointed": 0,
        **({"handed back": 1, "abandoned": 0} if pool == "prefork" else {"handed back": 0, "abandoned": 1}),
    }
    assert app.depth() == 1
    assert app.dead() == 0
    assert list(app.guardrails.leases()) == []
    app.worker(concurrency=1)
    app.ledger.wait("start", times=2)
    # a process is told, and its body is left; a thread or greenlet ends with its process
    assert app.ledger.count(event="effect" if pool == "prefork" else "end") == 0
    assert uncharged(app)


def test_a_thread_that_cannot_be_stopped_ends_with_its_process_and_its_task_starts_elsewhere_at_once(deploy):
    cut_off(deploy, "threads", signal.SIGTERM)


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["gevent", "solo"])
def test_what_a_pool_in_the_main_process_still_runs_when_the_drain_time_is_over_starts_elsewhere_at_once(deploy, pool):
    cut_off(deploy, pool, signal.SIGTERM)


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("pool", ["gevent", "solo"])
def test_a_cold_shutdown_of_a_pool_in_the_main_process_loses_no_task_and_fails_none(deploy, pool):
    cut_off(deploy, pool, signal.SIGQUIT)


@pytest.mark.brokers("redis")
def test_a_sigterm_that_reaches_the_children_as_well_charges_nobody(deploy):
    app = deploy(guardrails_lease_seconds=120)
    worker = app.worker(concurrency=2)
    app.send("effect", "a", 300.0)
    app.ledger.wait("start")
    os.killpg(worker.pid, signal.SIGTERM)  # as systemd does with KillMode=control-group
    assert worker.wait(40) == 0
    app.worker(concurrency=1)
    app.ledger.wait("start", times=2)
    assert uncharged(app)


@pytest.mark.brokers("amqp")
def test_celerys_soft_shutdown_tells_the_tasks_before_it_waits(deploy):
    app = deploy(worker_soft_shutdown_timeout=5.0)
    worker = app.worker(concurrency=2, env={"REMAP_SIGTERM": "SIGQUIT"})
    app.send("until_told", "told", 60.0)
    app.send("effect", "deaf", 60.0)
    app.ledger.wait("start", times=2)
    worker.terminate()
    app.ledger.wait("effect", "told")
    assert worker.wait(40) == 0
    app.worker(concurrency=2)
    app.ledger.wait("start", "deaf", times=2)
    assert app.ledger.counts() == {"told": 1}
    assert uncharged(app)


def test_sigterm_in_the_middle_of_short_tasks_ends_each_one_that_began(deploy):
    app = deploy()
    worker = app.worker(concurrency=4)
    names = [f"n{number}" for number in range(60)]
    for name in names:
        app.send("effect", name, 0.1)
    app.ledger.wait("start", times=12)
    worker.terminate()
    assert worker.wait(60) == 0
    done = app.ledger.counts()
    assert len(done) >= 12
    assert app.ledger.count(event="start") == app.ledger.count(event="end") == len(done)
    assert uncharged(app)
    # what was not done waits; a message whose ack was lost on the way out waits, too, and is not run again
    assert app.depth() >= 60 - len(done)
    assert {name for name, record in records(app, names).items() if record is not None} == set(done), "no lease is left"
    app.worker(concurrency=4)
    eventually(lambda: len(app.ledger.counts()) == 60, 40)
    eventually(lambda: app.depth() == 0, 10)
    assert app.ledger.repeated() == {}
    assert uncharged(app)


def test_what_was_on_its_way_to_a_child_at_sigterm_does_not_start_any_more(deploy):
    app = deploy()
    worker = app.worker(concurrency=1, loglevel="DEBUG")
    assert app.send("effect", "warm").get(timeout=20)
    (child,) = worker.children()
    # its result is known before the main process is: stopped in between, the child would keep its place in the pool
    def idle():
        said = app.app.control.inspect(destination=[worker.hostname], timeout=10, limit=1).active()
        return bool(said) and not any(said.values())

    eventually(idle, 60)
    before = len(worker.wait_log("TaskPool: Apply"))
    os.kill(child, signal.SIGSTOP)  # a child that is slow to look into its pipe
    app.send("effect", "a", 1.0)
    worker.wait_log("TaskPool: Apply", times=before + 1)
    consistently(worker.alive, 0.3)  # the next turn of the loop writes it
    worker.terminate()
    worker.wait_log("Warm shutdown")
    os.kill(child, signal.SIGCONT)
    assert worker.wait(40) == 0
    assert app.ledger.count("a", "start") == 0
    assert app.guardrails.lookup("effect:a") is None, "not even claimed"
    assert app.depth() == 1
    app.worker(concurrency=1)
    (start,) = app.ledger.wait("start", "a")
    assert (start.fields["attempt"], start.fields["crashes"]) == (1, 0)


def test_what_still_runs_when_the_drain_time_is_over_is_handed_back_at_once_and_not_charged(deploy):
    app = deploy(guardrails_drain_seconds=1, guardrails_lease_seconds=120)
    first = app.worker(concurrency=2)
    names = ["a", "b"]
    for name in names:
        app.send("effect_first" if name == "a" else "effect", name, 30.0)
    app.ledger.wait("start", times=2)
    told = time.monotonic()
    first.terminate()
    assert first.wait(30) == 0
    assert time.monotonic() - told < 20, "thirty seconds of work are not waited for"
    assert app.depth() == 2
    for record in records(app, names).values():
        assert record is None or (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 0, 0)
    # and start elsewhere long before their lease would have ended
    app.worker(concurrency=2)
    app.ledger.wait("start", times=4, timeout=30)
    assert uncharged(app)
    assert app.dead() == 0


def test_a_task_is_told_that_it_should_stop(deploy):
    app = deploy()
    worker = app.worker(concurrency=2)
    results = [app.send("until_told", name, 60.0) for name in ("a", "b")]
    app.ledger.wait("start", times=2)
    assert app.ledger.count(event="told") == 0
    told = time.monotonic()
    worker.terminate()
    app.ledger.wait("told", times=2, timeout=20)
    assert worker.wait(30) == 0
    assert time.monotonic() - told < 40, "they would run for a minute"
    assert [result.get(timeout=5) for result in results] == ["a", "b"]
    assert app.ledger.counts() == {"a": 1, "b": 1}
    assert app.depth() == app.dead() == 0
