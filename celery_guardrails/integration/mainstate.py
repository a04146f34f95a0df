"""What the worker's main process knows about the deliveries that run right now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["MainState", "state"]


@dataclass
class MainState:
    """One per process; only the worker's main process fills it.

    Args:
        live: holder → request, from the moment a pool process takes it; the renewal prunes what has ended.
        counted: requests whose message the broker has counted a delivery of, until they are settled.
        consumer: the worker's consumer while it is connected.
        serves: queue → resources (None: a task without one) of the guarded tasks that came from it.
        killing: the drain time is over, children are killed by us: nobody is charged.
    """

    live: dict[str, Any] = field(default_factory=dict)
    counted: set[Any] = field(default_factory=set)
    consumer: Any = None
    serves: dict[str, set[str | None]] = field(default_factory=dict)
    killing: bool = False

    @property
    def task_consumer(self) -> Any:
        """The kombu consumer of the task queues, or None."""
        return getattr(self.consumer, "task_consumer", None)


state = MainState()
