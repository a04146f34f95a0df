"""The broker port on real brokers: what is sent, delayed, dead-lettered and browsed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import pytest
from celery import Celery
from kombu.utils.json import loads

from celery_guardrails.config import Settings
from celery_guardrails.errors import DeadLetterError, GuardrailsConfigError
from celery_guardrails.integration.brokers import make_broker
from celery_guardrails.integration.brokers.delays import address, binding_key, ticks
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import RawMessage
from celery_guardrails.ports import Move
from tests.support import BrokerUnderTest, consistently, eventually

MESSAGE = RawMessage(
    body=b"\x00\xff\xfe raw \x80",
    content_type="application/x-odd",
    content_encoding="binary",
    headers={"id": "1", "task": "shop.charge", "nested": {"list": [1, 2.5, None, "ä"]}},
    properties={"correlation_id": "c-1", "reply_to": "r-1", "delivery_mode": 2, "priority": 0},
    exchange="shop",
    routing_key="shop.charge",
)
CERTIFICATE = DeathCertificate("permanent", task="shop.charge", error="ValueError", traceback="File x", queue="q")


def numbered(number: int) -> RawMessage:
    return MESSAGE.with_headers(id=str(number))


def connect(url: str, *, conf: dict[str, Any] | None = None, timeout: float = 10.0, **settings: Any) -> Any:
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.update(conf or {})
    return make_broker(app, Settings(**settings), timeout=timeout)


@pytest.fixture
def port(broker: BrokerUnderTest) -> Iterator[Any]:
    """The port under test on each broker in turn."""
    with closing(connect(broker.url)) as connected:
        yield connected


@pytest.fixture
def pumping(port: Any) -> Iterator[None]:
    """What a worker's thread does on Redis; RabbitMQ needs nobody."""
    over = threading.Event()

    def pump() -> None:
        while not over.wait(0.02):
            port.pump()

    thread = threading.Thread(target=pump, daemon=True)
    if hasattr(port, "pump"):
        thread.start()
    yield
    over.set()
    if thread.is_alive():
        thread.join(5)


def ids(port: Any, queue: str) -> list[str]:
    return [letter.message.headers["id"] for letter in port.browse(queue)]


def take_first(port: Any, queue: str) -> RawMessage | None:
    with closing(port.browse(queue)) as letters:
        for letter in letters:
            port.take(letter)
            return letter.message
    return None


# -- send -----------------------------------------------------------------------------------------------------------


def test_a_stock_consumer_gets_the_very_bytes_that_were_sent(port, broker, queue):
    port.send(MESSAGE, queue)
    (received,) = broker.drain(queue)
    assert bytes(received.body) == MESSAGE.body
    assert (received.content_type, received.content_encoding) == (MESSAGE.content_type, MESSAGE.content_encoding)
    assert received.headers == MESSAGE.headers
    assert {name: received.properties[name] for name in MESSAGE.properties} == MESSAGE.properties


@pytest.mark.parametrize("body", [b"", b'[[], {}, {"chord": null}]', b"\x80\x04K\x01."], ids=["empty", "json", "pickle"])
def test_what_is_sent_comes_out_of_a_browse_unchanged(port, queue, body):
    port.send(replace(MESSAGE, body=body, content_encoding="utf-8"), queue)
    (letter,) = port.browse(queue)
    assert letter.message.body == body
    assert letter.message.headers == MESSAGE.headers
    assert {name: letter.message.properties[name] for name in MESSAGE.properties} == MESSAGE.properties


def test_what_the_broker_wrote_about_the_last_delivery_is_not_sent_again(port, broker, queue):
    stale = MESSAGE.with_headers(
        **{"x-death": [{"count": 1}], "x-first-death-queue": "a", "x-last-death-reason": "b", "x-delivery-count": 3, "redelivered": True}
    )
    port.send(stale, queue)
    assert broker.drain(queue)[0].headers == MESSAGE.headers


def test_a_message_sent_to_a_queue_that_does_not_exist_waits_there(port, queue):
    port.send(MESSAGE, queue)
    assert port.depth(queue) == 1


@pytest.mark.brokers("amqp")
def test_messages_with_another_users_id_or_a_copy_list_are_sent_to_their_queue_alone(port, queue):
    port.send(numbered(1), f"{queue}.other")
    message = replace(MESSAGE, properties={"user_id": "somebody"}, headers={**MESSAGE.headers, "CC": [f"{queue}.other"]})
    port.send(message, queue)
    port.dead_letter(message, queue, CERTIFICATE)
    assert (port.depth(queue), port.depth(f"{queue}.other")) == (1, 1)
    (dead,) = port.browse(f"{queue}.dead")
    assert dead.message.headers["guardrails-original-user-id"] == "somebody"
    assert dead.message.headers["guardrails-original-cc"] == [f"{queue}.other"]


@pytest.mark.brokers("redis")
def test_on_redis_a_message_waits_in_the_list_of_its_priority(port, broker, queue):
    for priority in (0, 9, 5, None):
        port.send(replace(MESSAGE, properties={"priority": priority}), queue)
    client = broker.server.client(int(broker.vhost))
    assert {key: client.llen(queue + key) for key in ("", "\x06\x163", "\x06\x169")} == {"": 2, "\x06\x163": 1, "\x06\x169": 1}
    assert port.depth(queue) == 4


def test_many_threads_share_one_broker(port, queue):
    failures: list[BaseException] = []

    def publish(start: int) -> None:
        try:
            for number in range(start, start + 20):
                port.send(numbered(number), queue)
        except Exception as exc:  # noqa: BLE001 - whatever it is
            failures.append(exc)

    threads = [threading.Thread(target=publish, args=(start,)) for start in range(0, 400, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert sorted(map(int, ids(port, queue))) == list(range(400))


# -- dead letters ---------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_the_original_and_its_certificate(port, broker, queue):
    port.dead_letter(MESSAGE, queue, CERTIFICATE)
    (dead,) = broker.drain(f"{queue}.dead")
    assert bytes(dead.body) == MESSAGE.body
    assert {name: value for name, value in dead.headers.items() if name != "guardrails"} == MESSAGE.headers
    assert DeathCertificate.from_header(dead.headers["guardrails"]) == CERTIFICATE
    assert (dead.delivery_info["exchange"], dead.delivery_info["routing_key"]) == ("guardrails.dlx", queue)
    assert {name: dead.properties[name] for name in MESSAGE.properties} == MESSAGE.properties


def test_exchange_and_queue_of_dead_letters_have_the_names_of_the_settings(broker, queue):
    with closing(connect(broker.url, dead_letter_exchange=f"{queue}.x", dead_letter_queue="dead-{queue}")) as port:
        port.dead_letter(MESSAGE, queue, CERTIFICATE)
        (letter,) = port.browse(f"dead-{queue}")
        assert letter.message.exchange == f"{queue}.x"


@pytest.mark.brokers("amqp")
def test_dead_letters_go_to_a_queue_and_an_exchange_that_exist_with_other_arguments(port, broker, queue):
    with broker.connection() as connection:
        channel = connection.default_channel
        channel.exchange_declare("guardrails.dlx", "topic", durable=True, auto_delete=False)
        channel.queue_declare(f"{queue}.dead", durable=True, auto_delete=False, arguments={"x-max-length": 5, "x-message-ttl": 600_000})
    port.dead_letter(MESSAGE, queue, CERTIFICATE)
    assert port.depth(f"{queue}.dead") == 1


@pytest.mark.brokers("amqp")
def test_a_traceback_is_cut_rather_than_break_the_frame_limit(port, queue):
    message = MESSAGE.with_headers(argsrepr="x" * 90_000)
    port.dead_letter(message, queue, replace(CERTIFICATE, traceback="😀" * 16_000 + "the cause", message="😀" * 2_000))
    (letter,) = port.browse(f"{queue}.dead")
    certificate = DeathCertificate.from_header(letter.message.headers["guardrails"])
    assert certificate is not None
    assert certificate.traceback.endswith("😀the cause")
    assert letter.message.headers["argsrepr"] == "x" * 90_000


@pytest.mark.brokers("amqp")
def test_an_expiration_neither_expires_the_dead_letter_nor_is_it_forgotten(port, queue):
    message = replace(MESSAGE, properties={**MESSAGE.properties, "expiration": "1", "delivery_mode": 1})
    port.dead_letter(message, queue, CERTIFICATE)
    consistently(lambda: port.depth(f"{queue}.dead") == 1, 0.3)
    (letter,) = port.browse(f"{queue}.dead")
    assert letter.message.headers["guardrails-original-expiration"] == "1"
    assert letter.message.headers["guardrails-original-delivery-mode"] == 1
    assert letter.message.properties["delivery_mode"] == 2


@pytest.mark.brokers("amqp")
def test_dead_letter_queues_are_quorum_queues_where_task_queues_are(broker, queue):
    with closing(connect(broker.url, conf={"task_default_queue_type": "quorum"})) as port:
        port.dead_letter(MESSAGE, queue, CERTIFICATE)
    with broker.connection() as connection, pytest.raises(connection.channel_errors, match="x-queue-type"):
        connection.default_channel.queue_declare(f"{queue}.dead", durable=True, auto_delete=False)


@pytest.mark.brokers("redis")
def test_garbage_becomes_a_message_whose_body_it_is(port, broker, queue):
    port.dead_letter_raw(b"{not json \xff", queue, CERTIFICATE)
    (dead,) = broker.drain(f"{queue}.dead")
    assert (bytes(dead.body), dead.content_type) == (b"{not json \xff", "application/octet-stream")
    assert DeathCertificate.from_header(dead.headers["guardrails"]) == CERTIFICATE


@pytest.mark.brokers("redis")
def test_a_dead_letter_that_a_consumer_lost_is_restored_to_its_queue(port, broker, queue):
    port.dead_letter(MESSAGE, queue, CERTIFICATE)
    with broker.connection() as connection:
        assert connection.default_channel.basic_get(f"{queue}.dead") is not None
        assert broker.depth(f"{queue}.dead") == 0
    # closing the channel gives it back, by exchange and routing key
    assert broker.depth(f"{queue}.dead") == 1


# -- browse and take ------------------------------------------------------------------------------------------------


def test_browsing_shows_the_oldest_first_and_leaves_all_where_it_was(port, queue):
    for number in range(120):
        port.send(numbered(number), queue)
    expected = [str(number) for number in range(120)]
    assert ids(port, queue) == expected
    with closing(port.browse(queue)) as letters:
        assert len(list(islice(letters, 7))) == 7
    eventually(lambda: port.depth(queue) == 120)
    assert ids(port, queue) == expected


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.brokers("amqp")
def test_letters_not_taken_keep_their_order_on_every_kind_of_queue(port, broker, queue, kind):
    with broker.connection() as connection:
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": kind})
    for number in range(9):
        port.send(numbered(number), queue)
    for _ in range(3):
        with closing(port.browse(queue)) as letters:
            list(islice(letters, 5))
        eventually(lambda: port.depth(queue) == 9)
    with closing(port.browse(queue)) as letters:
        port.take(list(islice(letters, 5))[2])
    eventually(lambda: port.depth(queue) == 8)
    assert ids(port, queue) == ["0", "1", "3", "4", "5", "6", "7", "8"]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.brokers("amqp")
def test_letters_of_several_consumers_keep_their_order_too(port, broker, queue, kind):
    """More than a consumer is sent at first; more than the 32 whose order RabbitMQ's own map keeps by chance."""
    with broker.connection() as connection:
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": kind})
    for number in range(0, 300, 100):
        assert not port._send_all([(numbered(n), queue) for n in range(number, number + 100)])
    with closing(port.browse(queue)) as letters:
        for number, letter in enumerate(islice(letters, 250)):
            assert letter.message.headers["id"] == str(number)
            if number % 50 == 0:
                port.take(letter)
    eventually(lambda: port.depth(queue) == 295)
    assert ids(port, queue) == [str(number) for number in range(300) if number % 50 or number > 249]


@pytest.mark.brokers("amqp")
def test_a_queue_that_ends_with_its_last_consumer_outlives_a_browse(port, broker, queue):
    with broker.connection() as connection:
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=True)
        port.send(numbered(1), queue)
        assert ids(port, queue) == ["1"]
        eventually(lambda: port.depth(queue) == 1)


@pytest.mark.brokers("amqp")
def test_a_browse_ends_where_others_have_taken_what_it_counted(port, broker, queue):
    for number in range(80):
        port.send(numbered(number), queue)
    with closing(port.browse(queue)) as letters:
        seen = [next(letters).message.headers["id"]]
        with broker.connection() as connection:
            while connection.default_channel.basic_get(queue, no_ack=True) is not None:
                pass
        seen += [letter.message.headers["id"] for letter in letters]
    assert seen == [str(number) for number in range(len(seen))]
    assert 0 < len(seen) < 80


@pytest.mark.brokers("amqp")
def test_nothing_is_held_that_comes_in_while_each_letter_is_asked_for(port, queue):
    for number in range(3):
        port.send(numbered(number), queue)
    with closing(port.browse(queue, ahead=False)) as letters:
        port.take(next(letters))
        port.send(numbered(9), queue)
        assert port.depth(queue) == 3
        assert [letter.message.headers["id"] for letter in letters] == ["1", "2"]


@pytest.mark.brokers("amqp")
def test_browsing_wears_no_letter_out_where_the_broker_counts_returns(port, broker, queue, monkeypatch):
    # RabbitMQ 4 drops a message from a quorum queue at its 20th return by default; here a limit of 5 says the same.
    monkeypatch.setattr("celery_guardrails.integration.brokers.amqp_browse._WORN", 2)
    monkeypatch.setattr("celery_guardrails.integration.brokers.amqp_browse.major_version", lambda channel: 4)
    with broker.connection() as connection:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 5}
        connection.default_channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    for number in range(3):
        port.send(numbered(number), queue)
    for _ in range(12):
        assert sorted(ids(port, queue)) == ["0", "1", "2"]
        eventually(lambda: port.depth(queue) == 3)


def test_taking_removes_the_letter_and_no_other(port, queue):
    for number in range(120):
        port.send(numbered(number), queue)
    with closing(port.browse(queue)) as letters:
        for number, letter in enumerate(letters):
            assert letter.message.headers["id"] == str(number)
            if number % 3 == 0:
                port.take(letter)
    eventually(lambda: port.depth(queue) == 80)
    assert ids(port, queue) == [str(number) for number in range(120) if number % 3]


def test_browsing_ends_at_what_was_there_when_it_began(port, queue):
    for number in range(3):
        port.send(numbered(number), queue)
    seen = []
    with closing(port.browse(queue)) as letters:
        for letter in letters:
            seen.append(letter.message.headers["id"])
            port.take(letter)
            port.send(letter.message, queue)
    assert seen == ["0", "1", "2"]
    assert port.depth(queue) == 3


def test_a_queue_that_does_not_exist_is_empty(port, queue):
    assert list(port.browse(queue)) == []
    assert port.depth(queue) == 0


@pytest.mark.brokers("redis")
def test_items_that_are_no_messages_can_be_browsed_and_taken(port, broker, queue):
    for item in (b"\xff\x00", b"[1, 2]", b'{"body": "x"}', b'"text"'):
        broker.push_garbage(queue, item)
    with closing(port.browse(queue)) as letters:
        for letter in letters:
            assert (letter.message.content_type, letter.message.headers) == (None, {})
            if letter.message.body != b"[1, 2]":
                port.take(letter)
    assert [letter.message.body for letter in port.browse(queue)] == [b"[1, 2]"]


@pytest.mark.brokers("redis")
def test_a_letter_that_somebody_else_took_is_not_taken_twice(port, queue):
    port.send(MESSAGE, queue)
    (letter,) = port.browse(queue)
    assert take_first(port, queue) is not None
    with pytest.raises(DeadLetterError, match="somebody else"):
        port.take(letter)


# -- move -----------------------------------------------------------------------------------------------------------


def move_all(port: Any, queue: str, *targets: str) -> list[tuple[bool, bool]]:
    """Move each letter to the next of these queues; tell what was sent and what was taken."""
    with closing(port.browse(queue)) as letters:
        there = islice(letters, port.depth(queue))  # not to the iterator's end, at which RabbitMQ has them back
        found = [Move(letter, letter.message, target) for letter, target in zip(there, cycle(targets), strict=False)]
        return [(moved.sent, moved.taken) for moved in port.move(found)]


def test_letters_are_moved_each_to_its_queue_also_to_one_that_is_not_there_yet(port, queue):
    for number in range(6):
        port.send(numbered(number), queue)
    assert move_all(port, queue, f"{queue}.odd", f"{queue}.even") == [(True, True)] * 6
    assert (ids(port, queue), port.depth(queue)) == ([], 0)
    assert ids(port, f"{queue}.odd") == ["0", "2", "4"]
    assert ids(port, f"{queue}.even") == ["1", "3", "5"]


@pytest.mark.brokers("amqp")
def test_those_that_a_full_queue_refuses_stay_and_the_others_go(port, broker, queue):
    with broker.connection() as connection:
        arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
        connection.default_channel.queue_declare(f"{queue}.full", durable=True, auto_delete=False, arguments=arguments)
    for number in range(8):
        port.send(numbered(number), queue)
    assert move_all(port, queue, f"{queue}.full", f"{queue}.other") == [(True, True)] * 4 + [(False, False), (True, True)] * 2
    eventually(lambda: port.depth(queue) == 2)
    assert (ids(port, queue), ids(port, f"{queue}.full")) == (["4", "6"], ["0", "2"])


@pytest.mark.brokers("amqp")
def test_a_channel_that_is_gone_leaves_the_letters_in_both_queues(port, queue):
    port.send(numbered(1), queue)
    with closing(port.browse(queue)) as letters:
        letter = next(letters)
        letter.handle.channel.close()
        [moved] = port.move([Move(letter, letter.message, f"{queue}.other")])
    assert (moved.sent, moved.taken, type(moved.error)) == (True, False, DeadLetterError)
    eventually(lambda: (port.depth(queue), port.depth(f"{queue}.other")) == (1, 1))


@pytest.mark.brokers("redis")
def test_a_letter_that_cannot_be_moved_or_was_taken_leaves_everything_as_it_is(port, broker, queue):
    with broker.connection() as connection:
        connection.default_channel.client.set(f"{queue}.text", "no list")
    for number in range(3):
        port.send(numbered(number), queue)
    with closing(port.browse(queue)) as letters:
        one, two, three = letters
        assert take_first(port, queue) is not None
        targets = ((one, f"{queue}.other"), (two, f"{queue}.text"), (three, f"{queue}.other"))
        moved = port.move([Move(letter, letter.message, target) for letter, target in targets])
    assert [(found.sent, found.taken) for found in moved] == [(False, True), (False, False), (True, True)]
    assert "somebody else" in str(moved[0].error)
    assert "WRONGTYPE" in str(moved[1].error)
    assert (ids(port, queue), ids(port, f"{queue}.other")) == (["1"], ["2"])


@pytest.mark.brokers("redis")
def test_two_who_move_the_same_letters_share_them(port, queue):
    for number in range(120):
        port.send(numbered(number), queue)
    with closing(port.browse(queue)) as first, closing(port.browse(queue)) as second:
        moved = []
        for one, other in zip(first, second, strict=False):
            for letter in (one, other):
                moved += port.move([Move(letter, letter.message, f"{queue}.other")])
    assert sum(found.sent for found in moved) == 120
    assert ids(port, f"{queue}.other") == [str(number) for number in range(120)]
    assert port.depth(queue) == 0


def test_the_queues_are_those_that_the_app_declares_and_creates(broker, queue):
    app = Celery("shop", broker=broker.url, set_as_current=False)
    app.conf.task_default_queue = queue
    port: Any = make_broker(app, Settings())
    assert port.queues() == {queue: f"{queue}.dead"}
    app.amqp.queues.select(["other"])
    assert port.queues() == {queue: f"{queue}.dead", "other": "other.dead"}


def test_declaring_twice_is_no_error(port, queue):
    port.declare([queue])
    port.declare([queue])
    assert port.depth(f"{queue}.dead") == 0


# -- delays ---------------------------------------------------------------------------------------------------------

#: Late by a tick of 0.25 s, and by what a busy machine takes for the hops (an idle one takes some 0.03 s).
TOLERANCE = 0.25 + 2.5


def arrivals(port: Any, queue: str, count: int, timeout: float) -> dict[str, float]:
    """Return the ids of messages and when they could be taken, in monotonic seconds."""
    found: dict[str, float] = {}

    def all_there() -> bool:
        while (message := take_first(port, queue)) is not None:
            assert message.headers["id"] not in found
            found[message.headers["id"]] = time.monotonic()
        return len(found) == count

    eventually(all_there, timeout, because=lambda: f"arrived: {found}")
    return found


def check_delays(port: Any, queue: str) -> None:
    port.send(MESSAGE, queue)
    port.delay(MESSAGE, queue, 0.01)  # declares on the way what is needed
    eventually(lambda: port.depth(queue) == 2)
    while take_first(port, queue):
        pass
    sent = {}
    for seconds in ("6", "0.5", "0.3", "1", "3.2"):
        before = time.monotonic()
        port.delay(MESSAGE.with_headers(id=seconds), queue, float(seconds))
        sent[seconds] = before, time.monotonic()
    came = arrivals(port, queue, 5, 20)
    for seconds, at in came.items():
        before, after = sent[seconds]
        assert at - before >= float(seconds) - 0.1, seconds
        assert at - after <= float(seconds) + TOLERANCE, seconds
    assert max(at for seconds, at in came.items() if seconds != "6") < sent["6"][0] + 6, "the long one holds up no short one"


@pytest.mark.brokers("redis")
def test_delays_are_kept_and_a_long_one_holds_up_no_short_one(port, queue, pumping):
    check_delays(port, queue)


@pytest.mark.brokers("amqp")
@pytest.mark.parametrize("target", ["classic", "quorum"])
@pytest.mark.parametrize("levels", ["classic", "quorum"])
def test_delays_are_kept_whatever_the_kinds_of_queue(broker, queue, levels, target):
    with closing(connect(broker.url, delay_queue_type=levels, conf={"task_create_missing_queue_type": target})) as port:
        port.declare([queue])
        check_delays(port, queue)


def test_a_delayed_message_is_the_same_afterwards(port, queue, pumping):
    port.delay(MESSAGE, queue, 0.3)
    message = eventually(lambda: take_first(port, queue))
    assert message.body == MESSAGE.body
    assert {name: message.headers[name] for name in MESSAGE.headers} == MESSAGE.headers
    assert {name: message.properties[name] for name in MESSAGE.properties} == MESSAGE.properties


def test_a_message_can_be_delayed_again_and_again(port, queue, pumping):
    # Three ticks pass two levels on RabbitMQ, which takes the x-death of the last wait for a circle when a message comes to
    # the second level once more, and drops it without a word, unless the header is removed.
    port.delay(MESSAGE, queue, 0.75)
    for _ in range(3):
        port.delay(eventually(lambda: take_first(port, queue)), queue, 0.75)
    assert eventually(lambda: take_first(port, queue)).body == MESSAGE.body


@pytest.mark.parametrize("names", [("b", "a.b"), ("a.b", "b"), ("*", "x"), ("#", "x.y"), ("a.*", "a.b"), ("b", "x" * 230)])
def test_a_delayed_message_reaches_its_queue_and_no_other(port, names, pumping):
    target, other = names
    for queue in names:
        port.delay(numbered(0), queue, 0.3)
        assert eventually(lambda queue=queue: take_first(port, queue))
    port.delay(MESSAGE, target, 0.3)
    eventually(lambda: port.depth(target) == 1)
    assert port.depth(other) == 0


@pytest.mark.brokers("amqp")
def test_a_delayed_message_does_not_expire_while_it_waits(port, queue):
    port.delay(replace(MESSAGE, properties={"expiration": "1"}), queue, 0.5)
    assert eventually(lambda: take_first(port, queue)).headers["guardrails-original-expiration"] == "1"


@pytest.mark.brokers("amqp")
def test_what_was_delayed_for_a_deleted_queue_waits_for_its_return(port, broker, queue):
    with broker.connection() as connection:
        channel = connection.default_channel  # connected before the time runs
        port.delay(MESSAGE, queue, 3.0)
        channel.queue_delete(queue)
    eventually(lambda: port.depth("guardrails.delay.unrouted") == 1)
    port.declare(["another"])
    eventually(lambda: port.depth("guardrails.delay.unrouted") == 1)
    port.declare([queue])
    assert port.depth("guardrails.delay.unrouted") == 0
    assert eventually(lambda: take_first(port, queue)).body == MESSAGE.body


@pytest.mark.brokers("amqp")
def test_delays_need_no_declaration_at_start_and_survive_its_loss(port, broker, queue):
    with broker.connection() as connection:
        channel = connection.default_channel  # connected before the time runs
        port.delay(MESSAGE, queue, 4.0)
        channel.queue_delete("guardrails.delay.quorum.04")
        channel.exchange_delete("guardrails.delay.quorum.04")
    port.delay(numbered(2), queue, 4.0)
    assert eventually(lambda: take_first(port, queue)).headers["id"] == "2"


@pytest.mark.parametrize(("seconds", "count"), [(0, 0), (0.01, 1), (0.25, 1), (0.3, 2), (1, 4), (3.2, 13), (1e12, 2**24 - 1)])
def test_a_delay_is_rounded_up_to_quarter_seconds_and_has_an_end(seconds, count):
    assert ticks(seconds) == count


def test_addresses_start_at_the_highest_bit_and_keep_to_the_limit_of_a_routing_key():
    exchange, key = address("quorum", 5, "a.b")
    assert exchange == "guardrails.delay.quorum.02"
    assert key == "0." * 21 + "1.0.1.a.b"
    assert len(address("quorum", 5, "q" * 255)[1].encode()) <= 255
    assert binding_key("a.b") == "*." * 24 + "a.b"


# -- Redis' own -----------------------------------------------------------------------------------------------------


@pytest.mark.brokers("redis")
def test_the_pump_says_how_many_it_moved_and_when_to_come_again(port, broker, queue):
    assert port.pump() == (0, -1)
    for number in range(5):
        port.delay(numbered(number), queue, 0.05)
    port.delay(numbered(9), queue, 60)
    assert port.delayed() == port.delayed(queue) == 6
    client = broker.server.client(int(broker.vhost))
    last_due = client.zrange("shop:delayed", 4, 4, withscores=True)[0][1]
    eventually(lambda: client.time()[0] * 1000 + client.time()[1] // 1000 > last_due)
    assert port.pump(3) == (3, 0)
    moved, wait = port.pump()
    assert moved == 2
    assert 55_000 < wait <= 60_000
    assert ids(port, queue) == ["0", "1", "2", "3", "4"]
    assert port.delayed(queue) == 1
    assert port.delayed(f"{queue}x") == 0


@pytest.mark.brokers("redis")
def test_a_message_that_cannot_be_moved_holds_up_no_other(port, broker, queue):
    client = broker.server.client(int(broker.vhost))
    client.set(f"{queue}.text", "no list")
    port.delay(numbered(1), f"{queue}.text", 0.01)
    port.delay(numbered(2), queue, 0.02)

    def both_due() -> bool:
        return bool(port.pump()[0])

    eventually(both_due)
    assert ids(port, queue) == ["2"]
    assert port.delayed() == 1
    client.delete(f"{queue}.text")
    index, _ = client.zscan("shop:delayed")[1][0]
    client.zadd("shop:delayed", {index: 1})
    assert port.pump() == (1, -1)


@pytest.mark.brokers("redis")
def test_all_keys_carry_the_prefix_of_the_transport(broker, queue):
    options = {"global_keyprefix": "pre:", "priority_steps": [0, 5], "sep": ":"}
    with closing(connect(broker.url, conf={"broker_transport_options": options}, namespace="ns")) as port:
        port.send(replace(MESSAGE, properties={"priority": 7}), queue)
        port.dead_letter(MESSAGE, queue, CERTIFICATE)
        port.delay(MESSAGE, queue, 0.01)
        eventually(lambda: port.pump()[0])
        port.delay(MESSAGE, queue, 60)
        assert port.depth(queue) == 2
        assert len(list(port.browse(queue))) == 2
    client = broker.server.client(int(broker.vhost))
    keys = {key.decode() for key in client.keys("*")}
    assert {f"pre:{queue}", f"pre:{queue}:5", f"pre:{queue}.dead", "pre:ns:delayed", "pre:ns:delayed:messages"} <= keys
    assert all(key.startswith("pre:") for key in keys)


@pytest.mark.brokers("redis")
def test_body_encoding_switched_off_changes_no_byte(broker, queue):
    with closing(connect(broker.url, conf={"broker_transport_options": {"body_encoding": None}})) as port:
        port.send(MESSAGE, queue)
        assert [letter.message.body for letter in port.browse(queue)] == [MESSAGE.body]
    assert bytes(broker.drain(queue)[0].body) == MESSAGE.body


@pytest.mark.brokers("redis")
def test_touching_live_deliveries_starts_their_visibility_timeout_anew(port, broker, queue):
    port.send(MESSAGE, queue)
    client = broker.server.client(int(broker.vhost))
    with broker.connection() as connection:
        tag = connection.default_channel.basic_get(queue).delivery_tag
        client.zadd("unacked_index", {tag: 1})
        assert port.touch([tag, "unknown"]) == 1
        assert client.zscore("unacked_index", tag) == pytest.approx(time.time(), abs=30)
        assert client.zscore("unacked_index", "unknown") is None
    assert port.touch([]) == 0


@pytest.mark.brokers("redis")
def test_every_message_gets_a_delivery_tag_of_its_own(port, broker, queue):
    message = replace(MESSAGE, properties={**MESSAGE.properties, "delivery_tag": "stale", "delivery_info": {"redelivered": True}})
    port.send(message, queue)
    port.send(message, queue)
    items = [loads(item) for item in broker.server.client(int(broker.vhost)).lrange(queue, 0, -1)]
    tags = {item["properties"]["delivery_tag"] for item in items}
    assert len(tags | {"stale"}) == 3
    assert [item["properties"]["delivery_info"] for item in items] == [{"exchange": "", "routing_key": queue}] * 2


# -- choice ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://", "filesystem://"])
def test_another_transport_is_refused_by_the_name_of_the_setting(url: str):
    with pytest.raises(GuardrailsConfigError, match=r"broker_url.*amqp://.*redis://"):
        connect(url)


def test_making_a_broker_connects_to_nothing():
    connect("redis://127.0.0.1:1/0")
    connect("amqp://127.0.0.1:1//")


def test_a_queue_is_there_when_somebody_has_declared_it_or_something_waits_in_it(port: Any, broker: BrokerUnderTest, queue: str) -> None:
    other = f"{queue}.other"
    broker.used += [queue, other]
    assert not port.exists(other)
    with port.app.connection_for_write() as connection:
        port.app.amqp.queues.new_missing(other).bind(connection.channel()).declare()
    assert port.exists(other)
    assert not port.exists(queue)
    port.send(numbered(1), queue)
    assert port.exists(queue)
