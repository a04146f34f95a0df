"""Celery and billiard."""

from __future__ import annotations

from ..classification import PERMANENT, RETRYABLE
from .table import Rules, always

__all__ = ["RULES"]

RULES: Rules = {
    # Celery's names for them are aliases: the classes are billiard's
    **always(
        RETRYABLE,
        "billiard.exceptions",
        "SoftTimeLimitExceeded",
        "TimeLimitExceeded",
        "WorkerLostError",
        "Terminated",
        prefix="celery",
    ),
    **always(RETRYABLE, "celery.exceptions", "TimeoutError", "IncompleteStream", "BackendError", "WorkerShutdown", "WorkerTerminate"),
    **always(
        PERMANENT,
        "celery.exceptions",
        "NotRegistered",
        "AlreadyRegistered",
        "QueueNotFound",
        "InvalidTaskError",
        "MaxRetriesExceededError",
        "TaskRevokedError",
        "ChordError",
        "ImproperlyConfigured",
        "SecurityError",
    ),
}
