"""A task that runs longer than its lease keeps it, because the worker's main process renews it."""

from __future__ import annotations

import uuid

import pytest

from tests.support import eventually

LEASE = 2.0
#: task and seconds it runs, in leases: slept, and spent in C code that lets no other thread of its process run
LONG = {"half as long again": ("effect", 1.5), "three and a half times": ("effect", 3.5), "twice, holding the GIL": ("hold_gil", 2.0)}


@pytest.fixture(scope="module")
def app(shared_deploy):
    app = shared_deploy(guardrails_lease_seconds=LEASE)
    app.start_workers(2, concurrency=3)
    return app


@pytest.fixture(scope="module")
def runs(app):
    """Start all at once, and publish each again as soon as it runs: the tests look at one each."""
    started = {}
    for which, (task, leases) in LONG.items():
        name = f"n{uuid.uuid4().hex[:8]}"
        started[which] = name, [app.send(task, name, leases * LEASE)]
    for which, (task, leases) in LONG.items():
        name, results = started[which]
        app.ledger.wait("start", name)
        results.append(app.send(task, name, leases * LEASE))
        results.append(app.app.send_task(f"testapp.{task}", args=(name, leases * LEASE)))
    return started


@pytest.mark.parametrize("which", LONG)
def test_a_task_longer_than_its_lease_never_runs_twice_at_once(app, runs, which):
    name, results = runs[which]
    assert [result.get(timeout=60) for result in results] == [name] * 3
    (span,) = app.ledger.spans(name)
    assert span.ended
    assert span.end - span.start >= LONG[which][1] * LEASE * 0.98, "it did run longer than its lease"
    assert app.ledger.count(name) == 1


def test_a_duplicate_that_comes_when_the_lease_would_have_ended_does_not_start_either(app, name):
    first = app.send("effect", name, 2.5 * LEASE)
    (start,) = app.ledger.wait("start", name)
    # the record says until when; the renewal moves it on past where it stood at first
    until = app.guardrails.lookup(f"effect:{name}").until
    eventually(lambda: app.guardrails.lookup(f"effect:{name}").until > until + LEASE)
    late = app.send("effect", name, 2.5 * LEASE)
    assert [late.get(timeout=60), first.get(timeout=60)] == [name] * 2
    assert [entry.run for entry in app.ledger.entries(event="start", key=name)] == [start.run]
