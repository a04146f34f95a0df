"""Pool processes are replaced when a task leaks, and nothing is lost or charged for it; what overruns is not forgotten."""

from __future__ import annotations

import json
import re

import pytest

from celery_guardrails.cli import commands
from celery_guardrails.policy.lease import RecordState
from tests.support import eventually
from tests.unit.test_dead_letters_cli import make_runner


def starts(app):
    return app.ledger.entries(event="start")


def pids(app, names):
    return {entry.pid for entry in starts(app) if entry.key in names}


@pytest.mark.parametrize("scheduling", ["fair", "default"])
@pytest.mark.brokers("redis")
def test_a_process_is_replaced_after_its_task_has_leaked_and_nothing_is_lost_or_charged(deploy, scheduling):
    # "default" writes messages into the pipe of a process that is busy: there they are when it ends
    app = deploy("leaking", guardrails_recycle_on_leak=True, guardrails_leak_runs=3, worker_prefetch_multiplier=8)
    worker = app.worker(concurrency=2, options=["-O", scheduling])
    clean = [f"clean{number}" for number in range(20)]
    for result in [app.send("clean", name) for name in clean]:
        result.get(timeout=40)
    assert pids(app, clean) <= set(worker.children()), "who leaves nothing behind keeps its process"
    kinds = ["leak_thread", "clean", "leak_child", "clean"]
    names = [f"n{number}" for number in range(60)]
    results = [app.send(kinds[number % 4], name) for number, name in enumerate(names)]
    assert [result.get(timeout=60) for result in results] == names
    assert app.ledger.counts() == dict.fromkeys(clean + names, 1)
    assert {(run.fields["attempt"], run.fields["crashes"]) for run in starts(app)} == {(1, 0)}
    named = worker.wait_log(r"testapp\.leak_\w+\[.*leaks (threads|child processes): 3 of 3 .*the process is replaced", times=2)
    used = pids(app, clean + names)
    # each process runs until a task has leaked three times in it: a task that leaks no more than that keeps the others going
    assert 2 < len(used) <= 2 + len(worker.wait_log("the process is replaced"))
    assert any("forgotten" in line for line in named) or any("sh (pid" in line for line in named)
    assert not re.search("WorkerLost|lost its process|exited with", worker.log())
    assert worker.stop(60) == 0
    assert app.depth() == app.dead() == 0


@pytest.mark.brokers("redis")
def test_in_the_threads_pool_what_overruns_is_reported_and_keeps_its_lease_until_it_ends(deploy, tmp_path):
    app = deploy("leaking", guardrails_lease_seconds=2, guardrails_drain_seconds=1)
    worker = app.worker(pool="threads", concurrency=3)
    gate, other = tmp_path / "gate", tmp_path / "other"
    names = ["stubborn", "stubborn_hard"]
    results = [app.send(name, name, str(gate)) for name in names]
    # one that ends before the others, and before SIGTERM
    early = app.send("stubborn", "early", str(other))
    reported = worker.wait_log(r"testapp\.stubborn\w*\[.*still runs after \d+ s of 1 s .*leaking\.py:\d+ _stubborn$", times=6)
    assert len(set(reported)) == 6, "each again at about twice the time"
    result = make_runner().invoke(commands(lambda: app.app), ["overruns", "--timeout", "3", "--json"])
    listed = json.loads(result.stdout)
    assert {(task["name"], task["key"]) for task in listed} == {
        ("testapp.stubborn", "effect:stubborn"),
        ("testapp.stubborn_hard", "effect:stubborn_hard"),
        ("testapp.stubborn", "effect:early"),
    }
    assert all(task["limit"] == 1 and "_stubborn" in task["where"] for task in listed)
    other.touch()
    assert early.get(timeout=20) == "early"
    worker.wait_log(r"testapp\.stubborn\[.*has ended after \d+ s, its limit was 1 s")
    before = {name: app.guardrails.lookup(f"effect:{name}") for name in names}

    def renewed():
        now = {name: app.guardrails.lookup(f"effect:{name}") for name in names}
        assert all((now[name].state, now[name].fence) == (RecordState.LEASED, before[name].fence) for name in names)
        return all(now[name].until > before[name].until + 2 for name in names)

    eventually(renewed, 30)  # by more than a lease
    worker.terminate()
    worker.wait_log(r"testapp\.stubborn\w*\[.*is abandoned", times=2)
    assert worker.wait(40) == 0
    assert list(app.guardrails.leases()) == [], "they ended with their process, and start elsewhere at once"
    assert app.depth() == 2
    gate.touch()
    app.worker(pool="threads", concurrency=2)
    assert [result.get(timeout=10) for result in results] == names
    assert app.ledger.counts() == dict.fromkeys([*names, "early"], 1)
    assert app.depth() == app.dead() == 0
