"""Words and defaults that stand in messages, in stores and in people's dashboards: another release must mean the same by them."""

from __future__ import annotations

from typing import Any

import pytest

from celery_guardrails.policy import classification, deadletter, delivery, leaks, retry, verdict
from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import Delivery, Travel, of_one_delivery
from celery_guardrails.policy.history import PastAttempt, PastDeath
from celery_guardrails.policy.lease import Claim, ClaimState, Record, RecordState, StoredResult, release
from celery_guardrails.policy.lease import claim as take
from celery_guardrails.policy.progress import Progress
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.suspicion import CROWDED, QUARANTINE, QUARANTINED
from celery_guardrails.policy.verdict import DeadLetterNow, Limits, PassThrough, Rejected, Run


def test_states_are_called_what_the_documentation_calls_them() -> None:
    assert [state.value for state in RecordState] == ["idle", "leased", "completed"]
    assert [state.value for state in ClaimState] == ["claimed", "busy", "completed", "conflict", "refused", "unavailable"]


def test_kinds_reasons_and_jitters_are_those_of_the_documentation() -> None:
    assert classification.KINDS == ("retryable", "throttled", "permanent", "poison")
    assert (
        *("permanent", "exhausted", "deadline", "poison", "undecodable"),
        *("unknown_task", "invalid", "conflict", "rejected", "broker"),
    ) == deadletter.REASONS
    assert retry.JITTERS == ("full", "equal", "decorrelated", "none")


def test_headers_have_the_names_that_live_messages_carry() -> None:
    assert (delivery.TRAVEL_HEADER, delivery.DEAD_LETTER_HEADER, delivery.ORIGINAL_PREFIX) == (
        "x-guardrails",
        "guardrails",
        "guardrails-original-",
    )


def test_the_quarantine_has_a_key_that_no_release_may_change_and_no_template_makes() -> None:
    assert (QUARANTINE, QUARANTINED, CROWDED) == ("\x7fquarantine", "quarantine", "crowded")


def test_leaks_are_of_the_kinds_that_logs_and_events_name() -> None:
    assert (leaks.THREADS, leaks.CHILDREN, leaks.FILES, leaks.MEMORY) == ("threads", "child processes", "open files", "memory")


@pytest.mark.parametrize(
    ("header", "of_one"),
    [
        ("x-death", True),
        ("x-delivery-count", True),
        ("x-acquired-count", True),
        ("redelivered", True),
        ("x-first-death-queue", True),
        ("x-last-death-reason", True),
        ("x-first-death", False),
        ("x-deaths", False),
        ("id", False),
    ],
)
def test_what_a_broker_writes_on_a_delivery_is_known_by_name(header: str, of_one: bool) -> None:
    assert of_one_delivery(header) is of_one


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        (StoredResult(), (None, None, b"", "")),
        (Record(), (RecordState.IDLE, None, 0, 0, 0, "", 0.0, 0.0, "", None, {}, 0, False)),
        (Claim(ClaimState.BUSY), (ClaimState.BUSY, 0, 0, 0, False, 0.0, "", None, {}, None, Progress(), 0)),
        (Travel(), (None, None, 0, 0, 0, None, 0, None, None, None, False, None, (), (), (), False, 0)),
        (PastAttempt(), (0, 0.0, "", "", "", "", 0)),
        (PastDeath(), ("", "", None)),
        (Delivery("id", "name", "key", None, "h"), ("id", "name", "key", None, "h", "", Travel(), False, None)),
        (Classification("retryable"), ("retryable", None, "default")),
        (
            DeathCertificate("poison"),
            ("poison", "", "", None, "", "", "", "", 0, 0, None, None, "", "", "", "", 0, ()),
        ),
        (Rejected(), (False,)),
        (DeadLetterNow("poison", 1), ("poison", 1, 0, "")),
        (Limits(), (RetryPolicy(), 3, "return", True, "defer", 60.0, None, 5, None)),
        (Progress(), ({}, 0, None, 0, 0, 0, None)),
        (Run(1, None), (1, None, True, False)),
        (PassThrough(), (0, False)),
        (RetryPolicy(), (12, 1.0, 600.0, "full", None, True)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_said_has_a_plain_default(made: Any, fields: tuple[Any, ...]) -> None:
    assert tuple(vars(made).values()) == fields


def test_two_answers_of_a_store_are_the_same_whatever_the_time() -> None:
    assert Claim(ClaimState.BUSY, now=1.0) == Claim(ClaimState.BUSY, now=2.0)


def test_the_first_steps_of_waiting_are_the_documented_ones() -> None:
    assert (verdict.STORE_BACKOFF, verdict.BUSY_STEP, verdict.CROWDED_BACKOFF) == ((1.0, 30.0), 0.5, (2.0, 30.0))


def test_a_suspect_is_tried_elsewhere_as_often_as_documented() -> None:
    assert delivery.TRIES == 5


def test_a_claim_that_says_no_more_has_no_owner_and_no_attempts() -> None:
    record, claim = take(None, holder="a", fingerprint=None, lease=10.0, now=1000.0)
    assert (record.owner, record.attempts, claim.attempts) == ("", 0, 0)


def test_a_release_that_says_no_more_charges_nothing_and_forgets_nothing() -> None:
    record, _ = take(None, holder="a", fingerprint=None, lease=10.0, now=1000.0, attempts=2)
    released, done = release(record, holder="a")
    assert done
    assert released is not None
    assert (released.attempts, released.crashes) == (2, 0)


def test_the_text_that_a_certificate_keeps_is_as_long_as_documented() -> None:
    header = DeathCertificate("poison", message="m" * 5000, traceback="t" * 50_000).to_header()
    assert (len(header["message"]), len(header["traceback"])) == (2048, 16_384)
