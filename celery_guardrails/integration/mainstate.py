"""What the worker's main process knows about the deliveries that run right now."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from . import stopping

__all__ = ["MainState", "Tally", "state"]


class Tally:
    """What became of the messages that this worker held when it was told to stop.

    Attributes:
        finished: ended by themselves: completed, failed, or wait for a retry.
        checkpointed: saved where they go on, and handed themselves back.
        handed_back: not begun, or stopped by us when the drain time was over.
        abandoned: still running when the process ended, in a pool whose tasks nothing can stop (threads, gevent, solo).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin to count."""
        self.finished = self.checkpointed = self.handed_back = self.abandoned = 0

    def count(self, what: str) -> None:
        """Count one more; nothing is counted before the worker is told to stop."""
        if stopping.is_stopping():
            with self._lock:  # tasks of a thread pool end in their own threads
                setattr(self, what, getattr(self, what) + 1)


@dataclass
class MainState:
    """One per process; only the worker's main process fills it.

    Args:
        live: holder → request, from the moment a pool process takes it; the renewal prunes what has ended.
        counted: requests whose message the broker has counted a delivery of, until they are settled.
        consumer: the worker's consumer while it is connected.
        serves: queue → resources (None: a task without one) of the guarded tasks that came from it.
        killing: the drain time is over, children are killed by us: nobody is charged.
        started: the worker has been ready once.
        taking: it takes messages from the broker.
        renewed: when leases were last renewed (monotonic seconds), or None.
        drain_ends: when the drain time is over (the same), or None.
        tally: what becomes of the messages that this worker holds when it is told to stop.
    """

    live: dict[str, Any] = field(default_factory=dict)
    counted: set[Any] = field(default_factory=set)
    consumer: Any = None
    serves: dict[str, set[str | None]] = field(default_factory=dict)
    killing: bool = False
    started: bool = False
    taking: bool = False
    renewed: float | None = None
    drain_ends: float | None = None
    tally: Tally = field(default_factory=Tally)

    @property
    def ready(self) -> bool:
        """Whether this worker takes messages: it has started, is connected, and has not been told to stop."""
        return self.started and self.taking and not stopping.is_stopping()

    @property
    def task_consumer(self) -> Any:
        """The kombu consumer of the task queues, or None."""
        return getattr(self.consumer, "task_consumer", None)


state = MainState()
