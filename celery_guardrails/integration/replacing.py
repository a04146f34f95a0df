"""A task that has put another in its place with ``self.replace()``: delivered again, it does not do so again.

What is remembered is a recovery point of the key, not its completion: the task put in place may have the same key, and
then the completion is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject

from ..errors import LeaseLost, PublishFailed, StoreUnavailable
from ..policy.lease import Claim
from ..policy.refusal import refusal
from ..policy.verdict import deadline_of
from .logs import logger

if TYPE_CHECKING:
    from .running import GuardedRun

__all__ = ["Predecessor", "follow", "predecessor", "remember"]

#: Name of the recovery point; no user's step is called so.
_STEP = "guardrails:replaced"
#: Seconds; the first wait for a result that is not there yet.
_FIRST_WAIT = 0.5


@dataclass(frozen=True)
class Predecessor:
    """An earlier run of the key that has put another task in its place.

    Args:
        task_id: its own; the task in its place ends with the same id.
        root_id: of its canvas.
        nesting: how many tasks had put it in their place.
        at: unix time in seconds at which it did so.
    """

    task_id: str
    root_id: str
    nesting: int
    at: float


def remember(run: GuardedRun) -> None:
    """Keep that the task has been replaced, then give its lease back: the task in its place may need it."""
    request = run.task.request
    value = {"task": request.id, "root": request.root_id or request.id, "nesting": _nesting(request), "at": run.now()}
    try:
        run.guard.remember(run.delivery, _STEP, value)
    except LeaseLost:
        return  # whoever has it runs the task again, and its replacement has the same id
    except StoreUnavailable as exc:
        logger.warning("%s[%s] is replaced, but if its message comes again it will be once more: %r", run.task.name, request.id, exc)
    run.guard.hand_over(run.delivery, run.limits)


def predecessor(run: GuardedRun, claim: Claim) -> Predecessor | None:
    """Return who has been replaced under this key, unless this run belongs to what was put in its place."""
    kept = claim.steps.get(_STEP)
    value = run.guard.codec.decode(kept) if kept is not None else None
    if not isinstance(value, dict):
        return None
    found = Predecessor(str(value["task"]), str(value["root"]), int(value["nesting"]), float(value["at"]))
    request = run.task.request
    if found.root_id == (request.root_id or request.id) and _nesting(request) > found.nesting:
        return None
    # like a completion it holds for the time of retention; a recovery point is kept longer
    return found if run.now() < found.at + run.retention else None


def follow(run: GuardedRun, found: Predecessor) -> Any:
    """End as the task does that was put in the predecessor's place: return its value, raise its error, or wait for either.

    Raises:
        Ignore: the same message, or its end is not known yet and the message waits in the broker.
        Reject: the broker did not take the message.
        DuplicateTask: ``on_duplicate="raise"``.
    """
    delivery = run.delivery
    run.guard.hand_over(delivery, run.limits)
    if found.task_id == delivery.task_id or run.limits.on_duplicate == "ignore":
        raise Ignore(f"{delivery.key!r} has been replaced, and goes on as its replacement")
    if run.limits.on_duplicate == "raise":
        raise refusal("duplicate", delivery)
    known, value = _result(run, found.task_id)
    if known:
        return value
    waited = run.now() - (delivery.travel.first or run.now())
    wait = min(max(_FIRST_WAIT, waited / 2), run.limits.busy_cap)
    deadline = deadline_of(delivery, run.limits)
    if deadline is not None:  # to be dead-lettered on time
        wait = min(wait, max(0.0, deadline - run.now()))
    try:
        run.guard.postpone(delivery, wait)
    except PublishFailed as exc:
        raise Reject(exc, requeue=True) from exc
    raise Ignore(f"{delivery.key!r} has been replaced by a task that runs still, looked at again in {wait:.1f} s")


def _result(run: GuardedRun, task_id: str) -> tuple[bool, Any]:
    """Return whether the end of a task is known, and its value; raises its error."""
    if isinstance(run.task.backend, DisabledBackend):
        return True, None  # nobody will ever know
    result = run.task.AsyncResult(task_id)
    try:
        state, value = result.state, result.result
    except Exception as exc:  # noqa: BLE001 - the client of any result backend; asked again a little later
        logger.warning("the result backend does not tell how %s ended: %r", task_id, exc)
        return False, None
    if state in states.PROPAGATE_STATES and isinstance(value, BaseException):
        raise value
    return state == states.SUCCESS, value


def _nesting(request: Any) -> int:
    return int(getattr(request, "replaced_task_nesting", 0) or 0)
