"""Looks for pool processes that have died, twice a second: their tasks start again at once and not when Celery looks."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

__all__ = ["LostChildren"]

#: Seconds; one ``waitpid`` for each pool process that often.
_INTERVAL = 0.5


class LostChildren(bootsteps.StartStopStep):
    """Calls the prefork pool's own supervision more often than Celery does.

    Celery's pool watches a pipe of each child and looks at the child once when it closes (celery/concurrency/asynpool.py,
    ``_event_process_exit``). The kernel closes a dying process's files before it can be waited for: when the look comes
    in between, the child counts as alive until the timer of five seconds. A process that the task has started keeps the
    pipe open, too.
    """

    label = "guardrails lost children"
    _entry: Any = None

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called for every connection; not every Celery clears the timers when one is lost (5.6.2 does not)."""
        supervise = getattr(c.pool, "maintain_pool", None)
        if supervise is not None:
            if self._entry is not None:
                self._entry.cancel()
            self._entry = hub.call_repeatedly(_INTERVAL, supervise)
