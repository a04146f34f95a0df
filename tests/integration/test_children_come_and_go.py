"""Pool processes that Celery itself ends: after so many tasks, over so much memory, when fewer are needed. That is no crash."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support import eventually

from .test_loops import begun, handled
from .test_shutdown import last_line

#: Every process ends after two tasks, or after each, because any of them is larger than a mebibyte.
REPLACED = {"tasks": ["--max-tasks-per-child", "2"], "memory": ["--max-memory-per-child", "1024"]}
#: Seconds without a message after which a worker lets processes go, and between two looks; 30 by default (celery/worker/autoscale.py).
SHORT = {"AUTOSCALE_KEEPALIVE": "0.5"}


def charged(app):
    """Runs that were a second attempt, or followed a crash."""
    starts = app.ledger.entries(event="start")
    return [start for start in starts if (start.fields["attempt"], start.fields["crashes"]) != (1, 0)]


def used(app):
    """Processes that have run something."""
    return {start.pid for start in app.ledger.entries(event="start")}


@pytest.mark.long_on("amqp")
@pytest.mark.parametrize("why", ["tasks", pytest.param("memory", marks=pytest.mark.chaos)])
@pytest.mark.parametrize(
    "scheduling",
    # with "default" messages are written into the pipe of a process that is busy, and that ends before it has read them
    [pytest.param("fair", marks=pytest.mark.chaos), "default"],
)
def test_processes_that_are_replaced_all_the_time_lose_repeat_and_charge_nothing_also_at_sigterm(deploy, why, scheduling):
    app = deploy("looping", guardrails_drain_seconds=1, worker_prefetch_multiplier=8, guardrails_lease_seconds=120)
    options = [*REPLACED[why], "-O", scheduling]
    worker = app.worker(concurrency=4, options=options)
    long = app.send("effect", "long", 25.0)
    told = app.send("until_told", "told", 120.0)
    loop = app.send("rows", "loop", 1000, 0.1)
    app.ledger.wait("start", times=3)
    names = [f"n{number}" for number in range(60)]
    results = [app.send("effect", name, 0.1) for name in names]
    app.ledger.wait("effect", "loop", times=3)
    eventually(lambda: len(used(app)) >= 6, 60, because="processes have been replaced beside the three")
    worker.terminate()
    assert worker.wait(60) == 0
    done = last_line(worker)
    assert done["checkpointed"] == 1
    assert done["abandoned"] == 0
    assert app.ledger.count("told") == 1
    assert app.ledger.count("long") == 0
    assert list(app.guardrails.leases()) == []
    left = handled(app, "loop")
    app.worker(concurrency=4, options=options)
    assert [result.get(timeout=90) for result in [told, *results]] == ["told", *names]
    assert loop.get(timeout=90) == 1000
    assert long.get(timeout=90) == "long"
    assert handled(app, "loop") == list(range(1, 1001))
    assert left
    assert {name: app.ledger.count(name) for name in ["long", "told", *names]} == dict.fromkeys(["long", "told", *names], 1)
    assert app.ledger.count("long", "start") == 2
    assert len(begun(app, "loop")) == 2
    assert charged(app) == []
    assert app.ledger.overlaps() == []
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0


@pytest.mark.long_on("amqp")
def test_a_worker_that_shrinks_leaves_what_runs_alone_and_drains_while_it_grows(deploy):
    app = deploy("looping", guardrails_drain_seconds=1, guardrails_lease_seconds=120)
    worker = app.worker(options=["--autoscale", "4,1"], env=SHORT)
    assert len(worker.children()) == 1
    loop = app.send("rows", "loop", 100, 0.1)
    long = app.send("effect", "long", 10.0)
    names = [f"n{number}" for number in range(20)]
    results = [app.send("effect", name, 0.2) for name in names]
    assert [result.get(timeout=60) for result in results] == names
    worker.wait_log("Scaling up")
    worker.wait_log("Scaling down", 40)
    eventually(lambda: len(worker.children()) <= 2, 40, because="all but the busy ones have gone")
    assert long.get(timeout=60) == "long"
    assert loop.get(timeout=60) == 100
    assert app.ledger.count(event="start") == 22, "each has begun once"
    # and while it grows again
    eventually(lambda: len(worker.children()) == 1, 40)
    more = [app.send("effect", f"m{number}", 4.0) for number in range(8)]
    app.ledger.wait("start", times=23)
    worker.terminate()
    assert worker.wait(60) == 0
    assert last_line(worker)["abandoned"] == 0
    assert list(app.guardrails.leases()) == []
    app.worker(options=["--autoscale", "4,1"], env=SHORT)
    assert [result.get(timeout=90) for result in more] == [f"m{number}" for number in range(8)]
    assert app.ledger.repeated().keys() <= {"loop"}
    assert handled(app, "loop") == list(range(1, 101))
    assert charged(app) == []
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0


def begun_unheard(app, worker, tmp_path, seconds=3.0):
    """Let two tasks begin of which the main process has not read that they have: it is held up until there is a file."""
    children = worker.children_up(app.app)
    for pid in children:
        os.kill(pid, signal.SIGSTOP)  # they get a message into their pipes and do not say so
    names = ["a", "b"]
    results = [app.send("effect", name, seconds) for name in names]
    worker.wait_log("received", times=2)
    worker.turn(app.app)
    gate = tmp_path / "gate"
    app.app.control.broadcast("shrink_late", arguments={"gate": str(gate)})
    eventually(gate.with_suffix(".held").exists, 30)
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    app.ledger.wait("start", times=2)
    return names, gate, results


def test_what_has_begun_unheard_at_sigterm_is_handed_back_with_its_lease_when_the_drain_is_over(deploy, tmp_path):
    app = deploy("held_up", guardrails_lease_seconds=120, guardrails_drain_seconds=1)
    worker = app.worker(concurrency=2)
    names, gate, results = begun_unheard(app, worker, tmp_path, 10.0)
    worker.terminate()
    worker.wait_log("Warm shutdown")
    gate.touch()
    assert worker.wait(60) == 0
    assert last_line(worker)["handed back"] == 2
    assert list(app.guardrails.leases()) == []
    app.worker(concurrency=2)
    assert [result.get(timeout=60) for result in results] == names
    assert app.ledger.counts() == dict.fromkeys(names, 1)
    assert charged(app) == []
    eventually(lambda: app.depth() == 0, 30)


@pytest.mark.brokers("redis")
def test_a_worker_that_shrinks_does_not_end_a_process_that_has_just_begun_a_task(deploy, tmp_path):
    app = deploy("held_up", guardrails_lease_seconds=120)
    worker = app.worker(concurrency=2)
    children = worker.children()
    names, gate, results = begun_unheard(app, worker, tmp_path)
    gate.touch()
    assert [result.get(timeout=60) for result in results] == names
    assert app.ledger.counts("start") == dict.fromkeys(names, 1)
    assert used(app) == set(children)
    assert charged(app) == []
    assert worker.children() == children


def test_a_worker_whose_process_dies_before_its_loop_has_begun_ends_and_loses_nothing(deploy, tmp_path):
    # Celery ends such a worker (celery/worker/loops.py, ``asynloop``): it takes it for one none of whose processes can start.
    # That is left as it is: a worker whose processes never start must not fork for ever, and whoever supervises it starts another.
    app = deploy("stillborn", env={"TESTAPP_GRAVE": str(tmp_path / "grave")})
    names = [f"n{number}" for number in range(8)]
    results = [app.send("effect", name) for name in names]
    worker = app.worker(wait=False)
    assert worker.wait(60) == 1
    assert "Could not start worker processes" in worker.log()
    assert app.ledger.count(event="start") <= len(names)
    app.worker()
    assert [result.get(timeout=40) for result in results] == names
    assert app.ledger.counts() == app.ledger.counts("start") == dict.fromkeys(names, 1)
    assert charged(app) == []
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0
