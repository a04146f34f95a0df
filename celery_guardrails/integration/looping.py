"""How a guarded run keeps the progress of its task's loops (:mod:`celery_guardrails.policy.progress`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import GuardrailsConfigError
from ..policy.lease import StoredResult
from ..policy.progress import PROGRESS, Progress
from ..policy.verdict import attempt_number

if TYPE_CHECKING:
    from .running import GuardedRun

__all__ = ["CURSOR_LIMIT", "keep", "packed", "resume"]

#: Bytes of all cursors of a task: they are written every few seconds, with the whole record of the key.
CURSOR_LIMIT = 16_384


def resume(run: GuardedRun) -> Progress:
    """See :class:`~celery_guardrails.tether.Tether`.

    That a run begins is written down before its loop does anything: who is killed in the middle of it cannot do so. The
    first of all runs is spared the round trip.
    """
    if run.options.atomic:
        raise GuardrailsConfigError(
            f"{run.task.name}: resume() and checkpoint() are not for a task with atomic: its one transaction would take back what its "
            "cursor says is done. Leave atomic out and commit each item, or a batch of them, before the loop asks for the next"
        )
    progress, charged = run.claim.progress, _charged(run)
    first = not (run.delivery.travel.deliveries or run.delivery.redelivered or any(charged))
    if not first or PROGRESS in run.claim.steps:
        _save(run, progress.restarted(*charged), patient=False)
    return progress


def keep(run: GuardedRun, cursors: Mapping[str, Any], items: int, *, patient: bool) -> bool:
    """See :class:`~celery_guardrails.tether.Tether`."""
    before = run.claim.progress
    # as they will be read again: a tuple is the list that it comes back as
    if packed(run, cursors).data == packed(run, before.cursors).data:
        return _save(run, replace(before, items=before.items + items, saved_at=run.now()), patient=patient)
    attempts, crashes = _charged(run)
    return _save(run, before.moved(cursors, items, now=run.now(), attempts=attempts, crashes=crashes), patient=patient)


def packed(run: GuardedRun, cursors: Mapping[str, Any]) -> StoredResult:
    """Return cursors as they are kept.

    Raises:
        GuardrailsConfigError: JSON cannot hold them, or they are too large.
    """
    shown = Progress(cursors).where()
    try:
        kept: StoredResult = run.guard.codec.pack(dict(cursors))
    except Exception as exc:
        raise GuardrailsConfigError(
            f"{run.task.name}: the cursor {shown} cannot be kept: {exc}. JSON holds it: a number, a text, a date, a short list of such"
        ) from exc
    if len(kept.data) > CURSOR_LIMIT:
        raise GuardrailsConfigError(
            f"{run.task.name}: the cursor {shown} takes {len(kept.data)} bytes, {CURSOR_LIMIT} are allowed: "
            "a cursor says where to go on, what was done so far belongs into a table of yours"
        )
    return kept


def _charged(run: GuardedRun) -> tuple[int, int]:
    """Return the attempts that have been charged so far, and the holders that vanished: a run that ended so is no stall."""
    return attempt_number(run.delivery, run.claim) - 1, run.claim.losses


def _save(run: GuardedRun, progress: Progress, *, patient: bool) -> bool:
    if not run.guard.save_progress(run.delivery, progress, patient=patient):
        return False
    run.claim = replace(run.claim, progress=progress)
    return True
