"""Quorum queues count how often a message came back: deploys must not use that up for what never started."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support import eventually

#: RabbitMQ 4 has 20 by default.
LIMIT = 2
DEPLOYS = 4


@pytest.fixture
def app(deploy, broker, queue):
    """A queue that somebody has declared with a limit, and a worker that takes four messages for each that it runs."""
    with broker.connection() as connection:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": LIMIT}
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    return deploy(task_default_queue_type="quorum")


@pytest.mark.chaos
@pytest.mark.brokers("amqp")
def test_what_deploys_find_waiting_in_a_worker_never_comes_to_the_delivery_limit(app, queue):
    names = [f"n{number}" for number in range(4)]
    results = [app.send("effect", name) for name in names]
    for _ in range(DEPLOYS):
        worker = app.worker(concurrency=1, queues=[f"{queue}.idle"])
        (child,) = worker.children_up(app.app)
        os.kill(child, signal.SIGSTOP)  # so that nothing begins
        eventually(lambda: app.app.control.add_consumer(queue, reply=True, timeout=5, limit=1), 30)
        worker.wait_log(r"Task testapp\.effect\[.*\] received", times=len(names))
        worker.terminate()
        worker.wait_log("Warm shutdown")
        os.kill(child, signal.SIGCONT)
        assert worker.wait(60) == 0
        eventually(lambda: (app.depth(), app.dead()) == (len(names), 0), 30, because=lambda: f"all wait: {app.depth()}, {app.dead()} dead")
    assert app.ledger.count(event="start") == 0
    app.worker(concurrency=1)
    assert [result.get(timeout=60) for result in results] == names
    assert app.ledger.counts("start") == dict.fromkeys(names, 1)
    assert app.dead() == 0
