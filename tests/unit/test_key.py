"""Idempotency keys and fingerprints of arguments."""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import json
import math
import os
import subprocess
import sys
import uuid
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from ipaddress import ip_address
from pathlib import PurePosixPath
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import attrs
import pydantic
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kombu.serialization import dumps, loads

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.canonical import DEPTH_LIMIT
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


@pytest.mark.parametrize(("template", "expected"), [("{c}", "red"), ("{c:>5}", "  red"), ("{c!r}", "'red'"), ("{c.name}", "RED")])
def test_a_member_of_an_enumeration_stands_for_its_value_on_every_python(template: str, expected: str) -> None:
    class Colour(str, Enum):
        RED = "red"

    class Plain(Enum):
        RED = "red"

    assert key(template, c=Colour.RED) == key(template, c=Plain.RED) == expected


def test_an_integer_member_of_an_enumeration_is_a_number() -> None:
    assert key("{level:03}", level=Level.HIGH) == "003"


@pytest.mark.parametrize("value", [object(), [object()], lambda: None, memoryview(b""), (n for n in ())])
def test_what_prints_its_place_in_memory_makes_no_key(value: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="place in memory"):
        key("{value}", value=value)
    assert key("{value}", value="<object at 0x7f>") == "<object at 0x7f>"


@pytest.mark.parametrize("value", [{"a", "b"}, frozenset("ab")])
def test_what_prints_itself_in_another_order_each_time_makes_no_key(value: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="order"):
        key("{value}", value=value)


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


class Colour(Enum):
    RED = "red"


class Shade(str, Enum):
    DARK = "dark"


class Level(IntEnum):
    HIGH = 3


class Sized(float, Enum):
    HALF = 0.5


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    id: int
    lines: tuple[Line, ...] = ()
    due: dt.date | None = None
    loaded_at: float = dataclasses.field(default_factory=iter(range(1000)).__next__, compare=False)
    kind: ClassVar[str] = "order"


@dataclasses.dataclass
class Opened:
    path: str
    mode: dataclasses.InitVar[str]


@attrs.define
class Parcel:
    sku: str
    weight: Decimal
    cache: dict[str, int] = attrs.field(factory=dict, eq=False)


class Address(pydantic.BaseModel):
    city: str


class Capital(Address):
    country: str


class Invoice(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", populate_by_name=True)
    number: int = pydantic.Field(alias="invoiceNumber")
    total: Decimal
    issued: dt.datetime
    address: Address
    tags: set[str] = pydantic.Field(default_factory=set)
    weight: float = 1.0
    data: bytes = b""


class Reduced:
    """What a project teaches kombu's JSON."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __json__(self) -> Any:
        return {"reduced": self.value}


def same(one: Any, other: Any) -> bool:
    return fingerprint({"x": one}, None) == fingerprint({"x": other}, None)


NOON = dt.datetime(2024, 5, 6, 12, tzinfo=dt.timezone.utc)
ID = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


ROME = dt.timezone(dt.timedelta(hours=2))


class Proxy(Model):
    """Shaped like a proxy of that model."""

    def __init__(self, pk: Any, name: str) -> None:
        super().__init__(pk, name)
        concrete = SimpleNamespace(_meta=self._meta)
        self._meta = SimpleNamespace(label_lower="shop.proxy", concrete_model=concrete)


class Shouted(str):  # noqa: SLOT000 - as others write them
    """A text that prints itself in another way, as Django's and others' do."""

    def __str__(self) -> str:
        return self.upper()


def invoice(**changes: Any) -> Invoice:
    fields = {"number": 1, "total": "1.50", "issued": NOON, "address": Address(city="Rome"), "tags": {"x", "y", "z"}, "extra": None}
    return Invoice(**{**fields, **changes})


def golden_values() -> dict[str, Any]:
    return {
        "none": None,
        "truth": [True, False],
        "text": "naïve \u2603 \U0001f600",
        "integer": [0, -1, 2**53, 10**30],
        "huge integer": 10**5000,
        "float": [1.0, -0.0, 1.5, 1e22, 1e-7, 0.1 + 0.2, 5e-324],
        "not finite": [math.nan, math.inf, -math.inf],
        "decimal": [Decimal("1.50"), Decimal("1E+5"), Decimal("-0")],
        "datetime": [NOON, NOON.replace(tzinfo=None), NOON.replace(microsecond=5), NOON.astimezone(ROME)],
        "date": dt.date(2024, 5, 6),
        "time": [dt.time(12, 30), dt.time(12, 30, tzinfo=dt.timezone.utc)],
        "timedelta": [dt.timedelta(days=1, seconds=2, microseconds=3), dt.timedelta(microseconds=-1)],
        "uuid": ID,
        "enum": [Colour.RED, Shade.DARK, Level.HIGH, Sized.HALF],
        "bytes": b"a\xff",
        "set": {3, 1, "b", "a", (1, 2)},
        "mapping": {"b": 1, "a": {None: 1, True: 2, 2.0: 3, 5: 4, (1, 2): 5}},
        "tuple": (1, (2,), Point(3, 4)),
        "path": PurePosixPath("/a/b"),
        "fraction": Fraction(1, 3),
        "address": ip_address("10.0.0.1"),
        "dataclass": Order(1, (Line("x", 2),), dt.date(2024, 5, 6)),
        "attrs": Parcel("x", Decimal("1.5")),
        "pydantic": invoice(),
        "row": [Model(7, "x"), Model(ID, "x"), Model((1, "a"), "x")],
        "reduced": Reduced(1),
    }


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
        (Model(7, "one"), Proxy(7, "proxy")),
        (Model(ID, "one"), Model(str(ID), "one")),
        (1e22, 10**22),
        (-(2.0**53), -(2**53)),
        (math.nan, float("nan")),
        (NOON.replace(tzinfo=None), "2024-05-06T12:00:00"),
        (dt.datetime(2024, 5, 6, 12, tzinfo=ROME), "2024-05-06T12:00:00+02:00"),
        (dt.time(12, 30, tzinfo=dt.timezone.utc), "12:30:00+00:00"),
        (dt.timedelta(days=1, seconds=2), dt.timedelta(seconds=86402)),
        (Colour.RED, "red"),
        (Shade.DARK, "dark"),
        (Level.HIGH, 3),
        (Sized.HALF, 0.5),
        ({Shade.DARK: 1, Level.HIGH: 2, Colour.RED: 3}, {"dark": 1, "3": 2, "red": 3}),
        ({NOON: 1, ID: 2, Decimal("1.5"): 3}, {NOON.isoformat(): 1, str(ID): 2, "1.5": 3}),
        (Shouted("loud"), "loud"),
        (Point(1, 2), [1, 2]),
        (Order(1, (Line("x", 2),), dt.date(2024, 5, 6)), {"id": 1, "lines": [{"sku": "x", "count": 2}], "due": "2024-05-06"}),
        (Order(1), Order(1)),  # loaded at other times, which it does not compare
        (Opened("/a", "r"), {"path": "/a"}),
        (Parcel("x", Decimal("1.5"), {"a": 1}), {"sku": "x", "weight": "1.5"}),
        (Reduced([1, (2,)]), {"reduced": [1, [2]]}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (memoryview(b"ab"), b"ab"),
        (ip_address("::1"), "::1"),
        (invoice(), invoice(extra=None).model_dump() | {"extra": None}),
        (invoice(), Invoice.model_validate_json(invoice().model_dump_json(by_alias=True))),
        (pydantic.RootModel[list[int]]([1, 2]), {"root": [1, 2]}),
        (pydantic.TypeAdapter(pydantic.AnyUrl).validate_python("https://example.com/a"), "https://example.com/a"),
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
        (1.5, "1.5"),
        (math.nan, None),
        (math.nan, math.inf),
        (math.inf, -math.inf),
        (math.inf, "inf"),
        (2**53, 2**53 + 1),
        (b"ab", b"ac"),
        (NOON, NOON.replace(tzinfo=None)),
        (NOON, NOON + dt.timedelta(microseconds=1)),
        (NOON, NOON.time()),
        (dt.timedelta(0), dt.timedelta(microseconds=1)),
        (dt.timedelta(days=-1), dt.timedelta(days=1)),
        ({1, 2}, {1, 3}),
        (Point(1, 2), Point(2, 1)),
        (Line("x", 2), Line("x", 3)),
        (Order(1, (Line("x", 2),)), Order(1, (Line("y", 2),))),
        (Parcel("x", Decimal(1)), Parcel("x", Decimal(2))),
        (invoice(), invoice(number=2)),
        (invoice(), invoice(total="1.51")),
        (invoice(), invoice(tags={"a"})),
        (invoice(), invoice(extra=2)),
        (invoice(weight=math.nan), invoice(weight=math.inf)),
        (invoice(data=b"\xff"), invoice(data=b"\xfe")),
        (invoice(address=Capital(city="Rome", country="Italy")), invoice(address=Capital(city="Rome", country="Georgia"))),
    ],
)
def test_these_are_not(one: Any, other: Any) -> None:
    assert not same(one, other)


CLASSES = [type, Model, Invoice, Line, Parcel, Colour, dt.datetime]


@pytest.mark.parametrize("value", [object(), lambda: None, Exception("x"), pydantic.SecretStr("x"), dt.timezone.utc, *CLASSES])
def test_what_has_no_stable_form_is_refused_with_the_way_out(value: Any) -> None:
    with pytest.raises(TypeError, match="fingerprint"):
        canonical(value)


@pytest.mark.parametrize("value", [range(3), (n for n in ()), iter([1]), zip([1], [2], strict=True)])
def test_what_is_read_once_or_does_not_travel_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"list\(\.\.\.\)"):
        canonical(value)


def test_integers_too_long_for_pythons_decimal_digits_are_told_apart() -> None:
    assert same(10**5000, 10**5000)
    assert not same(10**5000, 10**5000 + 1)
    assert not same(10**5000, -(10**5000))


@pytest.mark.parametrize("pk", [None, (None, None), (1, None)])
def test_a_row_that_is_not_saved_is_refused(pk: Any) -> None:
    with pytest.raises(TypeError, match=r"shop\.order that is not saved"):
        canonical(Model(pk, "new"))


def test_the_argument_that_has_no_stable_form_is_named() -> None:
    with pytest.raises(TypeError, match="argument 'order': a shop.order"):
        fingerprint({"amount": 1, "order": [{"of": Model(None, "new")}]}, None)


def cycles() -> list[Any]:
    a_list: list[Any] = []
    a_list.append((a_list,))
    a_mapping: dict[str, Any] = {}
    a_mapping["self"] = [a_mapping]
    an_object = Line("x", 1)
    an_object.sku = an_object  # type: ignore[assignment]
    return [a_list, a_mapping, an_object, Reduced(a_list)]


@pytest.mark.parametrize("value", cycles(), ids=["list", "mapping", "object", "reducer"])
def test_what_contains_itself_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="contains itself"):
        fingerprint({"x": value}, None)


def test_what_contains_itself_is_refused_in_the_depth_of_a_stack_too() -> None:
    def deep(levels: int) -> str | None:
        return deep(levels - 1) if levels else fingerprint({"x": cycles()[0]}, None)

    room = sys.getrecursionlimit() - len(inspect.stack())
    with pytest.raises(TypeError, match="contains itself"):
        deep(room - 150)


def test_deep_is_not_yet_endless() -> None:
    value: Any = 1
    for _ in range(DEPTH_LIMIT):
        value = [value]
    assert canonical(value)
    with pytest.raises(TypeError):
        canonical([[value]])


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


#: Whole seconds: CPython's ``datetime.fromisoformat`` (3.11) reads "+00:00:00.000001", an offset of no place, as UTC.
offsets = st.integers(-23 * 3600, 23 * 3600).map(lambda seconds: dt.timezone(dt.timedelta(seconds=seconds)))
#: What kombu's JSON takes and gives back as it was.
zones = st.timezones() | offsets | st.none()
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=st.none() | st.just(dt.timezone.utc))
    | st.uuids()
    | st.decimals(allow_nan=False)
)
carried = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(carried)
def test_a_trip_through_celerys_own_json_changes_no_fingerprint(value: Any) -> None:
    content_type, encoding, data = dumps(value, "json")
    assert same(value, loads(data, content_type, encoding))


@given(plain)
def test_the_canonical_form_is_its_own_canonical_form(value: Any) -> None:
    once = canonical(value)
    assert canonical(once) == once
    json.dumps(once)


@given(plain, plain)
def test_what_json_tells_apart_has_another_fingerprint(one: Any, other: Any) -> None:
    assert same(one, other) == (form_of(one) == form_of(other))


def form_of(value: Any) -> Any:
    """What JSON tells apart, by another way: texts, truths and numbers tagged, names as JSON writes them."""
    if isinstance(value, dict):
        return {json.loads(json.dumps({name: 0})).popitem()[0]: form_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [form_of(item) for item in value]
    kind = "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
    return kind, value


@pytest.mark.parametrize(
    "values",
    [
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.datetimes(timezones=st.none() | st.just(dt.timezone.utc)),
        st.dates(),
        st.times(),
        st.timedeltas(),
        st.uuids(),
        st.decimals(allow_nan=False).filter(lambda value: value == value.normalize()).map(Decimal.normalize),
        st.frozensets(st.integers() | st.text()),
        st.builds(Line, st.text(), st.integers()),
        st.builds(Model, st.integers(), st.just("")),
        st.builds(Address, city=st.text()),
    ],
)
def test_different_values_of_a_type_have_different_fingerprints(values: Any) -> None:
    @given(values, values)
    def check(one: Any, other: Any) -> None:
        equal = one.pk == other.pk if isinstance(one, Model) else one == other
        assert same(one, other) == equal

    check()


# -- calls ----------------------------------------------------------------------------------------------------------


@given(st.data(), st.integers(), st.text(), st.dictionaries(st.sampled_from("uvw"), st.integers()))
def test_every_way_to_make_the_same_call_has_the_same_fingerprint(data: Any, order_id: int, currency: str, extra: dict[str, int]) -> None:
    named = {"order_id": order_id, "currency": currency, "note": "n", **extra}
    expected = fingerprint(arguments_of(**named), None)
    order = data.draw(st.permutations(sorted(named)))
    assert fingerprint(arguments_of(**{name: named[name] for name in order}), None) == expected
    positional = [named.pop("order_id"), named.pop("currency")][: data.draw(st.integers(0, 2))]
    rest = dict(zip(("order_id", "currency"), (order_id, currency), strict=True))
    for name in list(rest)[: len(positional)]:
        del rest[name]
    assert fingerprint(arguments_of(*positional, **rest, **named), None) == expected


@given(st.dictionaries(st.sampled_from(["order_id", "currency", "note", "more"]), carried, min_size=1))
def test_the_worker_computes_what_the_publisher_computed(call: dict[str, Any]) -> None:
    call = {"order_id": 1, **call}
    content_type, encoding, data = dumps(((), call, {}), "json")
    args, kwargs, _ = loads(data, content_type, encoding)
    assert fingerprint(arguments_of(*args, **kwargs), None) == fingerprint(arguments_of(**call), None)


# -- for ever -------------------------------------------------------------------------------------------------------

#: A change here makes conflicts of the keys that run, or are kept, while a release is deployed.
GOLDEN = {
    "none": "29b98d3787513525",
    "truth": "5d682baf7ad36820",
    "text": "ae597db663d4e796",
    "integer": "973f3300df61b9b2",
    "huge integer": "250a103083ac70fa",
    "float": "29e1d66ff8e2570f",
    "not finite": "40ba44bd549be5ea",
    "decimal": "cf67275b99570111",
    "datetime": "aa795a9543fcac95",
    "date": "5cf7bb8de9aa878d",
    "time": "1a2b247a91e3591a",
    "timedelta": "f91c099e355d252a",
    "uuid": "1bd534777dfa8ce9",
    "enum": "53364eaef5e2c3f9",
    "bytes": "7a67ec59929a8dd5",
    "set": "1c0cd0a3b21fa2c5",
    "mapping": "1a3b594cc55b9b73",
    "tuple": "c0be6cebb6764c5f",
    "path": "38f2993a85d8269b",
    "fraction": "604b93f578ae6918",
    "address": "38f2af356e0ee309",
    "dataclass": "7d00c5f1b2b5a6cb",
    "attrs": "f7cb1009dfaf49b0",
    "pydantic": "54e56111336d0686",
    "row": "8110b9a51bf40bf7",
    "reduced": "196906e233798f88",
}


@pytest.mark.parametrize(("which", "expected"), GOLDEN.items())
def test_a_fingerprint_is_the_same_in_every_release(which: str, expected: str) -> None:
    assert fingerprint({"x": golden_values()[which]}, None) == expected


def test_every_golden_value_is_kept() -> None:
    assert golden_values().keys() == GOLDEN.keys()


def test_a_fingerprint_of_several_arguments_is_the_same_in_every_release() -> None:
    arguments = {"order_id": 7, "at": NOON, "lines": ({"sku": "x"},), "price": 1.5}
    assert fingerprint(arguments, None) == "bdea6677bedc6414"


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_a_fingerprint_is_the_same_whatever_the_process_hashes_with(seed: str) -> None:
    script = "from celery_guardrails.policy.key import fingerprint as f; print(f({'x': [{'b', 'a', 'c', 1, 2}, frozenset('xyz')]}, None))"
    environ = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint({"x": [{"c", "a", "b", 2, 1}, frozenset("zyx")]}, None)
