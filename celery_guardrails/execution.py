"""What a task's body can learn about its own execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from .errors import GuardrailsError

__all__ = ["Execution", "current_execution", "executing"]


@dataclass
class Execution:
    """One run of a task's body.

    Args:
        key: idempotency key.
        fence: fencing token; rises with every claim of the key. Hand it to a downstream that can refuse older ones.
        attempt: number of this attempt, 1-based; deploys, crashes and waits are not counted.
        deliveries: how often the message has been delivered, this time included.
        deadline: unix time in seconds after which the task is given up, or None.
        crashes: processes that vanished while they ran this message.
    """

    key: str
    fence: int
    attempt: int
    deliveries: int
    deadline: float | None
    crashes: int = 0
    _now: Callable[[], float] = field(default=lambda: 0.0, repr=False)
    _stopping: Callable[[], bool] = field(default=lambda: False, repr=False)

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline (not below 0), or None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - self._now())

    def should_stop(self) -> bool:
        """Return whether the worker has been told to stop (SIGTERM)."""
        return self._stopping()


_current: ContextVar[Execution | None] = ContextVar("celery_guardrails_execution", default=None)


def current_execution() -> Execution:
    """Return the execution that this code runs in.

    Raises:
        GuardrailsError: outside a guarded task.
    """
    execution = _current.get()
    if execution is None:
        raise GuardrailsError("current_execution() is only known inside a guarded task that a worker runs")
    return execution


@contextmanager
def executing(execution: Execution) -> Iterator[Execution]:
    """Make an execution the current one."""
    token = _current.set(execution)
    try:
        yield execution
    finally:
        _current.reset(token)
