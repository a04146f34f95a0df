"""A resource of the whole fleet: its breaker, its slots, its budget, its rate, over real workers and brokers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from tests.support import consistently, eventually, processes

QUICK_BREAKER = {"min_calls": 4, "window": 5, "open_seconds": 2, "max_open_seconds": 2, "probes": 1}


@pytest.fixture
def gateway(deploy, ledger):
    """Deploy the app with options of its resource; ``down(True)`` takes the gateway away."""
    switch = ledger.path.with_suffix(".down")

    def start(*, retry=None, **resource):
        app = deploy("resourceful", env={"TESTAPP_RESOURCE": json.dumps(resource)}, retry=retry, worker_prefetch_multiplier=1)
        app.down = lambda is_down: switch.touch() if is_down else switch.unlink()
        return app

    return start


def guardrails(app, *words, code=0):
    command = [sys.executable, "-m", "celery", "-A", app.module, "guardrails", *words]
    environ = app.workers._environment(app.env)
    done = subprocess.run(command, env=environ, cwd=processes.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def names(prefix, number):
    return [f"{prefix}{index}" for index in range(number)]


def most_at_once(ledger):
    moments = [moment for span in ledger.spans() for moment in ((span.start, 1), (span.end, -1))]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most


def test_while_the_breaker_is_open_the_broker_holds_the_backlog_and_nobody_is_charged(gateway):
    app = gateway(breaker={**QUICK_BREAKER, "open_seconds": 8, "max_open_seconds": 8})
    worker = app.worker(concurrency=4)
    app.down(True)
    first = [app.send("call", name) for name in names("first", 6)]
    eventually(lambda: app.guardrails.resources()[0].condition.value == "open", 20)
    calls = app.ledger.count(event="start")
    worker.wait_log(r"queue \S+ is not consumed: resource 'gateway' lets nobody in \(breaker\)")
    backlog = [app.send("call", name) for name in names("later", 20)]
    consistently(lambda: app.depth() >= 18 and app.ledger.count(event="start") <= calls + 1, 1.5, because="it is left alone")
    app.down(False)
    assert [result.get(timeout=90) for result in first + backlog] == names("first", 6) + names("later", 20)
    worker.wait_log(r"queue \S+ is consumed again")
    assert app.ledger.counts() == dict.fromkeys(names("first", 6) + names("later", 20), 1)
    later = [entry.fields["attempt"] for entry in app.ledger.entries(event="start") if entry.key.startswith("later")]
    assert set(later) == {1}, "who waits for a breaker loses no attempt"
    assert app.dead() == 0


@pytest.mark.long_on("amqp")
def test_a_half_open_breaker_lets_single_probes_through(gateway):
    app = gateway(breaker=QUICK_BREAKER, retry={"base": 0.2, "cap": 0.5, "max_attempts": 50})
    app.start_workers(2, concurrency=4)
    app.down(True)
    results = [app.send("call", name, 0.3) for name in names("n", 30)]
    eventually(lambda: app.guardrails.resources()[0].condition.value == "open", 20)
    eventually(lambda: not app.guardrails.resources()[0].running, 10)
    opened = max(span.end for span in app.ledger.spans())
    before = len(app.ledger.spans())
    eventually(lambda: len(app.ledger.spans()) >= before + 2, 20, because="it is probed")
    probes = sorted((span.start, span.end) for span in app.ledger.spans() if span.start > opened)
    assert all(following[0] >= probe[1] for probe, following in pairwise(probes)), "never two at once"
    app.down(False)
    assert [result.get(timeout=60) for result in results] == names("n", 30)
    assert app.ledger.counts() == dict.fromkeys(names("n", 30), 1)


@pytest.mark.long_on("amqp")
def test_the_fleet_runs_no_more_at_once_than_there_are_slots(gateway):
    app = gateway(max_concurrency=2)
    app.start_workers(2, concurrency=3)
    results = [app.send("call", name, 0.3) for name in names("n", 12)]
    assert [result.get(timeout=60) for result in results] == names("n", 12)
    assert most_at_once(app.ledger) == 2
    assert {entry.fields["attempt"] for entry in app.ledger.entries(event="start")} == {1}
    assert app.guardrails.resources()[0].running == 0


@pytest.mark.brokers("redis")
def test_the_slot_of_a_worker_that_was_killed_comes_back_when_its_lease_ends(gateway):
    app = gateway(max_concurrency=1)
    sweep = {"visibility_timeout": 3, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    app.env["TESTAPP_SETTINGS"] = json.dumps({"guardrails_lease_seconds": 2, "broker_transport_options": sweep})
    victim = app.worker(concurrency=1)
    held = app.send("call", "held", 3)
    app.ledger.wait("start", "held")
    victim.kill()
    assert app.guardrails.resources()[0].running == 1, "nobody has given it back"
    app.worker(concurrency=1)
    assert app.send("call", "next").get(timeout=30) == "next"
    assert held.get(timeout=30) == "held"
    assert most_at_once(app.ledger) == 1


@pytest.mark.long_on("amqp")
def test_a_rate_spreads_the_calls_of_the_fleet(gateway):
    app = gateway(rate="4/s")
    app.start_workers(2, concurrency=4)
    sent = time.monotonic()
    results = [app.send("call", name) for name in names("n", 16)]
    assert [result.get(timeout=60) for result in results] == names("n", 16)
    starts = sorted(entry.time for entry in app.ledger.entries(event="start"))
    assert len(starts) == 16
    for index, start in enumerate(starts):
        assert start - sent >= (index - 4) / 4 - 0.1, "at most the burst of 4, and 4 more each second"


def test_retries_of_the_fleet_keep_to_the_budget_and_lose_no_attempt_by_waiting(gateway):
    app = gateway(breaker=None, retry_budget={"ratio": 0.1, "min_per_second": 2, "window": 2}, retry={"base": 0.01, "cap": 0.02})
    app.start_workers(2, concurrency=4)
    app.down(True)
    results = [app.send("call", name) for name in names("n", 10)]
    app.ledger.wait("start", times=14)
    consistently(lambda: app.dead() == 0, 3.0, because="twelve attempts would be over long since")
    starts = sorted(entry.time for entry in app.ledger.entries(event="start"))
    assert len(starts) - 10 <= 4 + 2 * (starts[-1] - starts[0]), "two a second, and what a window may hold at once"
    app.down(False)
    assert [result.get(timeout=60) for result in results] == names("n", 10)


@pytest.mark.long_on("redis")
def test_an_operator_opens_and_closes_a_breaker(gateway):
    app = gateway()
    app.worker(concurrency=2)
    assert app.send("call", "warm").get(timeout=20) == "warm"
    app.guardrails.force("gateway", "open", 3)
    result = app.send("call", "a")
    consistently(lambda: not app.ledger.count("a", "start"), 1.0, because="it is open")
    assert result.get(timeout=30) == "a", "the word of an operator has its time"
    assert "is open until" in guardrails(app, "resources", "open", "gateway", "--for", "10m")
    (shown,) = json.loads(guardrails(app, "resources", "--json"))
    assert (shown["name"], shown["condition"], shown["forced"]) == ("gateway", "open", True)
    assert "left to itself: closed" in guardrails(app, "resources", "auto", "gateway")


@pytest.mark.brokers("redis")
def test_a_worker_whose_tasks_name_a_resource_that_nobody_declared_does_not_start(gateway):
    app = gateway(declared=False)
    worker = app.workers.start(app.module, env=app.env, wait=False)
    assert worker.wait(40) != 0
    assert "testapp.call: resource = 'gateway' is not declared" in worker.log()
    assert "guardrails.resource('gateway')" in worker.log()
