"""How a worker takes a message from Redis and acknowledges it: what the scripts leave behind, seen from a second client."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection

from celery_guardrails.worker.safe_pop import take_safely
from tests.support import RedisServer, eventually


@pytest.fixture
def client(redis_server: RedisServer, redis_url: str) -> Iterator[Any]:
    with redis_server.client(int(redis_url.rpartition("/")[2])) as client:
        yield client


class Consumer:
    """A worker's channel on two queues, and what it was handed."""

    def __init__(self, url: str, *queues: str) -> None:
        self.connection = Connection(url)
        self.channel: Any = self.connection.default_channel
        take_safely(self.channel)
        self.got: list[Any] = []
        for queue in queues:
            self.channel.queue_declare(queue)
            self.channel.basic_consume(queue, no_ack=False, callback=self.got.append, consumer_tag=queue)

    def take(self, count: int = 1) -> list[Any]:
        """Wait until so many have come."""
        before = len(self.got)

        def come() -> bool:
            with contextlib.suppress(TimeoutError):
                self.connection.drain_events(timeout=0.05)
            return len(self.got) >= before + count

        eventually(come)
        return self.got[before:]


@pytest.fixture
def consumer(redis_url: str, queue: str) -> Iterator[Consumer]:
    consumer = Consumer(redis_url, queue, f"{queue}.other")
    yield consumer
    consumer.channel.qos._delivered.clear()  # or closing would put back what this test left unacknowledged
    consumer.connection.close()


def publish(url: str, queue: str, *bodies: str, **properties: Any) -> None:
    with Connection(url) as connection, connection.SimpleQueue(queue) as simple:
        for body in bodies:
            simple.put(body, serializer="json", **properties)


def item(tag: Any = "t1", info: Any = None, **more: Any) -> str:
    properties = {"delivery_tag": tag, "delivery_info": {"exchange": "x", "routing_key": "k"} if info is None else info}
    return json.dumps({"body": "", "headers": {}, "content-type": None, "properties": properties, **more})


def taken(client: Any, text: Any, lists: tuple[str, ...] = ("one", "two")) -> Any:
    """Run the script as the channel sends it."""
    from celery_guardrails.worker import safe_pop

    if text is not None:
        client.lpush(lists[0], text)
    return client.eval(safe_pop._TAKE, 2 + len(lists), "index", "unacked", *lists)


def server_time(client: Any) -> float:
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1_000_000)


def test_a_taken_message_is_noted_as_kombu_would_have_noted_it(client, consumer, redis_url, queue):
    publish(redis_url, queue, "hello")
    (stored,) = client.lrange(queue, 0, -1)
    (message,) = consumer.take()
    assert client.llen(queue) == 0
    ((tag, entry),) = client.hgetall("unacked").items()
    assert tag.decode() == message.delivery_tag
    assert json.loads(entry) == [json.loads(stored), queue, queue]
    assert client.zscore("unacked_index", tag) == pytest.approx(time.time(), abs=30)


def test_an_acknowledged_message_is_forgotten_and_no_other(client, consumer, redis_url, queue):
    publish(redis_url, queue, "first", "second")
    first, second = consumer.take(2)
    assert [first.payload, second.payload] == ["first", "second"]
    first.ack()
    assert [tag.decode() for tag in client.hkeys("unacked")] == [second.delivery_tag]
    assert [tag.decode() for tag in client.zrange("unacked_index", 0, -1)] == [second.delivery_tag]
    second.ack()
    assert not client.exists("unacked", "unacked_index")


def test_the_ack_says_whether_there_was_such_a_message(client):
    from celery_guardrails.worker import safe_pop

    client.hset("unacked", mapping={"t1": "a", "t2": "b"})
    client.zadd("index", {"t1": 1, "t2": 2})
    assert client.eval(safe_pop._ACK, 1, "unacked", "index", "t1") == 1
    assert client.eval(safe_pop._ACK, 1, "unacked", "index", "t1") == 0
    assert (client.hkeys("unacked"), client.zrange("index", 0, -1)) == ([b"t2"], [b"t2"])


def test_the_oldest_of_the_first_list_that_has_one_is_taken(client):
    client.lpush("one", item("a"), item("b"))
    client.lpush("two", item("c"))
    before = server_time(client)
    assert [taken(client, None)[::2] for _ in range(3)] == [[b"one", b"a"], [b"one", b"b"], [b"two", b"c"]]
    assert taken(client, None) is None
    noted = client.zrange("index", 0, -1, withscores=True)
    assert [tag for tag, _ in noted] == [b"a", b"b", b"c"]
    assert all(before <= score <= server_time(client) for _, score in noted), "by the server's clock"


def test_one_message_at_a_time_leaves_its_list(client):
    client.lpush("one", item("a"), item("b"))
    client.lpush("two", item("c"))
    taken(client, None)
    assert (client.llen("one"), client.llen("two"), client.hkeys("unacked")) == (1, 1, [b"a"])


def test_what_is_noted_is_the_item_byte_for_byte_with_its_address(client):
    # Lua's numbers are doubles, its empty tables are objects, and a name may hold a quote
    text = item("t", {"exchange": 'a "b" ü', "routing_key": "c\\d"}, number=9007199254740993, empty=[], none={})
    key, got, tag = taken(client, text)
    assert (key, got.decode(), tag) == (b"one", text, b"t")
    entry = client.hget("unacked", "t").decode()
    assert entry.startswith(f"[{text},")
    assert json.loads(entry)[1:] == ['a "b" ü', "c\\d"]


@pytest.mark.parametrize(
    "text",
    [
        "{not json",
        "7",
        '"properties"',
        "null",
        "[]",
        "{}",
        json.dumps({"properties": None}),
        json.dumps({"properties": "delivery_tag"}),
        json.dumps({"properties": {}}),
        item(None),
        item(7),
        item({}),
        item(info="x"),
        item(info=7),
        item(info={}),
        item(info={"exchange": "x"}),
        item(info={"routing_key": "x"}),
        item(info={"exchange": None, "routing_key": "x"}),
        item(info={"exchange": "x", "routing_key": 7}),
        item(info={"exchange": 7, "routing_key": "x"}),
    ],
)
def test_what_is_no_message_is_handed_over_as_it_is_and_not_noted(client, text):
    assert taken(client, text) == [b"one", text.encode(), b""]
    assert not client.exists("unacked", "index", "one")


def test_other_transports_are_left_alone():
    channel = SimpleNamespace()
    take_safely(channel)
    assert vars(channel) == {}
