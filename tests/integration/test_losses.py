"""Processes that are killed in the middle of a task: it starts again soon, pays for the crash only, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from celery_guardrails.policy.lease import RecordState
from tests.support import eventually

LEASE = 3.0
#: Seconds. On Redis what a dead worker held comes back after the visibility timeout and the next sweep.
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


@pytest.fixture(scope="module")
def deployed(shared_deploy, shared_broker):
    options = REDIS if shared_broker.kind == "redis" else {}
    return shared_deploy(guardrails_lease_seconds=LEASE, broker_transport_options=options)


@pytest.fixture
def app(deployed, shared_workers):
    """Two workers, whatever the test before has done to them."""
    missing = 2 - sum(worker.alive() for worker in shared_workers.all)
    if missing:
        deployed.start_workers(missing)
    return deployed


def worker_of(workers, pid):
    return next(worker for worker in workers.all if worker.alive() and pid in worker.children())


def two_starts(app, name, timeout):
    """Return first and second start of a body."""
    return app.ledger.wait("start", name, times=2, timeout=timeout)


# -- the child ------------------------------------------------------------------------------------------------------


def test_the_task_of_a_killed_child_starts_again_long_before_its_lease_would_have_ended(deploy, name):
    app = deploy(guardrails_lease_seconds=120)
    app.worker(concurrency=2)
    result = app.send("token", name, 3.0)
    (first,) = app.ledger.wait("start", name)
    killed = time.monotonic()
    os.kill(first.pid, signal.SIGKILL)
    _, second = two_starts(app, name, 30)
    assert second.time - killed <= 20, "at once, as soon as its process is missed"
    assert second.pid != first.pid
    assert second.fields["attempt"] == first.fields["attempt"] == 1, "no attempt is charged"
    assert (first.fields["crashes"], second.fields["crashes"]) == (0, 1), "one crash is"
    assert second.fields["fence"] > first.fields["fence"]
    assert result.get(timeout=30) == second.run
    assert app.ledger.count(name) == 1


def test_a_child_killed_between_effect_and_record_repeats_its_effect_rather_than_lose_it(app, name):
    result = app.send("kill_after_effect", name)
    assert result.get(timeout=30) == name
    effects = app.ledger.entries(event="effect", key=name)
    assert [(e.fields["attempt"], e.fields["crashes"]) for e in effects] == [(1, 0), (1, 1)]
    assert app.guardrails.lookup(f"effect:{name}").state is RecordState.COMPLETED


def test_a_duplicate_that_waits_for_a_killed_child_does_not_run_beside_the_redelivery(app, name):
    first = app.send("token", name, 1.5)
    (start,) = app.ledger.wait("start", name)
    others = [app.send("token", name, 1.5) for _ in range(3)]
    os.kill(start.pid, signal.SIGKILL)
    assert len({result.get(timeout=60) for result in [first, *others]}) == 1
    assert app.ledger.count(name) == 1
    assert app.ledger.count(name, "start") == 2
    assert app.ledger.overlaps(name) == []


# -- the main process -----------------------------------------------------------------------------------------------


def test_the_task_of_a_killed_worker_starts_on_another_when_its_lease_has_ended(app, name, shared_workers):
    result = app.send("token", name, 2.0)
    (first,) = app.ledger.wait("start", name)
    victim = worker_of(shared_workers, first.pid)
    killed = time.monotonic()
    victim.kill()
    _, second = two_starts(app, name, 60)
    assert second.time - killed <= LEASE + 20
    assert worker_of(shared_workers, second.pid) is not victim
    assert second.time >= first.time + LEASE - 0.5, "not before the lease of the dead one has ended"
    assert second.fields["attempt"] == 1, "no attempt is charged"
    assert second.fields["crashes"] == 0, "nor a crash: another may have run beside it"
    assert result.get(timeout=30) == second.run
    assert app.ledger.count(name) == 1


def test_a_body_that_kills_its_main_process_is_done_elsewhere(app, name):
    result = app.send("kill_main", name)
    assert result.get(timeout=60) == name
    assert app.ledger.count(name) == 1
    assert app.ledger.overlaps(name) == []


def test_no_effect_is_lost_while_children_and_a_main_process_are_killed_under_load(app, name, shared_workers):
    results = {f"{name}.{number}": app.send("effect", f"{name}.{number}", 0.5) for number in range(40)}
    killed = []

    def running():
        """Return a body that runs in a worker of ours now."""
        spans = [span for span in app.ledger.spans() if span.key in results and not span.ended and span.pid not in killed]
        children = {pid for worker in shared_workers.all if worker.alive() for pid in worker.children()}
        return next((span.pid for span in spans if span.pid in children), None)

    def kill(pid):
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    for _ in range(3):
        kill(eventually(running, 30, every=0.005))
    pid = eventually(running, 30, every=0.005)
    victim = worker_of(shared_workers, pid)
    killed += victim.children()
    victim.kill()
    assert {key: result.get(timeout=60) for key, result in results.items()} == {key: key for key in results}
    counts = app.ledger.counts()
    assert [key for key in results if not counts[key]] == []
    # only where a process died after the effect and before its record may it have been done again
    repeated = {key for key in results if counts[key] > 1}
    assert repeated <= {span.key for span in app.ledger.spans() if span.pid in killed}
    assert [pair for key in results for pair in app.ledger.overlaps(key)] == []
    assert app.dead() == 0
    attempts = {entry.fields["attempt"] for entry in app.ledger.entries(event="start") if entry.key in results}
    assert attempts == {1}
