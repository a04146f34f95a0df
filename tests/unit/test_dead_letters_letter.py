"""What is read out of a message in a dead letter queue, whoever put it there."""

from __future__ import annotations

import bz2
import json
import pickle
import zlib
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_guardrails.dead_letters import KombuDecoder
from celery_guardrails.dead_letters import decoder as decoder_module
from celery_guardrails.dead_letters.letter import DeadLetter, read_letter
from celery_guardrails.dead_letters.redaction import HIDDEN, hide_secrets
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER, TRAVEL_HEADER, RawMessage, Travel
from tests.support.dead_letters import certificate_for, task_message

JSON = KombuDecoder(["json"])


def letter_of(message: RawMessage, accept: KombuDecoder = JSON) -> DeadLetter:
    return read_letter(message, queue="celery", dead_letter_queue="celery.dead", decoder=accept)


def dead(message: RawMessage, **fields: Any) -> RawMessage:
    return message.with_headers(**{DEAD_LETTER_HEADER: certificate_for(message, **fields).to_header()})


class Explosive:
    """Unpickled it would do harm."""

    exploded = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Explosive, "exploded", True))


# -- certificates ---------------------------------------------------------------------------------------------------


def test_our_certificate_is_read_as_it_was_written():
    message = task_message("shop.charge", 7, key="charge:7")
    letter = letter_of(dead(message, queue="orders"))
    assert letter.certificate == certificate_for(message, queue="orders")
    assert (letter.reason, letter.task, letter.key, letter.queue) == ("exhausted", "shop.charge", "charge:7", "orders")
    assert letter.died_at == 1_899_990_000.0
    assert letter.size == len(message.body)
    assert not letter.hopeless


def test_replays_are_counted_by_whichever_header_knows_of_more():
    message = task_message().with_headers(**{TRAVEL_HEADER: Travel(replays=2).to_header()})
    assert letter_of(dead(message, replays=0)).replays == 2
    assert letter_of(dead(message, replays=3)).replays == 3


def test_a_letter_without_a_key_goes_by_its_task_id():
    message = task_message(task_id="abc")
    assert letter_of(dead(message)).key == "abc"


@pytest.mark.parametrize("time", [datetime(2030, 1, 1, 12, 0, 0), 1893499200, 1893499200.0])  # noqa: DTZ001 - as amqp hands it out
def test_a_letter_of_the_broker_tells_where_and_why_and_when(time: object):
    message = task_message(
        key="charge:7",
        **{
            "x-death": [
                {
                    "queue": "celery_delayed_3",
                    "reason": "expired",
                    "time": 1893499100,
                    "exchange": "x",
                    "routing-keys": ["0.1.celery"],
                    "count": 1,
                },
                {"queue": "celery", "reason": "delivery_limit", "time": time, "exchange": "orders", "routing-keys": ["new"], "count": 1},
            ]
        },
    )
    letter = letter_of(message)
    assert letter.reason == "broker"
    assert letter.certificate.error == "broker.delivery_limit"
    assert "celery" in letter.certificate.message
    assert letter.died_at == 1893499200
    assert (letter.certificate.exchange, letter.certificate.routing_key) == ("orders", "new")
    assert (letter.task, letter.task_id, letter.key) == ("shop.charge", message.headers["id"], "charge:7")
    assert letter.certificate.attempts == 5
    assert letter.certificate.fingerprint


def test_the_newest_death_counts_where_none_is_of_the_task_queue():
    message = task_message(**{"x-death": [{"queue": "other", "reason": "maxlen"}, {"queue": "older", "reason": "expired"}]})
    assert letter_of(message).certificate.error == "broker.maxlen"


def test_a_message_of_another_program_is_a_letter_with_unknown_fields():
    letter = letter_of(RawMessage(b"\x00\xff", "application/octet-stream", None, {}, {}, "", ""))
    assert (letter.reason, letter.task, letter.task_id, letter.key) == ("broker", "", "", None)
    assert letter.queue == "celery"
    assert letter.died_at is None
    assert letter.hopeless


def test_a_message_of_protocol_1_is_known_by_its_body():
    body = json.dumps({"task": "shop.old", "id": "t-1", "args": [1], "kwargs": {"a": 2}}).encode()
    letter = letter_of(RawMessage(body, "application/json", "utf-8", {}, {}, "", "celery"))
    assert (letter.task, letter.task_id) == ("shop.old", "t-1")
    assert (letter.payload.args, letter.payload.kwargs) == ((1,), {"a": 2})
    assert not letter.hopeless


def test_undecodable_and_invalid_letters_are_hopeless():
    assert letter_of(dead(task_message(), reason="undecodable")).hopeless
    assert letter_of(dead(task_message(), reason="invalid")).hopeless


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=8,
)
_headers = st.dictionaries(
    st.sampled_from(["guardrails", "x-guardrails", "x-death", "id", "task", "retries", "compression", "foreign"]),
    _json | st.dictionaries(st.sampled_from(["reason", *DeathCertificate.__dataclass_fields__]), _json) | st.binary() | st.datetimes(),
)


@settings(deadline=None)
@given(
    body=st.binary(max_size=64),
    content_type=st.sampled_from([None, "", "application/json", "application/data", "application/x-python-serialize", "a/b"]),
    encoding=st.sampled_from([None, "utf-8", "binary", "no such"]),
    headers=_headers,
)
def test_no_message_whatever_breaks_the_reader(body, content_type, encoding, headers):
    letter = letter_of(RawMessage(body, content_type, encoding, headers, {}, "", ""))
    assert letter.id
    assert isinstance(letter.died_at, (float, type(None)))
    assert letter.replays >= 0
    letter.shown_payload()
    assert isinstance(letter.hopeless, bool)


# -- identifiers ----------------------------------------------------------------------------------------------------


def test_the_identifier_is_short_and_the_same_on_every_browse():
    message = dead(task_message(task_id="0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"))
    again = replace(message, headers={**message.headers, "x-delivery-count": 3}, properties={**message.properties, "delivery_tag": "other"})
    assert letter_of(message).id == letter_of(again).id
    assert letter_of(message).id.startswith("0a1b2c3d-")
    assert len(letter_of(message).id) == 17


def test_two_deaths_of_one_task_have_two_identifiers():
    message = task_message()
    assert letter_of(dead(message)).id != letter_of(dead(message, last_seen=1_899_990_001.0)).id


def test_an_identifier_can_be_typed_whatever_the_task_id_is():
    letter = letter_of(dead(task_message(task_id="\x1b[31m;rm -rf /")))
    assert letter.id.replace("-", "").isalnum()


# -- arguments ------------------------------------------------------------------------------------------------------


def test_a_pickle_is_never_loaded_unless_the_app_accepts_it():
    body = pickle.dumps(([Explosive()], {}, {}))
    message = replace(task_message(), body=body, content_type="application/x-python-serialize", content_encoding="binary")
    payload = letter_of(dead(message)).payload
    assert "accept_content" in payload.error
    assert not Explosive.exploded
    letter_of(dead(message), KombuDecoder(["json", "pickle"])).payload  # noqa: B018
    assert Explosive.exploded


@pytest.mark.parametrize(("name", "compress"), [("application/x-gzip", zlib.compress), ("application/x-bz2", bz2.compress)])
def test_compressed_arguments_are_read(name, compress):
    message = task_message("t", 1, "two", compression=name)
    message = replace(message, body=compress(message.body))
    assert letter_of(dead(message)).payload.args == (1, "two")


def test_a_body_that_unfolds_to_gigabytes_is_left_alone(monkeypatch):
    monkeypatch.setattr(decoder_module, "UNFOLDED_LIMIT", 1000)
    message = replace(task_message("t", compression="application/x-gzip"), body=zlib.compress(b"[" + b" " * 100_000 + b"]"))
    assert "unfolds to more than 1000 bytes" in letter_of(dead(message)).payload.error


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[1, 2]", b'"text"', b"[1, {}, {}]", b"[[], [], {}]", b"", b"[" * 100_000])
def test_a_broken_body_is_told_and_breaks_nothing(body):
    payload = letter_of(dead(replace(task_message(), body=body))).payload
    assert payload.error
    assert payload.args == ()


def test_values_with_a_telling_name_are_hidden_at_any_depth():
    value = {"user": "ann", "password": "x", "card": [{"card_number": "4111", "Api-Key": 1}], 5: {"access_token": "t"}}
    assert hide_secrets(value) == {
        "user": "ann",
        "password": HIDDEN,
        "card": [{"card_number": HIDDEN, "Api-Key": 1}],
        5: {"access_token": HIDDEN},
    }


def test_shown_arguments_are_redacted_and_the_true_ones_are_kept():
    body = json.dumps([[{"token": "t"}], {"password": "p", "order": 7}, {}]).encode()
    letter = letter_of(dead(replace(task_message(), body=body)))
    assert letter.shown_payload().args == ({"token": HIDDEN},)
    assert letter.shown_payload().kwargs == {"password": HIDDEN, "order": 7}
    assert letter.payload.kwargs["password"] == "p"
