"""What RabbitMQ itself refuses, as kombu and py-amqp raise it where a task publishes, and what the shipped rules make of that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.exceptions import OperationalError

from tests.support import BrokerUnderTest, RabbitNode, free_port
from tests.support.sessions import kind_and_rule, raised_by

pytestmark = pytest.mark.brokers("amqp")


@pytest.fixture
def connection(broker: BrokerUnderTest) -> Iterator[Connection]:
    with Connection(broker.url, transport_options={"confirm_publish": True}) as connection:
        yield connection


def publish(connection: Connection, body: Any, **options: Any) -> None:
    with connection.channel() as channel, connection.Producer(channel) as producer:
        producer.publish(body, **options)


def test_a_broker_that_nobody_serves_is_retryable() -> None:
    with Connection(f"amqp://127.0.0.1:{free_port()}//", connect_timeout=2) as nobody:
        assert kind_and_rule(raised_by(nobody.connect))[0] == "retryable"
        error = raised_by(nobody.ensure_connection, None, 1, 0, 0, 0)
        assert isinstance(error, OperationalError)
        assert kind_and_rule(error)[0] == "retryable"


def test_a_password_and_a_virtual_host_that_are_wrong_are_permanent(broker: BrokerUnderTest) -> None:
    wrong = Connection(broker.url)
    wrong.password = "wrong"
    assert kind_and_rule(raised_by(wrong.connect)) == ("permanent", "amqp.AccessRefused")
    elsewhere = Connection(broker.url)
    elsewhere.virtual_host = "nowhere"
    assert kind_and_rule(raised_by(elsewhere.connect)) == ("permanent", "amqp.NotAllowed")


def test_exchanges_that_are_not_there_and_other_arguments_are_permanent(connection: Connection, queue: str) -> None:
    assert kind_and_rule(raised_by(lambda: publish(connection, "x", exchange="nowhere", routing_key="x"))) == ("permanent", "amqp.NotFound")
    Queue(queue, channel=connection.channel(), durable=True).declare()
    other = Queue(queue, channel=connection.channel(), durable=True, max_length=5)
    assert kind_and_rule(raised_by(other.declare)) == ("permanent", "amqp.PreconditionFailed")


def test_a_queue_that_another_connection_holds_is_retryable(broker: BrokerUnderTest, connection: Connection, queue: str) -> None:
    Queue(queue, channel=connection.channel(), exclusive=True).declare()
    with Connection(broker.url) as other:
        assert kind_and_rule(raised_by(Queue(queue, channel=other.channel(), passive=True).queue_declare, False, True))[0] == "retryable"


def test_a_full_queue_that_refuses_is_retryable(connection: Connection, queue: str) -> None:
    Queue(queue, channel=connection.channel(), queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish"}).declare()

    def fill() -> None:
        for _ in range(5):
            publish(connection, "x", routing_key=queue)

    assert kind_and_rule(raised_by(fill)) == ("retryable", "amqp.MessageNacked")


def test_what_cannot_be_serialised_is_permanent(connection: Connection, queue: str) -> None:
    assert kind_and_rule(raised_by(lambda: publish(connection, object(), routing_key=queue))) == ("permanent", "kombu.EncodeError")


def test_a_connection_that_the_broker_closes_is_retryable(broker: BrokerUnderTest, connection: Connection, queue: str) -> None:
    if not isinstance(broker.server, RabbitNode):
        pytest.skip("only a private node can be told to close connections")
    connection.connect()
    broker.server.ctl("close_all_connections", "-p", broker.vhost, "by a test")

    def use() -> None:
        for _ in range(20):
            publish(connection, "x", routing_key=queue)

    assert kind_and_rule(raised_by(use))[0] == "retryable"
