"""RabbitMQ out of disk or memory: it takes no message from publishers, and says nothing to that. What is not published stays.

What was given up may have reached the broker's end of the connection and is taken when the alarm is over: a letter may be there twice.
"""

from __future__ import annotations

from typing import Any

import pytest
from celery import states

from tests.support import BrokerUnderTest, consistently, eventually

#: What raises an alarm on a node, and what ends it.
ALARMS = {
    "disk": (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "50MB")),
    "memory": (("set_vm_memory_high_watermark", "absolute", "1000000"), ("set_vm_memory_high_watermark", "absolute", "1000000000")),
}


@pytest.mark.brokers("amqp")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("alarm", ALARMS)
def test_while_publishers_are_blocked_what_would_be_dead_or_retried_stays_and_comes_afterwards(
    deploy: Any, private_rabbitmq: Any, alarm: str
) -> None:
    node = private_rabbitmq()
    shop = deploy(on=BrokerUnderTest("amqp", node.url(), node), guardrails_drain_seconds=5)
    worker = shop.worker(concurrency=2)
    assert shop.send("effect", "before").get(timeout=30) == "before"
    begin, end = ALARMS[alarm]

    def letters() -> set[str]:
        return {letter.headers["id"] for letter in shop.letters()}

    dead = shop.send("fail_for_good", "dead")
    eventually(lambda: shop.dead() == 1, 30)
    # both fail after the alarm has begun
    doomed = shop.task("fail_later").apply_async(("doomed", "PermanentError", 3.0))
    again = shop.task("fail_later").apply_async(("again", "ConnectionError", 3.0, 1))
    shop.ledger.wait("start", times=4, timeout=30)
    node.ctl(*begin)
    shop.ledger.wait("failed", times=2, timeout=30)
    consistently(lambda: doomed.state not in states.READY_STATES and shop.dead() == 1, 14.0, because="a publish is given up after 10 s")
    assert shop.ledger.count("again") == shop.ledger.count("doomed") == 0
    assert worker.alive()
    node.ctl(*end)
    eventually(lambda: letters() == {dead.id, doomed.id}, 60)
    assert again.get(timeout=90) == "again"
    eventually(lambda: doomed.state == states.FAILURE, 30)

    # a worker that is told to stop meanwhile does not wait for the end of it, and what it had is still there
    last = shop.task("fail_later").apply_async(("last", "PermanentError", 3.0))
    shop.ledger.wait("start", "last", timeout=30)
    node.ctl(*begin)
    shop.ledger.wait("failed", "last", timeout=30)
    worker.stop(60)
    assert last.state not in states.READY_STATES
    node.ctl(*end)
    shop.worker(concurrency=1)
    eventually(lambda: letters() == {dead.id, doomed.id, last.id}, 90)
    eventually(lambda: last.state == states.FAILURE, 30)
