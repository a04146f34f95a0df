"""One log line per event, with the fields as ``extra`` for those who log as JSON."""

from __future__ import annotations

import logging
from dataclasses import asdict

from celery.utils.log import get_logger

from .. import events
from ..events import Event

__all__ = ["log_event", "logger"]

logger = get_logger("celery_guardrails")

_LINES: dict[type, tuple[int, str]] = {
    events.Started: (logging.DEBUG, "{task}[{task_id}] starts attempt {attempt}, key {key}, fence {fence}"),
    events.Completed: (logging.DEBUG, "{task}[{task_id}] completed key {key} at attempt {attempt}"),
    events.Replayed: (logging.INFO, "{task}[{task_id}] not run: key {key} has completed, its result is returned"),
    events.Retrying: (logging.WARNING, "{task}[{task_id}] attempt {attempt} failed ({error}; rule {rule}); next in {delay:.1f} s"),
    events.HandedBack: (logging.INFO, "{task}[{task_id}] handed back for {delay:.1f} s: key {key} {why}"),
    events.Crashed: (logging.ERROR, "{task}[{task_id}] lost its process, crash {crashes} of key {key}"),
    events.Quarantined: (
        logging.WARNING,
        "{task}[{task_id}] in quarantine (alone: {alone}): key {key} was in {suspicions} workers that died",
    ),
    events.LeaseTaken: (logging.ERROR, "{task}[{task_id}] lost the lease of key {key} while it ran; the other's result stands"),
    events.BreakerMoved: (logging.WARNING, "the breaker of resource {resource!r} is {condition}"),
    events.ResultNotKept: (logging.WARNING, "[{task_id}] completed, but its result is not kept: {why}"),
    events.StillRunning: (
        logging.WARNING,
        "{task}[{task_id}] still runs after {seconds:.0f} s of {limit:g} s and nothing ends it; its lease is kept; it is at {where}",
    ),
    events.Overran: (logging.WARNING, "{task}[{task_id}] has ended after {seconds:.0f} s, its limit was {limit:g} s"),
    events.Abandoned: (
        logging.ERROR,
        "{task}[{task_id}] is abandoned, still runs at the end of the drain time ({seconds:.0f} s) and ends with its process, at {where}",
    ),
    events.TaskLeaked: (logging.WARNING, "{task}[{task_id}] leaks {text}"),
    events.StoreFailed: (logging.WARNING, "the store did not answer to {operation}: {error}"),
    events.Drained: (
        logging.INFO,
        "stopped after {seconds:.1f} s: {finished} finished, {checkpointed} checkpointed, {handed_back} handed back, {abandoned} abandoned",
    ),
}


def log_event(event: Event) -> None:
    """Log an event."""
    if isinstance(event, events.DeadLettered):
        letter = event.certificate
        logger.error(
            "%s[%s] is dead: %s after %s attempts and %s crashes (%s: %s); it waits in the dead letter queue of %s",
            letter.task,
            letter.task_id,
            letter.reason,
            letter.attempts,
            letter.crashes,
            letter.error,
            letter.message,
            event.queue,
            extra={"guardrails": letter.to_header()},
        )
        return
    level, line = _LINES[type(event)]
    if logger.isEnabledFor(level):
        fields = asdict(event)
        logger.log(level, "%s", line.format(**fields), extra={"guardrails": fields})
