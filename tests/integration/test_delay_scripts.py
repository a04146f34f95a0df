"""What the broker's scripts on Redis leave behind, seen from a second client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celery_guardrails.integration.brokers import redis as broker_module
from tests.support import RedisServer

PUT_OFF = 60_000


@pytest.fixture
def client(redis_server: RedisServer, redis_url: str) -> Iterator[Any]:
    with redis_server.client(int(redis_url.rpartition("/")[2])) as client:
        yield client


def member(number: int, target: str) -> str:
    return f"{number:032d}{target}"


def park(client: Any, number: int, target: str, milliseconds: int, payload: str | None = None) -> int:
    """Run the script as the broker does."""
    script = broker_module._SCRIPTS["park"]
    return int(client.eval(script, 2, "index", "messages", member(number, target), payload or f"payload {number}", milliseconds))


def pump(client: Any, limit: int = 100) -> tuple[int, int, str]:
    moved, wait, failure = client.eval(broker_module._SCRIPTS["pump"], 2, "index", "messages", limit, PUT_OFF)
    return moved, wait, failure.decode()


def milliseconds(client: Any) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def test_a_parked_message_is_due_after_its_delay_by_the_servers_clock(client):
    before = milliseconds(client)
    due = park(client, 1, "q", 5000)
    assert before + 5000 <= due <= milliseconds(client) + 5000
    assert client.zrange("index", 0, -1, withscores=True) == [(member(1, "q").encode(), float(due))]
    assert client.hgetall("messages") == {member(1, "q").encode(): b"payload 1"}


def test_nothing_parked_is_nothing_to_wait_for(client):
    assert pump(client) == (0, -1, "")


def test_only_what_is_due_is_moved_and_the_wait_is_that_of_the_next(client):
    park(client, 1, "q", -1)
    park(client, 2, "q", 0)
    due = park(client, 3, "q", 30_000)
    moved, wait, failure = pump(client)
    assert (moved, failure) == (2, "")
    assert 0 <= due - milliseconds(client) - wait + 5000 <= 5000 + 1
    assert client.lrange("q", 0, -1) == [b"payload 2", b"payload 1"]
    assert client.hkeys("messages") == client.zrange("index", 0, -1) == [member(3, "q").encode()]


def test_the_earliest_go_first_and_no_more_than_the_limit(client):
    for number, delay in ((1, -10), (2, -30), (3, -20)):
        park(client, number, "q", delay)
    assert pump(client, 2) == (2, 0, "")
    assert client.lrange("q", 0, -1) == [b"payload 3", b"payload 2"]
    assert pump(client, 2) == (1, -1, "")
    assert not client.exists("index", "messages")


def test_each_goes_to_its_own_list(client):
    park(client, 1, "q", -1)
    park(client, 2, "other:list\x06\x163", -1)
    assert pump(client) == (2, -1, "")
    assert client.lrange("q", 0, -1) == [b"payload 1"]
    assert client.lrange("other:list\x06\x163", 0, -1) == [b"payload 2"]


def test_what_cannot_be_moved_is_put_off_and_the_first_error_told(client):
    client.set("text", "no list")
    client.zadd("zset", {"x": 1})
    park(client, 1, "text", -30)
    park(client, 2, "zset", -20)
    park(client, 3, "q", -10)
    before = milliseconds(client)
    moved, wait, failure = pump(client)
    assert moved == 1
    assert "WRONGTYPE" in failure
    assert PUT_OFF - 5000 < wait <= PUT_OFF
    for number, target in ((1, "text"), (2, "zset")):
        assert before + PUT_OFF <= client.zscore("index", member(number, target)) <= milliseconds(client) + PUT_OFF
        assert client.hget("messages", member(number, target)) == f"payload {number}".encode()
    assert client.get("text") == b"no list"


def test_an_entry_whose_message_is_gone_is_cleared_away_and_counts_for_nothing(client):
    park(client, 1, "q", -2)
    park(client, 2, "q", -1)
    client.hdel("messages", member(1, "q"))
    assert pump(client) == (1, -1, "")
    assert client.lrange("q", 0, -1) == [b"payload 2"]
    assert not client.exists("index", "messages")


def test_the_wait_for_what_is_due_already_is_none(client):
    for number in range(3):
        park(client, number, "q", -1000)
    assert pump(client, 1) == (1, 0, "")


def test_touching_gives_every_delivery_that_is_known_the_servers_time(client):
    client.zadd("unacked_index", {"a": 1, "b": 2, "c": 3})
    seconds, microseconds = client.time()
    assert client.eval(broker_module._SCRIPTS["touch"], 1, "unacked_index", "a", "gone", "b") == 2
    after = client.time()
    scores = dict(client.zrange("unacked_index", 0, -1, withscores=True))
    assert scores.pop(b"c") == 3.0, "nobody asked for it"
    assert set(scores) == {b"a", b"b"}
    assert all(seconds + microseconds / 1e6 - 1e-6 <= score <= after[0] + after[1] / 1e6 for score in scores.values())
