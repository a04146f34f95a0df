"""Deletes records whose time is over, where the store does not do it by itself (databases)."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker.consumer import Tasks

from ..integration.app import ensure_guardrails
from .background import Background

__all__ = ["Pruning"]

#: Rows of one statement, and statements of one round: small transactions that hold nobody up.
_BATCH, _BATCHES = 500, 20
#: Seconds between rounds; up to twice that, so that the workers of a fleet do not prune together.
_PAUSE = 60.0


class Pruning(bootsteps.StartStopStep):
    """A thread of the main process that deletes up to 10,000 records every minute or two, in batches of 500."""

    label = "guardrails pruning"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._background = Background("guardrails-pruning", self._round)

    def start(self, c: Any) -> None:
        """Start with the consumer; after a reconnect the thread runs already."""
        if getattr(self._rails.store, "needs_pruning", False):
            self._background.start()

    def stop(self, c: Any) -> None:
        """Nothing: see :meth:`shutdown`."""

    def shutdown(self, c: Any) -> None:
        """End the thread."""
        self._background.stop()

    def _round(self) -> float:
        store = self._rails.main_guard.store
        for _ in range(_BATCHES):
            if store.prune(_BATCH) < _BATCH:
                break
        return _PAUSE * (1 + self._rails.clock.fraction())
