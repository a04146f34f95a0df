"""Keys and fingerprints at their edges."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.policy.canonical import DEPTH_LIMIT, canonical
from celery_guardrails.policy.key import KEY_LIMIT, make_key, template_fields


def key(template: Any, **arguments: Any) -> str | None:
    return make_key(template, arguments, (), arguments)


@pytest.mark.parametrize("letter", ["a", "é", "\ud800"], ids=["ascii", "accent", "lone surrogate"])
@pytest.mark.parametrize("length", [KEY_LIMIT + 1, KEY_LIMIT + 100, 10 * KEY_LIMIT])
def test_a_key_beyond_512_characters_is_its_head_and_a_digest(letter: str, length: int) -> None:
    assert KEY_LIMIT == 512
    text = letter * length
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    shortened = key("{a}", a=text)
    assert shortened == f"{letter * 479}#{digest}"
    assert len(shortened) == 512


def test_a_key_of_512_characters_is_kept() -> None:
    assert key("{a}", a="a" * 512) == "a" * 512


def test_long_keys_that_differ_at_their_end_only_are_kept_apart() -> None:
    assert key("{a}", a="a" * 600 + "x") != key("{a}", a="a" * 600 + "y")


def test_a_format_may_come_from_an_argument() -> None:
    assert key("{n:{width}}|{n:0{order.width}}", n=7, width=3, order={"width": 4}) == "  7|0007"


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("plain", []),
        ("", []),
        ("{a}", ["a"]),
        ("x:{order.id}:{b!r}:{c:>3}:tail", ["order", "b", "c"]),
        ("{{no}}{yes}", ["yes"]),
    ],
)
def test_the_fields_of_a_template_are_the_names_at_the_head_of_its_paths(template: str, fields: list[str]) -> None:
    assert list(template_fields(template)) == fields


@pytest.mark.parametrize("template", ["{a", "a}", "{a!}"])
def test_what_is_no_template_has_no_fields(template: str) -> None:
    with pytest.raises(ValueError, match="."):
        list(template_fields(template))


class Shouting(str):
    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return str(self).upper()


class Placed:
    pass


@pytest.mark.parametrize("value", [Placed(), {1, 2}, frozenset({1}), lambda: None], ids=["object", "set", "frozenset", "function"])
def test_what_every_process_prints_in_another_way_is_no_key(value: Any) -> None:
    with pytest.raises(GuardrailsConfigError, match="cannot be filled"):
        key("{a}", a=value)


def test_a_text_may_look_like_a_place_in_memory() -> None:
    assert key("{a}", a="meet at 0x10") == "meet at 0x10"
    assert key("{a}", a=Shouting("meet at 0x10")) == "MEET AT 0X10"


def test_an_integer_of_ten_thousand_bits_is_the_longest_that_stays_a_number() -> None:
    assert canonical(2**9_999) == 2**9_999
    assert canonical(-(2**9_999)) == -(2**9_999)
    assert canonical(2**10_000) == f"{2**10_000:#x}"


def test_a_time_zone_is_its_name() -> None:
    assert canonical(ZoneInfo("Europe/Rome")) == "Europe/Rome"


def test_an_address_of_pydantic_is_its_text() -> None:
    core = pytest.importorskip("pydantic_core")
    assert canonical(core.Url("https://example.org/a?b=1")) == "https://example.org/a?b=1"


@dataclasses.dataclass(frozen=True)
class Box:
    content: Any


class Reduced:
    def __init__(self, content: Any) -> None:
        self.content = content

    def __json__(self) -> Any:
        return self.content


@pytest.mark.parametrize("wrap", [lambda it: [it], lambda it: (it,), lambda it: {"a": it}, lambda it: frozenset([it]), Box, Reduced])
def test_two_hundred_levels_within_the_first_are_allowed(wrap: Any) -> None:
    value: Any = 0
    for _ in range(DEPTH_LIMIT + 1):
        value = wrap(value)
    canonical(value)
    with pytest.raises(TypeError, match="more than 200 levels"):
        canonical(wrap(value))
