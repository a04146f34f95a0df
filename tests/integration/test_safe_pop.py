"""Redis: what the broker has handed to a worker's main process survives that process, also before it was looked at."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support import eventually

#: Seconds; what a dead worker held comes back after the visibility timeout and the next sweep.
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}

pytestmark = pytest.mark.brokers("redis")


@pytest.fixture
def app(shared_deploy):
    return shared_deploy(guardrails_lease_seconds=2, broker_transport_options=REDIS)


@pytest.mark.parametrize("idle_for", [0.0, 1.5], ids=["just after a task", "waiting"])
def test_a_message_that_was_handed_to_a_worker_that_is_killed_before_it_looks_is_not_lost(app, name, shared_workers, idle_for):
    worker = app.start_workers(1)[0]
    app.send("effect", f"{name}.before").get(timeout=20)
    time.sleep(idle_for)
    worker.signal(signal.SIGSTOP)  # not scheduled for a moment, or busy
    results = [app.send("effect", f"{name}.{number}") for number in range(3)]
    time.sleep(0.5)  # time for the broker to answer a worker that waits
    worker.signal(signal.SIGKILL)
    eventually(lambda: not worker.alive(), 10)
    app.start_workers(1)
    assert [result.get(timeout=30) for result in results] == [f"{name}.{number}" for number in range(3)]
    assert [app.ledger.count(f"{name}.{number}") for number in range(3)] == [1, 1, 1]
    shared_workers.destroy()
