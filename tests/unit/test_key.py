"""Idempotency keys and fingerprints of arguments."""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import json
import uuid
from decimal import Decimal
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kombu.serialization import dumps, loads

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.key import KEY_LIMIT, bind_arguments, canonical, fingerprint, make_key


def key(template: Any, **arguments: Any) -> str | None:
    return make_key(template, arguments, (), arguments)


# -- templates ------------------------------------------------------------------------------------------------------


def test_a_template_is_filled_from_the_arguments() -> None:
    assert key("charge:{order_id}", order_id=7) == "charge:7"
    assert key("{a}-{b}", a="x", b="y") == "x-y"
    assert key("{amount:08.2f}", amount=1.5) == "00001.50"
    assert key("constant") == "constant"
    assert key("{{{a}}}", a=1) == "{1}"


def test_dotted_paths_go_over_attributes_and_mappings() -> None:
    order = SimpleNamespace(id=7, customer={"name": "Ann", "address": SimpleNamespace(city="Rome")})
    assert key("{order.id}:{order.customer.name}:{order.customer.address.city}", order=order) == "7:Ann:Rome"


@pytest.mark.parametrize("template", ["{order.__class__}", "{order._secret}", "{order.id.__class__}", "{order.customer._x}"])
def test_private_names_are_refused(template: str) -> None:
    order = SimpleNamespace(id=7, _secret=1, customer={"_x": 1})
    with pytest.raises(GuardrailsConfigError, match="cannot be filled"):
        key(template, order=order)


def test_private_names_are_refused_inside_a_format_too() -> None:
    with pytest.raises(GuardrailsConfigError):
        key("{a:{b.__class__}}", a=1, b=2)


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        ("{missing}", {"a": 1}),
        ("{a.missing}", {"a": 1}),
        ("{a.missing}", {"a": {}}),
        ("{}", {"a": 1}),
        ("{0}", {"a": 1}),
        ("{a[0]}", {"a": [1]}),
        ("{a:d}", {"a": "text"}),
        ("{a:>5}", {"a": None}),
        ("{a", {"a": 1}),
        ("{a}", {"a": ""}),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_with_its_text(template: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(GuardrailsConfigError) as refused:
        key(template, **arguments)
    assert repr(template) in str(refused.value)


def test_a_callable_gets_the_arguments_as_they_were_given() -> None:
    assert make_key(lambda order, *, prefix: f"{prefix}{order}", {}, (7,), {"prefix": "p"}) == "p7"


@pytest.mark.parametrize("value", [None, 7, "", b"x"])
def test_a_callable_must_return_a_text(value: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="text"):
        make_key(lambda: value, {}, (), {})


def test_without_a_template_there_is_no_key() -> None:
    assert key(None, a=1) is None


@given(st.text(min_size=1, max_size=3 * KEY_LIMIT, alphabet=st.characters()))
def test_a_key_is_kept_up_to_the_limit_and_shortened_beyond(text: str) -> None:
    found = key("{text}", text=text)
    assert found is not None
    assert found == text if len(text) <= KEY_LIMIT else len(found) == KEY_LIMIT


def test_long_keys_that_differ_at_the_end_stay_different() -> None:
    assert key("{text}", text="x" * 1000 + "a") != key("{text}", text="x" * 1000 + "b")


# -- arguments ------------------------------------------------------------------------------------------------------


def charge(order_id: int, currency: str = "EUR", *lines: int, note: str | None = None, **extra: Any) -> None:
    """Stand for a task."""


def arguments_of(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return bind_arguments(inspect.signature(charge), args, kwargs)


def test_positional_named_and_default_arguments_are_the_same_call() -> None:
    calls = [
        arguments_of(7),
        arguments_of(order_id=7),
        arguments_of(7, "EUR"),
        arguments_of(7, currency="EUR"),
        arguments_of(7, "EUR", note=None),
    ]
    assert {fingerprint(call, None) for call in calls} == {fingerprint(calls[0], None)}
    assert fingerprint(arguments_of(8), None) != fingerprint(calls[0], None)
    assert fingerprint(arguments_of(7, "USD"), None) != fingerprint(calls[0], None)


def test_further_names_lie_beside_the_others() -> None:
    assert arguments_of(7, "EUR", 1, 2, colour="red") == {"order_id": 7, "currency": "EUR", "lines": (1, 2), "note": None, "colour": "red"}


def test_arguments_that_do_not_fit_are_a_type_error() -> None:
    with pytest.raises(TypeError):
        arguments_of()


def test_only_the_chosen_arguments_count() -> None:
    assert fingerprint({"a": 1, "b": 2}, ("a",)) == fingerprint({"a": 1, "b": 3}, ("a",))
    assert fingerprint({"a": 1, "b": 2}, ("a",)) != fingerprint({"a": 2, "b": 2}, ("a",))
    assert fingerprint({"a": 1}, True) == fingerprint({"a": 1}, None)


@pytest.mark.parametrize("names", [False, (), []])
def test_no_names_are_no_check(names: Any) -> None:
    assert fingerprint({"a": 1}, names) is None


# -- the canonical form ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Line:
    sku: str
    count: int


class Model:
    """Shaped like a model of Django."""

    def __init__(self, pk: Any, name: str) -> None:
        self.pk = pk
        self.name = name
        self._meta = SimpleNamespace(label_lower="shop.order")


class Pydantic:
    def model_dump(self, *, mode: str) -> dict[str, Any]:
        return {"mode": mode}


def same(one: Any, other: Any) -> bool:
    return fingerprint({"x": one}, None) == fingerprint({"x": other}, None)


NOON = dt.datetime(2024, 5, 6, 12, tzinfo=dt.timezone.utc)
ID = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), [1, 2]),
        ({"a": (1,), "b": 2}, {"b": 2, "a": [1]}),
        (1, 1.0),
        (0.0, -0.0),
        ({5: "a", None: "b", True: "c", 2.0: "d"}, {"5": "a", "null": "b", "true": "c", "2.0": "d"}),
        ({3, 1, 2}, frozenset([1, 2, 3])),
        (b"ab", bytearray(b"ab")),
        (NOON, NOON.isoformat()),
        (dt.date(2024, 5, 6), "2024-05-06"),
        (dt.time(12, 30), "12:30:00"),
        (ID, str(ID)),
        (Decimal("1.50"), "1.50"),
        (PurePosixPath("/a/b"), "/a/b"),
        (Line("x", 2), {"sku": "x", "count": 2}),
        (Model(7, "one"), Model(7, "other name")),
        (Pydantic(), {"mode": "json"}),
    ],
)
def test_these_are_the_same_argument(one: Any, other: Any) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, "1"),
        (1, True),
        (None, ""),
        (None, "null"),
        ([], {}),
        ("a", ["a"]),
        (1.5, 1.25),
        (Model(7, "x"), Model(8, "x")),
        (Decimal("1.5"), Decimal("1.50")),
    ],
)
def test_these_are_not(one: Any, other: Any) -> None:
    assert not same(one, other)


@pytest.mark.parametrize("value", [object(), lambda: None, (n for n in ()), Exception("x"), type])
def test_what_has_no_stable_form_is_refused_with_the_way_out(value: Any) -> None:
    with pytest.raises(TypeError, match="fingerprint"):
        canonical(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(
            st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False), inner, max_size=4
        )
    ),
    max_leaves=15,
)


@given(plain)
def test_a_trip_through_json_changes_no_fingerprint(value: Any) -> None:
    through = json.loads(json.dumps(value))
    assume(len(json.dumps(value)) == len(json.dumps(through)))  # {1: .., "1": ..}: two names that JSON makes one
    assert same(value, through)


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.text()
        | st.datetimes(timezones=st.just(dt.timezone.utc))
        | st.dates()
        | st.uuids()
        | st.decimals(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_a_trip_through_celerys_own_json_changes_no_fingerprint(value: Any) -> None:
    content_type, encoding, data = dumps(value, "json")
    assert same(value, loads(data, content_type, encoding))


@given(plain)
def test_the_canonical_form_is_its_own_canonical_form(value: Any) -> None:
    once = canonical(value)
    assert canonical(once) == once
    json.dumps(once)


def test_a_fingerprint_is_the_same_in_every_process_and_release() -> None:
    arguments = {"order_id": 7, "at": NOON, "lines": ({"sku": "x"},), "price": 1.5}
    assert fingerprint(arguments, None) == "5e89caf586e63209"
