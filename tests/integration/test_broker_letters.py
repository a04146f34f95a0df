"""Letters that RabbitMQ makes by itself: where they land, what they say, who is told, and that none is lost on the way."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from amqp.exceptions import MessageNacked
from celery import states
from kombu import Queue
from kombu.exceptions import OperationalError

from celery_guardrails.dead_letters import Filter
from celery_guardrails.errors import DeadLetteredByBroker
from celery_guardrails.integration.broker_letters import Notices
from celery_guardrails.policy.delivery import TRAVEL_HEADER
from tests.support import Deployment, consistently, eventually
from tests.support.http import HttpServer

pytestmark = pytest.mark.brokers("amqp")


def publish(shop: Deployment, queue: Queue, name: str, **options: Any) -> Any:
    """Publish a task as anybody would who names a queue object."""
    return shop.task("effect").apply_async((name,), queue=queue, **options)


def reject(shop: Deployment, queue: str) -> None:
    """What a consumer of another program does with a message that it does not like."""
    with shop.broker.connection() as connection:
        channel = connection.default_channel
        message = eventually(lambda: channel.basic_get(queue))
        channel.basic_reject(message.delivery_tag, requeue=False)


def vanish(shop: Deployment, queue: str) -> None:
    """What a consumer does that is killed with the message in hand."""
    with shop.broker.connection() as connection:
        assert eventually(lambda: connection.default_channel.basic_get(queue))


def expire(shop: Deployment, queue: Queue) -> None:
    publish(shop, queue, "n", expiration=0.05)


def be_rejected(shop: Deployment, queue: Queue) -> None:
    publish(shop, queue, "n")
    reject(shop, queue.name)


def be_pushed_out(shop: Deployment, queue: Queue) -> None:
    publish(shop, queue, "n")
    publish(shop, queue, "younger")


def be_refused(shop: Deployment, queue: Queue) -> None:
    publish(shop, queue, "older")
    with pytest.raises((MessageNacked, OperationalError)):
        publish(shop, queue, "n", retry=False)


def wear_out(shop: Deployment, queue: Queue) -> None:
    publish(shop, queue, "n")
    vanish(shop, queue.name)
    vanish(shop, queue.name)


#: Cause in the letter, what the queue says of itself, and what happens to the message.
DEATHS: dict[str, list[tuple[str, dict[str, Any], Callable[[Deployment, Queue], None]]]] = {
    "classic": [
        ("expired", {}, expire),
        ("rejected", {}, be_rejected),
        ("maxlen", {"x-max-length": 1}, be_pushed_out),
        ("maxlen", {"x-max-length": 1, "x-overflow": "reject-publish-dlx"}, be_refused),
    ],
    "quorum": [
        ("expired", {}, expire),
        ("rejected", {}, be_rejected),
        ("maxlen", {"x-max-length": 1, "x-overflow": "drop-head"}, be_pushed_out),
        ("delivery_limit", {"x-delivery-limit": 1}, wear_out),
    ],
}


@pytest.mark.parametrize("kind", DEATHS)
def test_however_a_message_dies_in_the_broker_its_letter_tells_the_cause_and_is_replayed_to_its_queue(deploy: Any, kind: str) -> None:
    shop: Deployment = deploy()
    service = shop.guardrails.dead_letters
    for number, (cause, arguments, die) in enumerate(DEATHS[kind]):
        queue = Queue(f"{shop.queue}.{number}", queue_arguments={"x-queue-type": kind, **arguments})
        die(shop, queue)
        dead = Filter(queue=queue.name)
        [letter] = eventually(lambda dead=dead: list(service.list(dead)), 30, because=f"{cause} in a {kind} queue")
        assert (letter.reason, letter.certificate.error, letter.queue) == ("broker", f"broker.{cause}", queue.name)
        assert (letter.task, letter.payload.args) == ("testapp.effect", ("n",))
        [group] = eventually(lambda dead=dead: service.groups(dead), 30)
        assert (group.reason, group.error, group.count) == ("broker", f"broker.{cause}", 1)

        shop.broker.drain(queue.name)
        assert service.replay(dead).replayed == 1
        [message] = eventually(lambda queue=queue: shop.broker.drain(queue.name), 30)
        assert (message.headers["id"], message.headers[TRAVEL_HEADER]["key"]) == (letter.task_id, letter.key)
        assert "x-death" not in message.headers
        assert shop.broker.depth(f"{queue.name}.dead") == 0


# -- who is told ----------------------------------------------------------------------------------------------------


def deaths(receiver: HttpServer) -> list[dict[str, Any]]:
    """The kinds of letters that the alerts told of."""
    return [kind for *_, body in receiver.requests for kind in json.loads(body)["guardrails"]["kinds"]]


@pytest.mark.parametrize("kind", ["classic", pytest.param("quorum", marks=pytest.mark.chaos)])
def test_a_worker_tells_of_a_letter_that_the_broker_made_as_of_one_of_its_own(deploy: Any, receiver: HttpServer, kind: str) -> None:
    shop: Deployment = deploy(
        guardrails_alert_webhook=receiver.url,
        guardrails_broker_letters_seconds=0.2,
        task_default_queue_type=kind,
        task_queue_max_priority=None,
    )
    idle, busy = shop.queue, f"{shop.queue}.busy"
    shop.broker.used += [busy, f"{busy}.dead"]
    # as a worker's start does it; then that worker is gone, and others of the app go on
    shop.guardrails.broker.declare([idle])
    shop.start_workers(2, queues=[busy], concurrency=1)
    errback = shop.task("errback").s().set(queue=busy)

    done = shop.task("effect").apply_async(("done",), queue=busy)
    assert done.get(timeout=30) == "done"
    lost = shop.task("effect").apply_async(("lost",), queue=idle, expiration=0.05, link_error=errback)
    with pytest.raises(DeadLetteredByBroker, match="expired"):
        lost.get(timeout=30)
    # a copy of a message that has completed dies as well: its result stands
    shop.task("effect").apply_async(("done",), queue=idle, expiration=0.05, task_id=done.id)
    eventually(lambda: shop.dead() == 2, 30, because="both letters lie where the broker put them")
    eventually(lambda: shop.ledger.count("errback", "errback") == 1, 30)
    notices = shop.guardrails.broker.notices
    eventually(lambda: shop.broker.depth(notices) == 0, 30)

    [told] = eventually(lambda: deaths(receiver), 30)
    assert (told["reason"], told["error"], told["queue"], told["task"]) == ("broker", "broker.expired", idle, "testapp.effect")
    assert (done.state, lost.state) == (states.SUCCESS, states.FAILURE)
    eventually(lambda: sum(worker.log().count("is dead: broker") for worker in shop.workers.all) == 2, 30, because="each is logged once")
    letters = list(shop.guardrails.dead_letters.list())
    assert {letter.task_id for letter in letters} == {lost.id, done.id}
    # what is replayed, imported or restored is no new death
    shop.guardrails.broker.restore_letter(letters[0].message, idle)
    assert shop.guardrails.dead_letters.replay(Filter(queue=idle), to_queue=busy).replayed == 3
    eventually(lambda: shop.app.AsyncResult(lost.id).state == states.SUCCESS, 30)
    consistently(lambda: shop.broker.depth(notices) == 0)
    assert shop.ledger.count("errback", "errback") == 1


def test_only_letters_of_others_leave_a_notice_and_none_is_without_its_letter_and_the_switch_is_a_switch(deploy: Any) -> None:
    shop: Deployment = deploy()
    broker: Any = shop.guardrails.broker
    broker.declare([shop.queue])
    with shop.broker.connection() as connection, contextlib.closing(connection.Producer()) as producer:
        producer.publish(
            {}, exchange="guardrails.dlx", routing_key=shop.queue, headers={"guardrails": {"reason": "exhausted"}}, mandatory=True
        )
        assert (eventually(shop.dead), shop.broker.depth(broker.notices)) == (1, 0)
        producer.publish({}, exchange="guardrails.dlx", routing_key=shop.queue, headers={"from": "another program"}, mandatory=True)
        eventually(lambda: (shop.dead(), shop.broker.depth(broker.notices)) == (2, 1))
        # the binding that an operator deletes is not the only way
        connection.default_channel.queue_unbind(shop.dead_queue, "guardrails.dlx", shop.queue)
        producer.publish({}, exchange="guardrails.dlx", routing_key=shop.queue, mandatory=True)
        eventually(lambda: (shop.dead(), shop.broker.depth(broker.notices)) == (3, 2))
        # nor does what dies while there is no queue for it vanish
        connection.default_channel.queue_delete(shop.dead_queue)
        producer.publish({}, exchange="guardrails.dlx", routing_key=shop.queue, headers={"id": "late", "task": "t"}, mandatory=True)
        notices = broker.notices
        shop.broker.drain(notices, limit=2)
        Notices(shop.guardrails).round()
        assert [letter.task_id for letter in shop.guardrails.dead_letters.list()] == ["late"]
        assert shop.broker.depth(notices) == 0
        off: Deployment = deploy(guardrails_broker_letters_seconds=None)
        off.guardrails.broker.declare([shop.queue])
        producer.publish({}, exchange="guardrails.dlx", routing_key=shop.queue, mandatory=True)
        eventually(lambda: shop.dead() == 2)
        assert (off.guardrails.broker.notices, shop.broker.depth(notices)) == (None, 0)


# -- what stays where it was ----------------------------------------------------------------------------------------


def test_a_letter_that_its_full_queue_refuses_stays_a_message_and_is_tried_again(deploy: Any) -> None:
    shop: Deployment = deploy()
    with shop.broker.connection() as connection:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        connection.default_channel.queue_declare(shop.dead_queue, durable=True, auto_delete=False, arguments=arguments)
    shop.broker.publish_raw(shop.dead_queue, b"it is full")
    worker = shop.worker(concurrency=1)
    result = shop.send("fail_for_good", "n")
    shop.ledger.wait("start", "n", timeout=30)
    consistently(lambda: shop.dead() == 1 and result.state != states.FAILURE, 1.5)
    assert [message.body for message in shop.broker.drain(shop.dead_queue)] == [b"it is full"]
    eventually(lambda: shop.dead() == 1, 40)
    eventually(lambda: result.state == states.FAILURE, 30)
    [letter] = shop.letters()
    assert letter.headers["id"] == result.id
    assert worker.alive()
