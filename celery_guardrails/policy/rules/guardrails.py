"""Errors of this package that are raised while a task runs."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from .table import Look, Rules, always, attribute, seconds

__all__ = ["RULES"]


def _queue_full(error: Any, _look: Look) -> Classification:
    return Classification(THROTTLED, seconds(attribute(error, "retry_after")), "guardrails.QueueFull")


RULES: Rules = {
    "celery_guardrails.errors.QueueFull": _queue_full,
    **always(RETRYABLE, "celery_guardrails.errors", "StoreUnavailable", "PublishFailed", "LeaseLost", prefix="guardrails"),
    **always(PERMANENT, "celery_guardrails.errors", "GuardrailsConfigError", prefix="guardrails"),
}
