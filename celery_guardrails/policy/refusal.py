"""The errors that stand for a refusal: in the task's result, and in its dead letter."""

from __future__ import annotations

from ..errors import DeadlineExceeded, DuplicateTask, IdempotencyConflict, NoProgress, PermanentError, PoisonTask
from .delivery import Delivery

__all__ = ["refusal"]


def refusal(reason: str, delivery: Delivery, why: str = "") -> PermanentError:
    """Return the error that stands for a refusal in the task's result.

    Args:
        reason: of the verdict.
        delivery: that was refused.
        why: what the verdict says besides.
    """
    key = delivery.key
    if reason == "conflict":
        return IdempotencyConflict(f"key {key!r} is in use for other arguments: make the key finer, or name fingerprint=(...)")
    if reason == "duplicate":
        return DuplicateTask(f"key {key!r} has completed already")
    if reason == "deadline":
        return DeadlineExceeded(f"{delivery.task_name}[{delivery.task_id}]: its deadline passed before it could start")
    if reason == "exhausted":
        return NoProgress(f"{delivery.task_name}[{delivery.task_id}] gets nowhere: {why}")
    more = f"; {why}" if why else ""
    return PoisonTask(f"{delivery.task_name}[{delivery.task_id}] killed its worker too often (guardrails_max_crashes){more}")
