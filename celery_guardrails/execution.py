"""What a task's body can learn about its own execution."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import GuardrailsError

__all__ = ["Execution", "Step", "Tether", "current_execution", "executing"]

#: Namespace of the keys of recovery points (RFC 9562, version 5); it never changes, or a downstream would see new work.
STEP_NAMESPACE = uuid.UUID("5d8f4f0e-2f59-5f0c-9a35-1c0f6a0f7b11")


class Tether(Protocol):
    """What ties an execution to its lease and its record in the store."""

    def now(self) -> float:
        """Return unix time in seconds, by the store's clock."""

    def stopping(self) -> bool:
        """Return whether the worker has been told to stop."""

    def ensure_live(self) -> None:
        """Raise LeaseLost where the lease is another's."""

    def recall(self, name: str) -> tuple[bool, Any]:
        """Return whether a recovery point is done, and its value."""

    def remember(self, name: str, value: Any) -> None:
        """Keep a recovery point; raise LeaseLost where the lease is another's."""


class Untethered:
    """An execution without a lease: eager mode, or a store that is away under ``guardrails_store_failure = "open"``."""

    def __init__(self, now: Callable[[], float] = lambda: 0.0, stopping: Callable[[], bool] = lambda: False) -> None:
        self.now = now
        self.stopping = stopping
        self._steps: dict[str, Any] = {}

    def ensure_live(self) -> None:
        """Nothing to lose."""

    def recall(self, name: str) -> tuple[bool, Any]:
        """Remember for as long as this run lasts."""
        return name in self._steps, self._steps.get(name)

    def remember(self, name: str, value: Any) -> None:
        """Remember for as long as this run lasts."""
        self._steps[name] = value


@dataclass
class Step:
    """A recovery point.

    Args:
        name: unique within the task.
        key: idempotency key for a downstream: the same in every run of the task for this idempotency key, a version 5
            UUID of both (RFC 9562).
        done: it was completed by an earlier run; skip its work.
        value: what that run kept; set it to what this run should keep.
    """

    name: str
    key: str
    done: bool = False
    value: Any = None


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
    _tether: Tether = field(default_factory=Untethered, repr=False)

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline (not below 0), or None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - self._tether.now())

    def should_stop(self) -> bool:
        """Return whether the worker has been told to stop (SIGTERM)."""
        return self._tether.stopping()

    def ensure_live(self) -> None:
        """Ask the store whether this execution still holds its lease, and extend it; call it before what cannot be undone.

        One round trip. It narrows the window in which a process that was frozen acts beside its successor; only a
        downstream that compares :attr:`fence` closes it (docs/fencing.md).

        Raises:
            LeaseLost: another execution has taken the key over; let it through, and nothing is charged or recorded.
            StoreUnavailable: the store did not answer.
        """
        self._tether.ensure_live()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Open a recovery point: once its block has ended, no later run of this key does it again.

            with current_execution().step("charge") as step:
                if not step.done:
                    step.value = gateway.charge(order_id, idempotency_key=step.key)

        A block that raises is not done; it runs again with the same ``step.key``. The value is kept with the key's
        record by the result serializer, and for 30 days after the last run also where the task is dead-lettered: a
        replay goes on behind its last step. One round trip to the store for each step that is not yet done.

        Args:
            name: unique within the task; in a loop put the loop's variable into it.

        Raises:
            LeaseLost: another execution has taken the key over; let it through, and nothing is charged or recorded.
            StoreUnavailable: the store did not answer.
        """
        if not isinstance(name, str) or not name:
            raise GuardrailsError(f"step({name!r}): the name of a step is a text that is not empty")
        done, value = self._tether.recall(name)
        step = Step(name, str(uuid.uuid5(STEP_NAMESPACE, f"{self.key}\0{name}")), done, value)
        yield step
        if not done:
            self._tether.remember(name, step.value)


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
