"""The broker port when the broker is away, full, frozen or killed, and across a fork."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery

from celery_guardrails.config import Settings
from celery_guardrails.errors import DeadLetterError, PublishFailed
from celery_guardrails.integration.brokers import make_broker
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import RawMessage
from tests.support import BrokerUnderTest, Proxy, eventually

MESSAGE = RawMessage(b"[[], {}, {}]", "application/json", "utf-8", {"id": "1"}, {"delivery_mode": 2}, "", "q")
CERTIFICATE = DeathCertificate("permanent")
AWAY = {"redis": "redis://127.0.0.1:1/0", "amqp": "amqp://127.0.0.1:1//"}


def connect(url: str, *, timeout: float = 10.0, conf: dict[str, Any] | None = None, **settings: Any) -> Any:
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.update(conf or {})
    return make_broker(app, Settings(**settings), timeout=timeout)


@pytest.fixture
def wire(broker: BrokerUnderTest, proxy: Callable[[int], Proxy]) -> Proxy:
    """The network between the port and the broker."""
    assert broker.server is not None
    return proxy(broker.server.port)


@pytest.fixture
def port(request: pytest.FixtureRequest, broker: BrokerUnderTest, wire: Proxy) -> Iterator[Any]:
    """The port under test, connected over the proxy; with the seconds that a broker is waited for as its parameter."""
    assert broker.server is not None
    seconds = getattr(request, "param", 10.0)
    with closing(connect(broker.url.replace(str(broker.server.port), str(wire.port)), timeout=seconds)) as connected:
        yield connected


def ids(port: Any, queue: str) -> list[str]:
    return [letter.message.headers["id"] for letter in port.browse(queue)]


@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_every_operation_fails_soon_and_by_name_while_the_broker_is_away(kind):
    port = connect(AWAY[kind], timeout=1.0)
    began = time.monotonic()
    for publish in (
        lambda: port.send(MESSAGE, "q"),
        lambda: port.delay(MESSAGE, "q", 5),
        lambda: port.dead_letter(MESSAGE, "q", CERTIFICATE),
        lambda: port.depth("q"),
        lambda: port.declare(["q"]),
    ):
        with pytest.raises(PublishFailed):
            publish()
    with pytest.raises(DeadLetterError):
        next(port.browse("q"))
    assert time.monotonic() - began < 12


def test_a_connection_that_broke_while_idle_is_replaced_without_a_word(port, wire, queue):
    port.send(MESSAGE, queue)
    wire.drop_connections()
    port.send(MESSAGE, queue)
    wire.drop_connections()
    port.dead_letter(MESSAGE, queue, CERTIFICATE)
    wire.drop_connections()
    port.delay(MESSAGE, queue, 60)
    wire.drop_connections()
    assert port.depth(queue) == 2
    assert wire.connections >= 5


def test_after_the_broker_was_away_the_next_publish_works(port, wire, queue):
    port.send(MESSAGE, queue)
    wire.cut()
    with pytest.raises(PublishFailed):
        port.send(MESSAGE, queue)
    wire.mend()
    port.send(MESSAGE.with_headers(id="3"), queue)
    assert ids(port, queue) == ["1", "3"]


@pytest.mark.parametrize("port", [1.0], indirect=True)
def test_a_broker_that_does_not_answer_is_not_waited_for_longer_than_the_timeout(port, wire, queue):
    port.send(MESSAGE, queue)
    wire.stall()
    began = time.monotonic()
    with pytest.raises(PublishFailed):
        port.send(MESSAGE, queue)
    assert time.monotonic() - began < 9
    wire.mend()
    # no answer of the broker to the old question is taken for the answer to a new one
    port.send(MESSAGE.with_headers(id="3"), queue)
    assert "3" in ids(port, queue)


class Interrupt(BaseException):
    """As Celery's soft time limit: an exception in the middle of anything."""


def interrupted(wire: Proxy, publish: Callable[[], None]) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    def soon() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        publish()

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        wire.stall()
        with pytest.raises(Interrupt):
            soon()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        wire.mend()


@pytest.mark.brokers("amqp")
def test_the_answer_to_an_interrupted_publish_is_not_taken_for_the_next_ones(port, wire, broker, queue):
    with broker.connection() as connection:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        connection.default_channel.queue_declare(f"{queue}.full", durable=True, auto_delete=False, arguments=arguments)
    port.send(MESSAGE, f"{queue}.full")
    port.send(MESSAGE, queue)
    interrupted(wire, lambda: port.send(MESSAGE, f"{queue}.full"))  # refused, but nobody heard it
    port.send(MESSAGE, queue)
    assert port.depth(queue) == 2


def test_an_interrupted_publish_leaves_nothing_behind_for_the_next(port, wire, queue):
    port.send(MESSAGE, queue)
    interrupted(wire, lambda: port.send(MESSAGE.with_headers(id="2"), queue))
    port.send(MESSAGE.with_headers(id="3"), queue)
    assert port.depth(queue) in (2, 3)
    assert ids(port, queue)[-1] == "3"


@pytest.mark.brokers("amqp")
def test_a_refused_or_returned_message_leaves_no_confirm_for_the_next_one(port, broker, queue):
    with broker.connection() as connection:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    port.send(MESSAGE, queue)
    for _ in range(3):
        with pytest.raises(PublishFailed, match="full queue"):
            port.send(MESSAGE, queue)
        port.send(MESSAGE, f"{queue}.other")  # returned first, as there is no such queue yet
        with broker.connection() as connection:
            connection.default_channel.queue_delete(f"{queue}.other")
    assert port.depth(queue) == 1


@pytest.mark.brokers("amqp")
def test_a_dead_letter_finds_its_queue_also_when_exchange_binding_or_queue_were_deleted_meanwhile(port, broker, queue):
    port.dead_letter(MESSAGE, queue, CERTIFICATE)
    with broker.connection() as connection:
        channel = connection.default_channel
        channel.exchange_delete("guardrails.dlx")
        port.dead_letter(MESSAGE, queue, CERTIFICATE)
        channel.queue_unbind(f"{queue}.dead", "guardrails.dlx", queue)
        port.dead_letter(MESSAGE, queue, CERTIFICATE)
        assert port.depth(f"{queue}.dead") == 3
        channel.queue_delete(f"{queue}.dead")
        port.dead_letter(MESSAGE, queue, CERTIFICATE)
        channel.queue_delete(f"{queue}.dead")
        port.restore_letter(MESSAGE, queue)
    assert port.depth(f"{queue}.dead") == 1


@pytest.mark.brokers("amqp")
def test_what_amqp_cannot_express_is_refused_and_breaks_nothing(port, queue):
    port.send(MESSAGE, queue)
    for headers in ({"h": object()}, {"n": 1 << 80}, {"k" * 300: 1}, {"big": "x" * 200_000}):
        with pytest.raises(PublishFailed):
            port.send(replace(MESSAGE, headers=headers), queue)
        with pytest.raises(PublishFailed):
            port.dead_letter(replace(MESSAGE, headers=headers), queue, CERTIFICATE)
    port.send(MESSAGE, queue)
    assert port.depth(queue) == 2


@pytest.mark.brokers("redis")
def test_what_json_cannot_express_is_refused_and_breaks_nothing(port, queue):
    with pytest.raises(PublishFailed):
        port.send(replace(MESSAGE, headers={"h": object()}), queue)
    port.send(MESSAGE, queue)
    assert port.depth(queue) == 1


@pytest.mark.brokers("redis")
def test_a_redis_without_memory_refuses_and_nothing_is_lost(private_redis, queue):
    server = private_redis()
    with closing(connect(server.url())) as port:
        port.delay(MESSAGE, queue, 0.01)
        eventually(lambda: port.pump(0) == (0, 0))
        server.client().config_set("maxmemory", "1")
        for publish in (port.send, lambda m, q: port.delay(m, q, 5), lambda m, q: port.dead_letter(m, q, CERTIFICATE)):
            with pytest.raises(PublishFailed):
                publish(MESSAGE, queue)
        with pytest.raises(PublishFailed):
            port.pump()
        server.client().config_set("maxmemory", "0")
        eventually(lambda: port.pump()[0] == 1)
        assert ids(port, queue) == ["1"]


def test_a_child_process_does_not_disturb_its_parents_connection(port, queue):
    """A fork copies the socket: two processes that speak on it hear each other's answers."""
    port.send(MESSAGE, queue)
    held = threading.Event()
    release = threading.Event()

    def hold() -> None:  # a lock held by another thread at the fork stays locked in the child
        port._session()._lock.acquire()
        held.set()
        release.wait(30)
        port._session()._lock.release()

    busy = threading.Thread(target=hold, daemon=True)
    if hasattr(port._session(), "_lock"):
        busy.start()
        held.wait(5)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            for _ in range(50):
                port.send(MESSAGE, queue)
            port.close()
            status = 0
        finally:
            os._exit(status)
    release.set()
    for _ in range(50):
        port.send(MESSAGE, queue)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    port.send(MESSAGE, queue)
    assert port.depth(queue) == 102


def test_a_browser_that_dies_leaves_the_letters_in_their_queue(port, wire, queue):
    for number in range(3):
        port.send(MESSAGE.with_headers(id=str(number)), queue)
    letters = port.browse(queue)
    next(letters)
    wire.drop_connections()
    letters.close()
    eventually(lambda: port.depth(queue) == 3)
    assert ids(port, queue) == ["0", "1", "2"]
