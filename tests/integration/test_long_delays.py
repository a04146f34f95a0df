"""Waits of up to thirty days in real brokers: that they are due at the right time is seen without waiting for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import Celery

from celery_guardrails.config import Settings
from celery_guardrails.integration.brokers import make_broker
from celery_guardrails.integration.brokers.delays import LEVELS, TICK, level_name
from celery_guardrails.policy.delivery import RawMessage
from celery_guardrails.policy.retry import RetryPolicy
from tests.support import BrokerUnderTest, RabbitNode, eventually

DAY = 86_400.0
MONTH = 30 * DAY
MESSAGE = RawMessage(b"{}", "application/json", "utf-8", {"id": "late", "task": "shop.charge"}, {"delivery_mode": 2}, "", "shop")


@pytest.fixture
def port(broker: BrokerUnderTest) -> Iterator[Any]:
    app = Celery("shop", broker=broker.url, set_as_current=False)
    with closing(make_broker(app, Settings(), timeout=10.0)) as port:
        yield port


def ids(port: Any, queue: str) -> list[str]:
    return [letter.message.headers["id"] for letter in port.browse(queue)]


def levels_passed(broker: BrokerUnderTest, kind: str, queue: str) -> Iterator[int]:
    """Yield the levels at which the one message that waits is found, on its way from the longest to its queue.

    It is rejected where it would expire: the broker then does the same with it, at once.
    """
    with broker.connection() as connection:
        channel = connection.default_channel
        for level in reversed(range(LEVELS)):
            found = channel.basic_get(level_name(kind, level))
            if found is not None:
                yield level
                channel.basic_reject(found.delivery_tag, requeue=False)
                eventually(lambda level=level: _arrived(channel, kind, level, queue), 10, because="it is handed on")


def _arrived(channel: Any, kind: str, above: int, queue: str) -> bool:
    places = [queue, *(level_name(kind, level) for level in range(above))]
    return any(channel.queue_declare(place, passive=True).message_count for place in places)


def times_to_live(broker: BrokerUnderTest) -> dict[str, float]:
    """Seconds that a message stays in each queue, as the broker has it."""
    assert isinstance(broker.server, RabbitNode)
    listed = json.loads(broker.server.ctl("list_queues", "-p", broker.vhost, "name", "arguments", "--formatter", "json"))
    return {row["name"]: value / 1000 for row in listed for name, _, value in row["arguments"] if name == "x-message-ttl"}


@pytest.mark.brokers("amqp")
@pytest.mark.parametrize("seconds", [MONTH, MONTH - TICK, 12 * DAY + 3 * 3600 + 1], ids=["30 days", "a tick less", "12 days 3 h 1 s"])
def test_on_rabbitmq_the_levels_that_a_long_wait_passes_add_up_to_it(
    port: Any, broker: BrokerUnderTest, queue: str, seconds: float
) -> None:
    if broker.server is None:
        pytest.skip("only our own server tells the arguments of its queues")
    port.delay(MESSAGE, queue, seconds)
    assert port.depth(queue) == 0
    lives = times_to_live(broker)
    passed = [lives[level_name("quorum", level)] for level in levels_passed(broker, "quorum", queue)]
    assert sum(passed) == seconds
    assert eventually(lambda: ids(port, queue)) == ["late"]


@pytest.mark.brokers("redis")
def test_on_redis_a_long_wait_is_due_by_the_servers_clock_and_then_moved(port: Any, broker: BrokerUnderTest, queue: str) -> None:
    assert broker.server is not None
    client: Any = broker.server.client(int(broker.vhost))
    before = client.time()[0]
    port.delay(MESSAGE, queue, MONTH)
    ((member, due),) = client.zrange("shop:delayed", 0, -1, withscores=True)
    assert before + MONTH <= due / 1000 <= client.time()[0] + 1 + MONTH
    moved, wait = port.pump()
    assert moved == 0
    assert MONTH - 60 < wait / 1000 <= MONTH
    assert port.depth(queue) == 0
    client.zadd("shop:delayed", {member: due - MONTH * 1000})  # a month later
    eventually(lambda: port.pump()[0])
    assert ids(port, queue) == ["late"]


def test_a_message_that_waits_for_a_month_holds_up_none_that_comes_after_it(port: Any, queue: str) -> None:
    port.delay(MESSAGE, queue, MONTH)
    for number in range(3):
        port.delay(MESSAGE.with_headers(id=f"soon{number}"), queue, 0.5)

    def arrived() -> bool:
        if hasattr(port, "pump"):
            port.pump()
        return port.depth(queue) == 3

    eventually(arrived, 5)
    assert sorted(ids(port, queue)) == ["soon0", "soon1", "soon2"]


def test_a_policy_may_wait_a_month() -> None:
    policy = RetryPolicy(max_attempts=40, base=1.0, cap=MONTH, jitter="none")
    assert policy.delay(39, 0.0) == MONTH
    assert policy.delay(1, 0.0, retry_after=MONTH) == MONTH
