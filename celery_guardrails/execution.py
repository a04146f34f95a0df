"""What a task's body can learn about its own execution."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .errors import GuardrailsError
from .loops import Loops, T
from .policy.progress import RESERVED
from .tether import Tether, Untethered

__all__ = ["Execution", "Step", "current_execution", "executing"]

#: Seconds between two saves of a cursor.
_EVERY = 2.0

#: Namespace of the keys of recovery points (RFC 9562, version 5); it never changes, or a downstream would see new work.
STEP_NAMESPACE = uuid.UUID("5d8f4f0e-2f59-5f0c-9a35-1c0f6a0f7b11")


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
        began: unix time in seconds at which the lease was taken, by the store's clock.
    """

    key: str
    fence: int
    attempt: int
    deliveries: int
    deadline: float | None
    crashes: int = 0
    began: float | None = None
    _tether: Tether = field(default_factory=Untethered, repr=False)
    _loops: Loops | None = field(default=None, init=False, repr=False, compare=False)

    def remaining(self) -> float | None:
        """Return the seconds left until the deadline (not below 0), or None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - self._tether.now())

    def should_stop(self) -> bool:
        """Return whether the worker has been told to stop (SIGTERM)."""
        return self._tether.stopping()

    def ensure_live(self) -> None:
        """Ask the store whether this execution still holds its lease, and extend it; call it before what cannot be undone.

        One round trip. It narrows the window in which a process that was frozen acts beside its successor; only a
        downstream that compares :attr:`fence` closes it (docs/exactly-once.md).

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
        if not isinstance(name, str) or not name or name.startswith(RESERVED):
            raise GuardrailsError(f"step({name!r}): the name of a step is a text that is not empty and does not begin with {RESERVED!r}")
        done, value = self._tether.recall(name)
        step = Step(name, str(uuid.uuid5(STEP_NAMESPACE, f"{self.key}\0{name}")), done, value)
        yield step
        if not done:
            self._tether.remember(name, step.value)

    # -- loops ------------------------------------------------------------------------------------------------

    def resume(
        self,
        rows_after: Callable[[Any], Iterable[tuple[Any, T]]],
        *,
        name: str = "",
        save_seconds: float = _EVERY,
        max_seconds: float | None = None,
    ) -> Iterator[T]:
        """Loop over items, and go on where the loop was when the task runs again: after a deploy, a crash, a retry, a replay.

            def rows_after(cursor):
                for row in Row.objects.filter(pk__gt=cursor or 0).order_by("pk").iterator():
                    yield row.pk, row

            for row in current_execution().resume(rows_after):
                handle(row)

        An item counts as handled when the loop asks for the next one. The cursor of the last one is saved every
        ``save_seconds``, at the end of the loop, when the body raises, and when the body has to leave: at SIGTERM, at the
        deadline, after ``max_seconds``. Then the message goes back into its queue at once, no attempt is charged, and the body
        ends with an exception that no ``except Exception`` catches. After a crash the items since the last save come again.

        Args:
            rows_after: called with the cursor of the last item that was handled, or None at the beginning; yields pairs of
                cursor and item, in the order of the cursors. A cursor is what JSON can hold, dates, UUIDs and decimals included;
                it comes back as JSON makes it (a tuple as a list). Operators see it.
            name: of the loop, where a task has several.
            save_seconds: between two saves.
            max_seconds: after which the task hands over to its own next run; ``guardrails_hand_over_seconds`` unless given.

        Raises:
            LeaseLost: another execution has taken the key over; let it through, and nothing is charged or recorded.
            GuardrailsConfigError: in a task with ``atomic``; a cursor that cannot be kept; two loops of one name.
        """
        return self._looping().run(rows_after, name, save_seconds, max_seconds)

    def cursor(self, name: str = "") -> Any:
        """Return where a loop of one's own goes on: what :meth:`checkpoint` was told last, in this run or an earlier one; else None."""
        return self._looping().cursor(name)

    def checkpoint(self, cursor: Any, *, name: str = "", save_seconds: float = _EVERY, max_seconds: float | None = None) -> None:
        """Say that everything up to ``cursor`` is handled: for loops that :meth:`resume` does not fit. Arguments and errors are the same.

            execution = current_execution()
            page = execution.cursor() or 1
            while rows := load(page):
                handle(rows)
                page += 1
                execution.checkpoint(page)

        It costs a round trip every ``save_seconds`` only, so it may be called for each item; it does not return where the
        body has to leave.
        """
        self._looping().done(cursor, name, save_seconds, max_seconds)

    def _looping(self) -> Loops:
        if self._loops is None:
            self._loops = Loops(self._tether, self._tether.now() if self.began is None else self.began, self.deadline)
        return self._loops

    def flush(self) -> None:
        """Save the cursors that are not saved yet; for whoever runs the body."""
        if self._loops is not None:
            self._loops.flush(patient=True)

    @property
    def left(self) -> str:
        """Why the body was told to leave, or nothing; for whoever runs it: a body may have swallowed what told it."""
        return "" if self._loops is None else self._loops.left


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
