"""The errors that stand for a refusal: in the task's result, and in its dead letter."""

from __future__ import annotations

from ..errors import DeadlineExceeded, DuplicateTask, IdempotencyConflict, PermanentError, PoisonTask
from .delivery import Delivery

__all__ = ["refusal"]


def refusal(reason: str, delivery: Delivery) -> PermanentError:
    """Return the error that stands for a refusal in the task's result."""
    key = delivery.key
    if reason == "conflict":
        return IdempotencyConflict(f"key {key!r} is in use for other arguments: make the key finer, or name fingerprint=(...)")
    if reason == "duplicate":
        return DuplicateTask(f"key {key!r} has completed already")
    if reason == "deadline":
        return DeadlineExceeded(f"{delivery.task_name}[{delivery.task_id}]: its deadline passed before it could start")
    return PoisonTask(f"{delivery.task_name}[{delivery.task_id}] killed its worker too often (guardrails_max_crashes)")
