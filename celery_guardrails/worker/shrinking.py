"""A pool that shrinks ends no process that has been given a task.

``--autoscale`` and ``celery control pool_shrink`` send SIGTERM to processes that are not busy. The pool (billiard/pool.py, ``shrink``)
takes one for busy when the main process has *read* that it has begun; between the writing of a task and that moment lies a turn
of the event loop, or as long as the main process is held up. The task would end in its middle, and its loss look like a crash.
The autoscaler goes on while a worker drains, when Celery has forgotten what it holds: then nothing shrinks any more. And a process that
has been told to end and has not ended yet is told again the next time, and the pool believes itself one smaller than it is, for ever.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool
from celery.worker.components import Pool

from ..integration.stopping import is_stopping

__all__ = ["Shrinking"]


class Shrinking(bootsteps.StartStopStep):
    """Has the prefork pool also take those for busy that end or to which a task has been, or is being, written; and all at the end."""

    label = "guardrails shrinking"
    requires = (Pool,)

    def start(self, w: Any) -> None:
        """The pool has started before."""
        if isinstance(w.pool, TaskPool):
            _look_at_what_is_written(w.pool._pool)

    def stop(self, w: Any) -> None:
        """Nothing to stop."""

    def terminate(self, w: Any) -> None:
        """Nothing to stop."""


def _look_at_what_is_written(pool: Any) -> None:
    begun = pool._worker_active

    def active(process: Any) -> bool:
        if is_stopping() or getattr(process, "_controlled_termination", False) or begun(process):
            return True
        return any(process in _written_to(job) for job in list(pool._cache.values()))

    pool._worker_active = active


def _written_to(job: Any) -> tuple[Any, Any]:
    return getattr(job, "_write_to", None), getattr(job, "_scheduled_for", None)
