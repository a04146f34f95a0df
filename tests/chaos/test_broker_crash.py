"""What waits in a broker, or is dead there, survives a broker that is killed.

In ``make test-long`` and not in ``make test``: RabbitMQ may need three minutes (see below) to send on what fell due in mid-recovery.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from celery_guardrails.errors import PublishFailed
from tests.integration.test_brokers_under_failure import CERTIFICATE, MESSAGE, connect, ids
from tests.support import eventually


def wait_for(port: Any, queue: str, count: int, timeout: float = 30) -> None:
    def arrived() -> bool:
        if hasattr(port, "pump"):
            port.pump()
        return bool(port.depth(queue) >= count)

    eventually(arrived, timeout, every=0.1, ignoring=(PublishFailed,), because=lambda: f"{port.depth(queue)} of {count}")


@pytest.mark.timeout(420)
@pytest.mark.parametrize("target", ["classic", "quorum"])
def test_on_rabbitmq_what_waits_and_what_is_dead_survives_a_crash(private_rabbitmq, queue, target):
    node = private_rabbitmq()
    with closing(connect(node.url(), conf={"task_create_missing_queue_type": target, "task_default_queue_type": target})) as port:
        port.declare([queue])
        port.delay(MESSAGE, queue, 0.5)
        wait_for(port, queue, 1)
        # A quorum queue of RabbitMQ 3.10 that is killed in its first second has no leader ever after.
        node.stop()
        node.start()
        for number in range(40):
            port.delay(MESSAGE.with_headers(id=str(number)), queue, 0.5 + number / 8)
            port.dead_letter(MESSAGE, queue, CERTIFICATE)
        node.restart()
        # Mostly at once; but what falls due while RabbitMQ recovers its queues, and not yet its bindings, has no route, and the
        # next try is after dead_letter_worker_publisher_confirm_timeout: 180 s.
        wait_for(port, queue, 41, timeout=220)
        assert sorted(map(int, ids(port, queue))) == sorted([1, *range(40)])
        wait_for(port, f"{queue}.dead", 40)


def test_on_redis_what_waits_and_what_is_dead_survives_a_crash(private_redis, queue):
    server = private_redis(persistent=True)
    with closing(connect(server.url())) as port:
        for number in range(40):
            port.delay(MESSAGE.with_headers(id=str(number)), queue, 0.5 + number / 40)
            port.dead_letter(MESSAGE, queue, CERTIFICATE)
        server.restart()
        wait_for(port, queue, 40)
        assert sorted(map(int, ids(port, queue))) == list(range(40))
        assert port.depth(f"{queue}.dead") == 40
