"""Deadlines travel: what a task publishes inherits what remains of its own.

Every publish passes Celery's signal ``before_task_publish``: ``delay()`` in a body, ``app.send_task()``, and the steps, members,
bodies and callbacks that Celery publishes itself once the body has returned.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery import _state, signals
from celery.utils.time import maybe_iso8601

from ..policy.delivery import TRAVEL_HEADER, Travel
from .running import running_now
from .translate import DEADLINE_FIELD

__all__ = ["inherited", "install"]


def install() -> None:
    """Have everything that is published in this process inherit; may be called again."""
    signals.before_task_publish.connect(_on_publish, weak=False, dispatch_uid="celery_guardrails.deadlines")


def inherited(parent_id: Any) -> float | None:
    """Return the deadline of the task that publishes right now, in unix time by the store's clock, or None.

    Error callbacks inherit none: they report a failure, and a deadline that has passed is one. Celery publishes them in
    the name of the task that failed (backends/base.py, ``_call_task_errbacks``). That is another task than the one that
    runs where a chord fails; a guarded task that has failed itself keeps no deadline in its request.

    Args:
        parent_id: of the message.
    """
    running = running_now.get()
    if running is not None:
        return running.deadline
    task = _state.get_current_worker_task()
    if task is None or task.request.id != parent_id:
        return None
    if task.name == "celery.chord_unlock":  # publishes the body where the result backend cannot count the header
        return Travel.from_headers(task.request.__dict__).until
    found: float | None = task.request.__dict__.get(DEADLINE_FIELD)
    return found


def _on_publish(headers: Any = None, **_: Any) -> None:
    if not isinstance(headers, dict):
        return
    until = inherited(headers.get("parent_id"))
    if until is None:
        return
    travel = Travel.from_headers(headers)
    # A message that has been tried already is the task itself, on its way again (self.retry()). What is to begin after the
    # deadline was never meant to be done by then.
    if travel.attempts or _begins(headers) >= until:
        return
    earlier = until if travel.until is None else min(until, travel.until)
    headers[TRAVEL_HEADER] = travel.evolve(until=earlier).to_header()


def _begins(headers: dict[str, Any]) -> float:
    """Return the unix time at which a message is due; 0 for one without an ETA, or with one that nobody can read."""
    try:
        eta = maybe_iso8601(headers.get("eta"))
        if not isinstance(eta, datetime):
            return 0.0
        return (eta if eta.tzinfo is not None else eta.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0  # the worker refuses it
