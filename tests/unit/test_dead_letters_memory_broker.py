"""The broker in memory, which the tests of the service and the users' harness stand on."""

from __future__ import annotations

import pytest

from celery_guardrails.errors import DeadLetterError, PublishFailed
from celery_guardrails.ports import Broker
from celery_guardrails.testing.clock import FakeClock
from celery_guardrails.testing.memory_broker import MemoryBroker
from tests.support.dead_letters import certificate_for, task_message


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def broker(clock: FakeClock) -> MemoryBroker:
    made: Broker = MemoryBroker(clock=clock)
    assert isinstance(made, MemoryBroker)
    return made


def names(broker: MemoryBroker, queue: str) -> list[str]:
    return [message.headers["task"] for message in broker.messages(queue)]


def test_messages_come_out_in_the_order_they_went_in(broker):
    for name in "abc":
        broker.send(task_message(name), "celery")
    assert names(broker, "celery") == ["a", "b", "c"]
    assert broker.depth("celery") == 3
    assert broker.depth("nowhere") == 0


def test_a_delayed_message_is_ready_when_its_time_has_come_and_not_before(broker, clock):
    broker.delay(task_message("later"), "celery", 10)
    broker.delay(task_message("sooner"), "celery", 5)
    broker.send(task_message("now"), "celery")
    assert names(broker, "celery") == ["now"]
    assert broker.next_due == clock.now() + 5
    clock.advance(5)
    assert names(broker, "celery") == ["now", "sooner"]
    clock.advance(5)
    assert names(broker, "celery") == ["now", "sooner", "later"]
    assert broker.next_due is None


def test_a_dead_letter_is_the_message_with_the_certificate(broker):
    message = task_message("t")
    certificate = certificate_for(message)
    broker.dead_letter(message, "celery", certificate)
    [letter] = broker.messages("celery.dead")
    assert letter == message.with_headers(guardrails=certificate.to_header())


def test_a_message_in_hand_is_neither_ready_nor_gone_and_goes_back_to_its_place(broker):
    for name in "abc":
        broker.send(task_message(name), "celery")
    number, message = broker.receive("celery")
    assert message.headers["task"] == "a"
    assert names(broker, "celery") == ["b", "c"]
    broker.requeue(number)
    assert names(broker, "celery") == ["a", "b", "c"]
    number, _ = broker.receive("celery")
    broker.ack(number)
    broker.requeue(number)
    assert names(broker, "celery") == ["b", "c"]
    assert broker.receive("empty") is None


def test_browsing_leaves_what_is_not_taken_where_it_was(broker):
    for name in "abcd":
        broker.send(task_message(name), "celery")
    browsing = broker.browse("celery")
    next(browsing)
    broker.take(next(browsing))
    browsing.close()
    assert names(broker, "celery") == ["a", "c", "d"]


def test_browsing_sees_what_comes_in_meanwhile_and_not_what_is_gone(broker):
    for number in range(600):
        broker.send(task_message(str(number)), "celery")
    seen = []
    for letter in broker.browse("celery"):
        seen.append(letter.message.headers["task"])
        if len(seen) == 1:
            broker.receive("celery")
            broker.receive("celery")
            broker.send(task_message("last"), "celery")
    assert seen == ["0", *map(str, range(2, 600)), "last"]


def test_a_letter_can_be_taken_once(broker):
    broker.send(task_message(), "celery")
    [letter] = broker.browse("celery")
    broker.take(letter)
    with pytest.raises(DeadLetterError, match="somebody else"):
        broker.take(letter)


def test_a_closed_broker_confirms_nothing(broker):
    broker.close()
    with pytest.raises(PublishFailed):
        broker.send(task_message(), "celery")
    with pytest.raises(PublishFailed):
        broker.delay(task_message(), "celery", 1)
    with pytest.raises(PublishFailed):
        broker.dead_letter(task_message(), "celery", certificate_for(task_message()))


def test_it_can_be_made_to_break_at_any_point(clock):
    points = []
    broker = MemoryBroker(clock=clock, on_operation=points.append)
    broker.send(task_message(), "celery")
    broker.delay(task_message(), "celery", 1)
    [letter] = broker.browse("celery")
    broker.take(letter)
    assert points == ["before send", "after send", "before delay", "after delay", "before take", "after take"]


def test_time_does_not_run_backwards_and_chance_repeats_itself():
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1)
    assert FakeClock(seed=3).fraction() == FakeClock(seed=3).fraction()
