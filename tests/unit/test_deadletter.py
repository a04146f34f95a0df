"""The header that says why a message is dead, and the fingerprint of an error."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.deadletter import (
    MESSAGE_LIMIT,
    REASONS,
    TRACEBACK_LIMIT,
    DeathCertificate,
    error_fingerprint,
)

texts = st.text(max_size=50)
counts = st.integers(0, 2**31)
moments = st.none() | st.floats(0, 2**40)
certificates = st.builds(
    DeathCertificate,
    reason=st.sampled_from(REASONS),
    task=texts,
    task_id=texts,
    key=st.none() | texts,
    error=texts,
    message=texts,
    traceback=texts,
    fingerprint=texts,
    attempts=counts,
    crashes=counts,
    first_seen=moments,
    last_seen=moments,
    worker=texts,
    exchange=texts,
    routing_key=texts,
    queue=texts,
    replays=counts,
)
garbage: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(), st.binary(), st.lists(st.integers())
)


@given(certificates)
def test_the_certificate_comes_back_as_it_went_also_through_json(certificate: DeathCertificate) -> None:
    header = certificate.to_header()
    assert DeathCertificate.from_header(header) == certificate
    assert DeathCertificate.from_header(json.loads(json.dumps(header))) == certificate


def test_the_header_keeps_the_head_of_the_message_and_the_tail_of_the_traceback() -> None:
    header = DeathCertificate("permanent", message="m" + "x" * 10_000, traceback="x" * 100_000 + "t").to_header()
    assert (header["message"][0], len(header["message"])) == ("m", MESSAGE_LIMIT)
    assert (header["traceback"][-1], len(header["traceback"])) == ("t", TRACEBACK_LIMIT)


def test_none_is_left_out_of_the_header() -> None:
    header = DeathCertificate("poison").to_header()
    assert None not in header.values()
    assert "key" not in header


@pytest.mark.parametrize("header", [None, "", "text", 5, [], {}, {"reason": None}, {"reason": 5}, {"task": "x"}, b"{}"])
def test_a_header_that_is_not_ours_is_none(header: Any) -> None:
    assert DeathCertificate.from_header(header) is None


@given(st.dictionaries(st.sampled_from(list(DeathCertificate.__dataclass_fields__)) | st.text(), garbage), st.text())
def test_garbage_in_our_header_gives_a_certificate_of_the_right_types(header: dict[str, Any], reason: str) -> None:
    found = DeathCertificate.from_header({**header, "reason": reason})
    assert found is not None
    assert found.reason == reason
    for count in (found.attempts, found.crashes, found.replays):
        assert type(count) is int
    for text in (found.task, found.task_id, found.error, found.message, found.traceback, found.worker, found.queue):
        assert isinstance(text, str)
    assert found.key is None or isinstance(found.key, str)
    assert found.first_seen is None or type(found.first_seen) is float
    assert found.last_seen is None or type(found.last_seen) is float


# -- fingerprints ---------------------------------------------------------------------------------------------------


def traced(function: Callable[[], Any]) -> tuple[str, str]:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever it is, its traceback is looked at
        return type(error).__qualname__, "".join(traceback.format_exception(error))
    raise AssertionError


def at_other_lines(source: str, blank_lines: int) -> Callable[..., Any]:
    """Define ``work`` in a file that has so many more lines above it."""
    names: dict[str, Any] = {}
    exec(compile("\n" * blank_lines + source, "/srv/app/tasks.py", "exec"), names)
    return names["work"]  # type: ignore[no-any-return]


WORK = "def work(n):\n    if n:\n        return work(n - 1)\n    raise ValueError(f'order {id(work)} is wrong')\n"


def test_the_same_failure_at_other_lines_with_other_literals_has_the_same_fingerprint() -> None:
    prints = {error_fingerprint(*traced(lambda lines=lines: at_other_lines(WORK, lines)(0))) for lines in (0, 1, 40)}  # type: ignore[misc]
    assert len(prints) == 1


def test_another_class_another_function_and_another_path_have_other_fingerprints() -> None:
    error, trace = traced(lambda: at_other_lines(WORK, 0)(0))
    others = {
        error_fingerprint(error, trace),
        error_fingerprint("KeyError", trace),
        error_fingerprint(error, trace.replace("in work", "in rest")),
        error_fingerprint(error, trace.replace("tasks.py", "views.py")),
        error_fingerprint(*traced(lambda: at_other_lines(WORK, 0)(1))),
    }
    assert len(others) == 5


def test_the_directory_of_a_release_does_not_count() -> None:
    error, trace = traced(lambda: at_other_lines(WORK, 0)(0))
    assert error_fingerprint(error, trace) == error_fingerprint(error, trace.replace("/srv/app/", "/srv/releases/42/app/"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups come with Python 3.11")
def test_the_frames_of_a_groups_members_count() -> None:
    def group(source: str) -> None:
        try:
            at_other_lines(source, 0)(0)
        except ValueError as error:
            raise ExceptionGroup("several", [error]) from None  # noqa: F821 - skipped on 3.10

    one, other = (
        traced(lambda: group(WORK)),
        traced(lambda: group(WORK.replace("work(n - 1)", "0").replace("def work", "def rest") + "work = rest")),
    )
    assert error_fingerprint(*one) != error_fingerprint(*other)


@given(st.text(), st.text())
def test_a_fingerprint_is_sixteen_hex_digits_of_anything(error: str, trace: str) -> None:
    found = error_fingerprint(error, trace)
    assert len(found) == 16
    assert int(found, 16) >= 0
