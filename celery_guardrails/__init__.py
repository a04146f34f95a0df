"""celery-guardrails: background jobs as state machines under failure, on top of standard Celery."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

#: Module → names, for :func:`__getattr__`. pytest imports this package for its plug-in in every project that has it installed:
#: Celery is loaded when somebody asks for something.
_HOMES = {
    "errors": (
        "DeadLetterError DeadlineExceeded DuplicateTask GuardrailsConfigError GuardrailsError IdempotencyConflict LeaseLost "
        "PermanentError PoisonTask QueueFull RejectedTask RetryableError StoreUnavailable"
    ),
    "execution": "Execution current_execution",
    "integration.app": "Guardrails classify",
    "integration.decorator": "guarded_task",
    "integration.task": "GuardedTask",
    "policy.breaker": "CircuitBreaker",
    "policy.budget": "RetryBudget",
    "policy.classification": "Classification",
    "policy.retry": "RetryPolicy",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
