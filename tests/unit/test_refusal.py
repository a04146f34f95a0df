"""The error that stands for a refusal."""

from __future__ import annotations

import pytest

from celery_guardrails.errors import DeadlineExceeded, DuplicateTask, IdempotencyConflict, NoProgress, PermanentError, PoisonTask
from celery_guardrails.policy.delivery import Delivery
from celery_guardrails.policy.refusal import refusal

DELIVERY = Delivery(task_id="id-1", task_name="shop.charge", key="charge:1", fingerprint=None, holder="h")


@pytest.mark.parametrize(
    ("reason", "error", "told"),
    [
        ("conflict", IdempotencyConflict, "key 'charge:1' is in use for other arguments: .*fingerprint="),
        ("duplicate", DuplicateTask, "key 'charge:1' has completed"),
        ("deadline", DeadlineExceeded, r"shop\.charge\[id-1\]: its deadline passed"),
        ("exhausted", NoProgress, r"shop\.charge\[id-1\] gets nowhere: why$"),
        ("poison", PoisonTask, r"shop\.charge\[id-1\] killed its worker .*guardrails_max_crashes.; why$"),
    ],
)
def test_each_reason_has_an_error_of_its_own_that_says_what_was_refused(reason: str, error: type[PermanentError], told: str) -> None:
    refused = refusal(reason, DELIVERY, "why")
    assert type(refused) is error
    with pytest.raises(error, match=told):
        raise refused


def test_a_reason_says_no_more_than_is_known() -> None:
    assert str(refusal("poison", DELIVERY)).endswith("(guardrails_max_crashes)")
