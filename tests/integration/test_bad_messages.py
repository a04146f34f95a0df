"""What no worker can run: in the dead letter queue byte for byte, and the worker goes on."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib

import pytest
from celery.exceptions import NotRegistered

from tests.support import eventually

GOOD = b'[["never"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


@pytest.fixture(scope="module")
def app(shared_deploy):
    app = shared_deploy()
    app.main_process = app.worker(concurrency=1)
    return app


@pytest.fixture(autouse=True)
def _empty_dead_letter_queue(app):
    yield
    app.broker.purge(app.dead_queue)


def headers(name, **changes):
    """Headers as Celery writes them; one set to None is left out."""
    written = {
        "lang": "py",
        "task": "testapp.effect",
        "id": f"id-{name}",
        "root_id": f"id-{name}",
        "retries": 0,
        "timelimit": [None, None],
        "custom": {"nested": [1, 2.5, "ä", None]},
        **changes,
    }
    return {key: value for key, value in written.items() if value is not None}


def goes_on(app, name):
    """The worker is the one that was started, and works."""
    assert app.send("effect", f"{name}.after").get(timeout=20) == f"{name}.after"
    assert app.main_process.alive()
    assert app.depth() == 0
    assert app.ledger.count(name, "start") == app.ledger.count("never", "start") == 0


def only_letter(app):
    (letter,) = eventually(app.letters, 15, every=0.05, because=lambda: f"a dead letter; {app.main_process.log()[-2000:]}")
    return letter


def is_dead_byte_for_byte(app, name, reason, body, **properties):
    """Publish it; it must come out of the dead letter queue as it went in."""
    sent_headers = properties.get("headers") or {}
    app.broker.publish_raw(app.queue, body, **properties)
    letter = only_letter(app)
    assert letter.body == body
    assert letter.content_type == properties["content_type"]
    assert letter.content_encoding == properties["content_encoding"]
    certificate = letter.headers["guardrails"]
    assert {key: value for key, value in letter.headers.items() if key != "guardrails"} == sent_headers
    for key in ("correlation_id", "reply_to", "priority"):
        assert letter.properties.get(key) == properties.get(key) or key == "priority"
    assert certificate["reason"] == reason, certificate
    assert certificate["queue"] == app.queue
    assert certificate["task_id"] == sent_headers.get("id", "")
    goes_on(app, name)
    assert len(app.letters()) == 1
    return certificate


# -- undecodable ----------------------------------------------------------------------------------------------------

MEBIBYTE = random.Random(7).randbytes(1 << 20)

UNDECODABLE = {
    "bad JSON": (b'[["name"], {}, {', JSON),
    "JSON that is not UTF-8": (b'[["\xff\xfe"], {}, {}]', JSON),
    "a foreign content type": (b"<task/>", {"content_type": "application/x-foreign", "content_encoding": "binary"}),
    "a content type that is not accepted": (
        b"\x80\x04K\x01.",
        {"content_type": "application/x-python-serialize", "content_encoding": "binary"},
    ),
    "a mebibyte of random bytes as JSON": (MEBIBYTE, JSON),
    "a mebibyte of random bytes": (MEBIBYTE, {"content_type": "application/octet-stream", "content_encoding": "binary"}),
}


@pytest.mark.parametrize(("body", "properties"), UNDECODABLE.values(), ids=UNDECODABLE)
def test_what_cannot_be_decoded_is_dead_lettered(app, name, body, properties):
    is_dead_byte_for_byte(app, name, "undecodable", body, headers=headers(name), **properties)


@pytest.mark.parametrize("compression", ["application/x-gzip", "application/x-bz2", "application/x-never-heard-of"])
def test_what_cannot_be_decompressed_is_dead_lettered(app, name, compression):
    is_dead_byte_for_byte(app, name, "undecodable", b"\x00not compressed", headers=headers(name, compression=compression), **JSON)


# -- unknown task ---------------------------------------------------------------------------------------------------


def test_a_task_that_nobody_knows_is_dead_lettered_and_its_result_is_a_failure(app, name):
    sent = headers(name, task="shop.of_tomorrow")
    properties = {"correlation_id": f"id-{name}", "reply_to": "somewhere", **JSON}
    certificate = is_dead_byte_for_byte(app, name, "unknown_task", GOOD, headers=sent, **properties)
    assert certificate["task"] == "shop.of_tomorrow"
    with pytest.raises(NotRegistered):
        app.app.AsyncResult(f"id-{name}").get(timeout=5)


@pytest.mark.parametrize(
    ("compression", "compress"), [("application/x-gzip", zlib.compress), ("application/x-bz2", None), ("gzip", gzip.compress)]
)
def test_a_compressed_body_is_dead_lettered_as_it_was_on_the_wire(app, name, compression, compress):
    import bz2

    body = (compress or bz2.compress)(GOOD)
    reason = "undecodable" if compression == "gzip" else "unknown_task"  # kombu's gzip is zlib's, and is called otherwise
    is_dead_byte_for_byte(app, name, reason, body, headers=headers(name, task="shop.of_tomorrow", compression=compression), **JSON)


def test_a_compressed_task_that_fails_for_good_is_dead_lettered_as_it_was_on_the_wire(app, name):
    body = zlib.compress(json.dumps([[name], {}, {}]).encode())
    sent = headers(name, task="testapp.fail_for_good", compression="application/x-gzip")
    app.broker.publish_raw(app.queue, body, headers=sent, **JSON)
    letter = only_letter(app)
    assert (letter.body, letter.content_type, letter.content_encoding) == (body, "application/json", "utf-8")
    assert letter.headers["compression"] == "application/x-gzip"
    assert letter.headers["guardrails"]["reason"] == "permanent"


def test_a_compressed_task_that_is_tried_again_stays_as_it_was_on_the_wire(app, name):
    body = zlib.compress(json.dumps([[name], {"error": "ConnectionError"}, {}]).encode())
    sent = headers(name, task="testapp.fail", compression="application/x-gzip")
    app.broker.publish_raw(app.queue, body, headers=sent, **JSON)
    letter = only_letter(app)
    assert letter.body == body
    assert letter.headers["guardrails"]["attempts"] == app.ledger.count(name, "start") == 3


# -- invalid --------------------------------------------------------------------------------------------------------

INVALID = {
    "no id": (GOOD, {"id": None}),
    "an id that is a number": (GOOD, {"id": 7}),
    "an empty id": (GOOD, {"id": ""}),
    "no task": (GOOD, {"task": None}),
    "a task that is a list": (GOOD, {"task": ["a"]}),
    "a timelimit that is a text": (GOOD, {"timelimit": "soon"}),
    "a timelimit of texts": (GOOD, {"timelimit": ["a", "b"]}),
    "a timelimit of three": (GOOD, {"timelimit": [1, 2, 3]}),
    "an eta that is no date": (GOOD, {"eta": "tomorrow"}),
    "expires that is no date": (GOOD, {"expires": "never"}),
    "retries that are no number": (GOOD, {"retries": "many"}),
    "no body": (b"", {}),
    "a body of two": (b"[[], {}]", {}),
    "a body that is a text": (b'"text"', {}),
    "a body that is a number": (b"42", {}),
    "a body that is null": (b"null", {}),
    "arguments that are a text": (b'["name", {}, {}]', {}),
    "keyword arguments that are a list": (b"[[], [1], {}]", {}),
    "options that are a list": (b"[[], {}, [1]]", {}),
    "arguments without the key's": (b"[[], {}, {}]", {}),
    "too many arguments": (b"[[1, 2, 3, 4, 5], {}, {}]", {}),
}


@pytest.mark.parametrize(("body", "changes"), INVALID.values(), ids=INVALID)
def test_what_is_no_task_message_is_dead_lettered(app, name, body, changes):
    sent = headers(name, **changes)
    app.broker.publish_raw(app.queue, body, headers=sent, **JSON)
    letter = only_letter(app)
    assert letter.body == body
    assert (letter.content_type, letter.content_encoding) == ("application/json", "utf-8")
    assert {key: value for key, value in letter.headers.items() if key != "guardrails"} == sent
    assert letter.headers["guardrails"]["reason"] == "invalid"
    assert letter.headers["guardrails"]["message"]
    goes_on(app, name)


@pytest.mark.parametrize("body", [b'{"hello": "world"}', b'{"task": "testapp.effect"}', b'{"task": "testapp.effect", "id": 1}', b"[]"])
def test_what_has_no_headers_and_is_no_message_of_the_old_protocol_is_dead_lettered(app, name, body):
    is_dead_byte_for_byte(app, name, "invalid", body, **JSON)


# -- not even a message ---------------------------------------------------------------------------------------------

GARBAGE = {
    "bytes": b"\x00\xff not JSON at all",
    "an empty item": b"",
    "a text": b"hello",
    "a JSON number": b"42",
    "JSON null": b"null",
    "a JSON list": b'["a"]',
    "a JSON object": b'{"hello": "world"}',
    "a message without properties": b'{"body": "e30=", "headers": {}, "content-type": "application/json"}',
    "a message with empty properties": b'{"body": "e30=", "headers": {}, "properties": {}}',
    "a message whose properties are a list": b'{"body": "e30=", "headers": {}, "properties": []}',
    "a message whose body is no base64": json.dumps(
        {
            "body": "abc",
            "headers": {},
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "properties": {"delivery_tag": "t", "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "q"}},
        }
    ).encode(),
    "a message whose delivery info is null": json.dumps(
        {"body": "e30=", "headers": {}, "properties": {"delivery_tag": "t2", "body_encoding": "base64", "delivery_info": None}}
    ).encode(),
    "a message whose headers are a list": json.dumps(
        {
            "body": base64.b64encode(GOOD).decode(),
            "headers": ["a"],
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "properties": {"delivery_tag": "t3", "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "q"}},
        }
    ).encode(),
}


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("item", GARBAGE.values(), ids=GARBAGE)
def test_an_item_of_the_list_that_is_no_message_is_dead_lettered_and_the_worker_goes_on(app, name, item):
    app.broker.push_garbage(app.queue, item)
    letter = only_letter(app)
    assert letter.body == item
    assert letter.headers["guardrails"]["reason"] == "undecodable"
    assert letter.headers["guardrails"]["queue"] == app.queue
    goes_on(app, name)
    assert len(app.letters()) == 1
    with app.broker.connection() as connection:  # it would come again after every visibility timeout, and be buried each time
        client = connection.default_channel.client
        eventually(lambda: (client.hlen("unacked"), client.zcard("unacked_index")) == (0, 0), 20)


def test_a_hundred_bad_messages_among_good_ones_lose_none(app, name):
    good = []
    for number in range(100):
        app.broker.publish_raw(app.queue, b"{%d" % number, headers=headers(name), **JSON)
        if number % 5 == 0:
            good.append(app.send("effect", f"{name}.{number}"))
    assert [result.get(timeout=20) for result in good]
    letters = eventually(lambda: len(found := app.letters()) == 100 and found, 20, every=0.2)
    assert {letter.body for letter in letters} == {b"{%d" % number for number in range(100)}
