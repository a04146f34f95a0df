"""The lines of an export: every type that a broker hands out comes back as it went."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.dead_letters.letter_format import PackedLetter, pack, unpack
from celery_guardrails.dead_letters.tagged import dumps, loads
from celery_guardrails.errors import DeadLetterError
from celery_guardrails.policy.delivery import RawMessage

MESSAGE = RawMessage(b"\x80\x00body", "application/json", "utf-8", {"id": "1"}, {"priority": 3}, "", "")
GOLDEN = (
    '{"v":1,"id":"1-abcdef01","queue":"celery","body":"gABib2R5","content_type":"application/json","content_encoding":"utf-8",'
    '"headers":{"id":"1"},"properties":{"priority":3}}'
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.datetimes()
    | st.datetimes(timezones=st.just(timezone.utc))
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["$bytes", "$map", "$"]), inner, max_size=2),
    max_leaves=8,
)


def through(**headers: Any) -> dict[str, Any]:
    line = pack(replace(MESSAGE, headers=headers), identifier="x", queue="q")
    assert line.isascii()
    assert "\n" not in line
    return dict(unpack(line).message.headers)


def typed(value: Any) -> Any:
    """Return the value with the type of each part, so that True is not 1 and 1.0 is not 1."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), value


def test_a_line_looks_like_this_in_every_release() -> None:
    assert pack(MESSAGE, identifier="1-abcdef01", queue="celery") == GOLDEN
    assert unpack(GOLDEN) == unpack(GOLDEN.encode()) == PackedLetter("1-abcdef01", "celery", MESSAGE)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, True),
        (1, 1),
        (1.0, 1.0),
        (None, None),
        ("\ud800\x00é", "\ud800\x00é"),
        (b"\xff", {"$bytes": "/w=="}),
        (bytearray(b"\xff"), {"$bytes": "/w=="}),
        (datetime(2026, 1, 2, 3, 4, 5), {"$time": "2026-01-02T03:04:05"}),  # noqa: DTZ001 - as py-amqp hands them out
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), {"$time": "2026-01-02T03:04:05+00:00"}),
        (date(2026, 1, 2), {"$date": "2026-01-02"}),
        (time(3, 4), {"$clock": "03:04:00"}),
        (Decimal("1.50"), {"$decimal": "1.50"}),
        (UUID(int=7), {"$uuid": "00000000-0000-0000-0000-000000000007"}),
        (math.inf, {"$float": "inf"}),
        (-math.inf, {"$float": "-inf"}),
        ([1, [None]], [1, [None]]),
        ({"b": 1, "a": {"$x": 1, "y": 2}}, {"a": {"$x": 1, "y": 2}, "b": 1}),
        ({"$bytes": "no bytes"}, {"$map": [["$bytes", "no bytes"]]}),
        ({1: b"x"}, {"$map": [[1, {"$bytes": "eA=="}]]}),
    ],
)
def test_each_type_is_written_so_and_comes_back(value: Any, written: Any) -> None:
    line = pack(replace(MESSAGE, headers={"h": value}), identifier="x", queue="q")
    assert typed(json.loads(line)["headers"]["h"]) == typed(written)
    assert typed(through(h=value)["h"]) == typed(bytes(value) if isinstance(value, bytearray) else value)


@given(values)
def test_a_row_of_the_archive_holds_it_in_the_same_form(value: Any) -> None:
    assert dumps(value).isascii()
    assert typed(loads(dumps(value))) == typed(value)
    assert json.loads(dumps(value)) == json.loads(pack(replace(MESSAGE, headers={"h": value}), identifier="x", queue="q"))["headers"]["h"]


def test_what_is_nested_too_deeply_is_refused_too() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DeadLetterError, match="deeply"):
        dumps(deep)


def test_no_number_comes_back_as_one() -> None:
    assert math.isnan(through(h=math.nan)["h"])


@given(st.dictionaries(st.text(), values, max_size=4))
def test_headers_come_back_with_their_types(headers: dict[str, Any]) -> None:
    assert typed(through(headers=headers)["headers"]) == typed(headers)
    message = unpack(pack(replace(MESSAGE, headers=headers, properties=headers), identifier="x", queue="q")).message
    assert typed(message.headers) == typed(message.properties) == typed(headers)


@given(st.binary(), st.none() | st.text(), st.none() | st.text())
def test_a_body_comes_back_byte_for_byte(body: bytes, content_type: str | None, encoding: str | None) -> None:
    message = replace(MESSAGE, body=body, content_type=content_type, content_encoding=encoding)
    assert unpack(pack(message, identifier="x", queue="q")).message == message


def test_the_order_of_headers_makes_no_difference() -> None:
    one, other = ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1})
    lines = {pack(replace(MESSAGE, headers=headers), identifier="x", queue="q") for headers in (one, other)}
    assert len(lines) == 1


def test_a_type_that_no_broker_hands_out_is_refused_by_name() -> None:
    with pytest.raises(DeadLetterError, match="a complex, which"):
        pack(replace(MESSAGE, headers={"h": [1j]}), identifier="x", queue="q")


GOOD = json.loads(GOLDEN)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        (b"\xff\xfe\xfd", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "no dead letter"),
        ("{}", "no dead letter"),
        ({"v": 2}, "version 2"),
        ({"v": True}, "version True"),
        ({"v": "1"}, "version '1'"),
        ({"queue": ""}, "queue ''"),
        ({"queue": None}, "queue None"),
        ({"body": "no base64!"}, "body: base64"),
        ({"body": None}, "body: base64"),
        ({"body": "gA"}, "body: base64"),
        ({"id": 7}, "id 7"),
        ({"content_type": 7}, "content_type 7"),
        ({"headers": None}, "headers: an object"),
        ({"headers": {"$bytes": "eA=="}}, "headers: an object"),
        ({"headers": {"$map": [[1, 2]]}}, "headers: an object"),
        ({"headers": {"h": {"$pickle": "x"}}}, "headers: ValueError: the type '\\$pickle' is unknown"),
        ({"headers": {"h": {"$bytes": "€"}}}, "headers: "),
        ({"headers": {"h": {"$time": "yesterday"}}}, "headers: ValueError"),
        ({"headers": {"h": {"$decimal": "x"}}}, "headers: InvalidOperation"),
        ({"headers": {"h": {"$float": "1"}}}, "headers: KeyError"),
        ({"headers": {"h": {"$map": 7}}}, "headers: TypeError"),
        ({"headers": {"h": {"$map": [[[], 1]]}}}, "headers: TypeError"),
        ({"headers": {"h": {"$uuid": 7}}}, "headers: AttributeError"),
        ({"properties": []}, "properties: an object"),
    ],
)
def test_a_line_that_is_no_letter_is_refused_with_the_reason(line: Any, why: str) -> None:
    text = json.dumps({**GOOD, **line}) if isinstance(line, dict) else line
    with pytest.raises(DeadLetterError, match=why):
        unpack(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_is_a_letter_or_refused(value: Any) -> None:
    for line in (json.dumps(value), json.dumps({**GOOD, "headers": value}), json.dumps({**GOOD, "headers": {"h": {"$map": value}}})):
        with contextlib.suppress(DeadLetterError):
            assert isinstance(unpack(line), PackedLetter)
