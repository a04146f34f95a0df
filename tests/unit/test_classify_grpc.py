"""The wait in a gRPC call's trailing metadata, byte by byte; and what google-api-core makes of it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.policy.classify import Classifier
from celery_guardrails.policy.rules.grpc import metadata_wait
from celery_guardrails.policy.rules.table import LONGEST

classify = Classifier(default_kind="permanent")
RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"


def call(*pairs: tuple[str, Any]) -> Any:
    return SimpleNamespace(trailing_metadata=lambda: pairs)


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def duration(seconds: int | None = None, nanos: int | None = None) -> bytes:
    return (b"" if seconds is None else number(1, seconds)) + (b"" if nanos is None else number(2, nanos))


def waited(data: bytes) -> float | None:
    return metadata_wait(call(("google.rpc.retryinfo-bin", data)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1500", 1.5),
        (b"1500", 1.5),
        ("0", 0.0),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("9" * 15, LONGEST),
        ("0" * 12 + "500", 0.5),
        ("0" * 13 + "500", None),
    ],
)
def test_pushback_is_whole_milliseconds_of_at_most_fifteen_digits(text: Any, seconds: float | None) -> None:
    assert metadata_wait(call(("grpc-retry-pushback-ms", text))) == seconds


@pytest.mark.parametrize(
    "what", [None, SimpleNamespace(), SimpleNamespace(trailing_metadata=()), call(), SimpleNamespace(trailing_metadata=lambda: None)]
)
def test_a_call_without_trailing_metadata_asks_for_nothing(what: Any) -> None:
    assert metadata_wait(what) is None


def test_other_metadata_is_passed_over() -> None:
    assert metadata_wait(call(("content-type", "x"), ("grpc-retry-pushback-ms", "no"), ("grpc-retry-pushback-ms", "250"))) == 0.25


@pytest.mark.parametrize(
    ("seconds", "nanos", "wait"),
    [
        (3, None, 3.0),
        (None, 500_000_000, 0.5),
        (3, 250_000_000, 3.25),
        (0, 0, 0.0),
        (2**63 - 1, 0, LONGEST),
        (2**63, 0, None),
        (2**64 - 1, 0, None),
    ],
)
def test_a_duration_is_seconds_and_nanoseconds_and_never_below_nothing(seconds: int | None, nanos: int | None, wait: float | None) -> None:
    assert waited(message(1, duration(seconds, nanos))) == wait


def test_a_duration_in_two_parts_is_put_together() -> None:
    assert waited(message(1, duration(3)) + message(1, duration(None, 500_000_000))) == 3.5


def test_no_duration_is_no_wait() -> None:
    assert waited(b"") is None
    assert waited(message(2, duration(3))) is None
    assert waited(number(1, 3)) is None


@pytest.mark.parametrize(
    "before",
    [
        number(9, 5),
        number(16, 300),
        message(9, b"abc"),
        message(9, b"x" * 300),
        varint(9 << 3 | 1) + b"\xff" * 8,
        varint(9 << 3 | 5) + b"\xff" * 4,
    ],
    ids=["a number", "a long tag", "a text", "a long text", "64 bits", "32 bits"],
)
def test_fields_of_every_wire_type_are_stepped_over(before: bytes) -> None:
    assert waited(before + message(1, duration(3))) == 3.0
    assert waited(message(1, before + duration(3))) == 3.0


@pytest.mark.parametrize("group", [3, 4, 6, 7])
def test_what_cannot_be_read_ends_the_message(group: int) -> None:
    assert waited(varint(9 << 3 | group) + message(1, duration(3))) is None
    assert waited(varint(9 << 3 | group) + b"\x00" + message(1, duration(3))) is None
    assert waited(message(1, duration(3)) + varint(9 << 3 | group) + message(1, duration(None, 1))) == 3.0


def test_a_text_where_a_number_belongs_is_no_number() -> None:
    assert waited(message(1, message(1, b"abc") + number(2, 500_000_000))) == 0.5


@pytest.mark.parametrize("cut", range(1, 7))
def test_of_a_message_that_is_cut_off_what_is_there_is_read(cut: int) -> None:
    whole = message(1, duration(300, 500_000_000))
    found = waited(whole[:-cut])
    assert found is not None
    assert 300.0 <= found < 300.5


def test_a_number_that_does_not_end_ends_the_message() -> None:
    assert waited(b"\xff" * 30) is None
    assert waited(message(1, b"\x08\x80")) == 0.0
    assert waited(message(1, b"\x08" + b"\x83" + b"\x80" * 9 + b"\x00" + number(2, 500_000_000))) == 3.0, "nothing is read after it"


def test_a_number_of_ten_bytes_is_read_and_what_follows_it() -> None:
    assert waited(message(1, b"\x08" + b"\x83" + b"\x80" * 8 + b"\x00" + number(2, 500_000_000))) == 3.5


def status(*details: tuple[bytes, bytes]) -> Any:
    """google.rpc.Status with details, each a google.protobuf.Any."""
    data = number(1, 14) + message(2, b"busy") + b"".join(message(3, message(1, name) + message(2, value)) for name, value in details)
    return call(("grpc-status-details-bin", data))


def test_of_a_rich_status_the_retry_info_counts() -> None:
    info = message(1, duration(7))
    assert metadata_wait(status((RETRY_INFO, info))) == 7.0
    assert metadata_wait(status((b"type.googleapis.com/google.rpc.DebugInfo", info))) is None
    assert metadata_wait(status((b"type.googleapis.com/google.rpc.DebugInfo", message(1, duration(9))), (RETRY_INFO, info))) == 7.0
    assert metadata_wait(status()) is None


# -- google-api-core, by the names and attributes of its errors -----------------------------------------------------


def google(name: str, **attributes: Any) -> Any:
    base = type("GoogleAPICallError", (Exception,), {"__module__": "google.api_core.exceptions"})
    return type(name, (base,), {"__module__": "google.api_core.exceptions", **attributes})("x")


def grpc_code(name: Any) -> Any:
    return SimpleNamespace(name=name)


def told(error: Any) -> tuple[str, float | None, str]:
    found = classify(error)
    return found.kind, found.retry_after, found.rule


DELAY = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.5s"}]


def test_the_grpc_code_decides_and_the_retry_info_says_when() -> None:
    assert told(google("ServiceUnavailable", grpc_status_code=grpc_code("UNAVAILABLE"), details=DELAY)) == (
        "retryable",
        2.5,
        "grpc.UNAVAILABLE",
    )
    assert told(google("Other", grpc_status_code=grpc_code("NOT_FOUND"), code=503, details=DELAY)) == ("permanent", None, "grpc.NOT_FOUND")
    assert told(google("Slow", grpc_status_code=grpc_code("RESOURCE_EXHAUSTED"))) == ("throttled", None, "grpc.RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("code", [grpc_code("NEW_ONE"), grpc_code(7), grpc_code([]), None])
def test_without_a_code_of_grpc_that_is_known_the_http_status_decides(code: Any) -> None:
    assert told(google("Bad", grpc_status_code=code, code=503, details=DELAY)) == ("retryable", 2.5, "http.503")
    assert told(google("Bad", grpc_status_code=code, code=404, details=DELAY)) == ("permanent", None, "http.404")
    assert told(google("Bad", grpc_status_code=code)) == ("permanent", None, "default")


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("Aborted", 409, ("retryable", "grpc.ABORTED")),
        ("Cancelled", 499, ("retryable", "grpc.CANCELLED")),
        ("DataLoss", 500, ("permanent", "grpc.DATA_LOSS")),
    ],
)
def test_classes_whose_http_code_misleads_go_by_their_name(name: str, code: int, expected: tuple[str, str]) -> None:
    kind, _, rule = told(google(name, code=code))
    assert (kind, rule) == expected


@pytest.mark.parametrize(
    ("details", "wait"),
    [
        ([{"retryDelay": "3s"}], 3.0),
        ([{"retryDelay": "0.000000001s"}], 1e-9),
        ([{"retryDelay": "3"}], None),
        ([{"retryDelay": "s"}], None),
        ([{"retryDelay": "3s "}], None),
        ([{}], None),
        ([{"other": 1}, {"retryDelay": "4s"}], 4.0),
        ([SimpleNamespace(retry_delay=SimpleNamespace(seconds=5, nanos=250_000_000))], 5.25),
        ([SimpleNamespace(), SimpleNamespace(retry_delay=SimpleNamespace(seconds=6, nanos=0))], 6.0),
        ([], None),
    ],
)
def test_the_details_may_be_messages_or_json(details: Any, wait: float | None) -> None:
    assert told(google("Busy", grpc_status_code=grpc_code("UNAVAILABLE"), details=details)) == ("retryable", wait, "grpc.UNAVAILABLE")


@pytest.mark.parametrize(
    "error", [google("A"), google("A", code=7), google("A", code="503"), google("A", code=200), google("A", code=None)]
)
def test_an_error_without_any_status_says_nothing(error: Any) -> None:
    assert told(error) == ("permanent", None, "default")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Classifier()(error).rule == "default"


def test_without_details_the_transports_answer_says_when() -> None:
    rest = SimpleNamespace(headers={"Retry-After": "9"})
    assert told(google("Busy", code=503, response=rest)) == ("retryable", 9.0, "http.503")
    wire = call(("grpc-retry-pushback-ms", "1250"))
    assert told(google("Busy", code=503, response=wire)) == ("retryable", 1.25, "http.503")
    assert told(google("Busy", code=503, response=None)) == ("retryable", None, "http.503")


@pytest.mark.parametrize(
    ("retryable", "kind", "rule"),
    [(True, "retryable", "google.GoogleAuthError"), (False, "permanent", "default"), (None, "permanent", "default")],
)
def test_google_auth_says_itself_whether_to_come_again(retryable: Any, kind: str, rule: str) -> None:
    error = type("GoogleAuthError", (Exception,), {"__module__": "google.auth.exceptions", "retryable": retryable})("x")
    assert told(error) == (kind, None, rule)
