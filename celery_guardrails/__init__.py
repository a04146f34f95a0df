"""celery-guardrails: background jobs as state machines under failure, on top of standard Celery."""

from __future__ import annotations

from .errors import (
    DeadLetterError,
    DeadlineExceeded,
    DuplicateTask,
    GuardrailsConfigError,
    GuardrailsError,
    IdempotencyConflict,
    LeaseLost,
    PermanentError,
    PoisonTask,
    QueueFull,
    RejectedTask,
    RetryableError,
    StoreUnavailable,
)
from .execution import Execution, current_execution
from .integration.app import Guardrails, classify
from .integration.decorator import guarded_task
from .integration.task import GuardedTask
from .policy.breaker import CircuitBreaker
from .policy.budget import RetryBudget
from .policy.classification import Classification
from .policy.retry import RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "CircuitBreaker",
    "Classification",
    "DeadLetterError",
    "DeadlineExceeded",
    "DuplicateTask",
    "Execution",
    "GuardedTask",
    "Guardrails",
    "GuardrailsConfigError",
    "GuardrailsError",
    "IdempotencyConflict",
    "LeaseLost",
    "PermanentError",
    "PoisonTask",
    "QueueFull",
    "RejectedTask",
    "RetryBudget",
    "RetryPolicy",
    "RetryableError",
    "StoreUnavailable",
    "classify",
    "current_execution",
    "guarded_task",
]
