"""RabbitMQ takes letters back from who holds them for longer than its ``consumer_timeout``: a slow replay goes on."""

from __future__ import annotations

from typing import Any

import pytest

from celery_guardrails.dead_letters import Filter
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage
from tests.support import BrokerUnderTest

#: Seconds that a channel may hold a message, here; half an hour by default.
TIMEOUT = 2
CONF = f"consumer_timeout = {1000 * TIMEOUT}\n"


@pytest.mark.brokers("amqp")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize(("letters", "rate"), [(40, 5.0), (3, 0.3)], ids=["a few letters each time", "less than one letter each time"])
def test_a_replay_that_is_slower_than_the_brokers_patience_moves_each_letter_once(
    deploy: Any, private_rabbitmq: Any, kind: str, letters: int, rate: float
) -> None:
    node = private_rabbitmq(conf=CONF)
    node.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")  # how often it looks; a minute by default
    shop = deploy(on=BrokerUnderTest("amqp", node.url(), node), task_default_queue_type=kind)
    rails = shop.guardrails
    names = [f"t-{number}" for number in range(letters)]
    # those at the head are not meant: they are held while the others are moved, and stay
    for name in ("other-1", "other-2", *names):
        reason = "permanent" if name.startswith("other") else "exhausted"
        message = RawMessage(b"[[], {}, {}]", "application/json", "utf-8", {"task": "t", "id": name}, {}, "", shop.queue)
        rails.broker.dead_letter(message, shop.queue, DeathCertificate(reason, task="t", task_id=name, queue=shop.queue))
    report = rails.dead_letters.replay(Filter(reason="exhausted"), rate=rate)
    assert (report.replayed, report.failed, report.stopped) == (letters, 0, "")
    assert [letter.headers["id"] for letter in shop.letters()] == ["other-1", "other-2"]
    waiting = shop.broker.drain(shop.queue)
    assert [message.headers["id"] for message in waiting] == names, "in their order, and none twice"
    assert {message.headers[TRAVEL_HEADER]["replays"] for message in waiting} == {1}
