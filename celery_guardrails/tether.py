"""What ties a body to its lease: the few things that its execution asks of whoever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .policy.progress import Progress

__all__ = ["HandOver", "Tether", "Untethered"]


class HandOver(BaseException):
    """Leaves a body whose loop goes on elsewhere; as a ``BaseException`` it passes every ``except Exception``.

    Args:
        why: ``"stopped"``, ``"time is up"`` or ``"deadline"``.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Tether(Protocol):
    """What ties an execution to its lease and its record in the store."""

    #: Seconds after which a loop is to go on elsewhere, or None.
    hand_over_seconds: float | None

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

    def resume(self) -> Progress:
        """Return how far earlier runs have come, and note that this one begins there; raise GuardrailsConfigError in atomic tasks."""

    def check(self, cursors: Mapping[str, Any]) -> None:
        """Raise GuardrailsConfigError where cursors cannot be kept."""

    def keep(self, cursors: Mapping[str, Any], items: int, *, patient: bool) -> bool:
        """Save the cursors and that so many more items are handled; raise LeaseLost where the lease is another's.

        Args:
            cursors: of all loops.
            items: handled since the last save.
            patient: ask a store that is away again for a few seconds.

        Returns:
            Whether the store has taken it.
        """

    def hand_over(self, why: str) -> None:
        """Raise HandOver, or return where there is nobody to hand over to."""


class Untethered:
    """An execution without a lease: eager mode, or a store that is away under ``guardrails_store_failure = "open"``."""

    hand_over_seconds: float | None = None

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

    def resume(self) -> Progress:
        """Every run begins at the beginning."""
        return Progress()

    def check(self, cursors: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def keep(self, cursors: Mapping[str, Any], items: int, *, patient: bool) -> bool:
        """Nothing to keep it in; the next run begins at the beginning."""
        return True

    def hand_over(self, why: str) -> None:
        """Another run would begin at the beginning: this one goes on for as long as it can."""
