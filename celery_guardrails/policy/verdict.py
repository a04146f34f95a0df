"""What happens to a task, decided in one place.

:func:`decide` is pure: it is handed a delivery, the store's answer to the claim and what the body did, and answers
with a verdict. The worker's child, its main process (lost children, hard time limits) and the tests all call it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Union

from .breaker import Effect
from .classification import PERMANENT, POISON, RETRYABLE, THROTTLED, Classification
from .delivery import TRIES, Delivery
from .lease import Claim, ClaimState, StoredResult
from .resource import BREAKER, Resource
from .retry import RetryPolicy
from .suspicion import CROWDED, is_suspect

__all__ = [
    "Cancelled",
    "Complete",
    "Crowded",
    "DeadLetterNow",
    "Fail",
    "HandBack",
    "LeaseGone",
    "Limits",
    "Lost",
    "NotStarted",
    "Outcome",
    "PassThrough",
    "Raised",
    "Rejected",
    "Replay",
    "Resubmitted",
    "RetryIn",
    "Returned",
    "Run",
    "Skip",
    "Stopped",
    "Verdict",
    "attempt_number",
    "decide",
    "deadline_of",
    "effect_of",
]

# -- what the body did ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NotStarted:
    """The body has not run yet: the question is whether it may."""


@dataclass(frozen=True)
class Crowded:
    """The body has not run yet: it should be alone, and what runs beside it has not ended while it waited."""


@dataclass(frozen=True)
class Returned:
    """The body returned a value."""

    value: Any = None


@dataclass(frozen=True)
class Raised:
    """The body raised, or was stopped by a time limit."""

    classification: Classification
    reason: str | None = None


@dataclass(frozen=True)
class Resubmitted:
    """The body called ``self.retry()``: a successor is published already, this attempt is charged.

    ``kind`` is that of the error it was called for, where it was called for one.
    """

    kind: str = ""


@dataclass(frozen=True)
class Cancelled:
    """The body raised ``Ignore`` (or replaced itself): nothing is recorded, nothing is charged."""


@dataclass(frozen=True)
class Rejected:
    """The body raised ``Reject``."""

    requeue: bool = False


@dataclass(frozen=True)
class Stopped:
    """The body left off where it can go on, because the worker is stopping or its own time is up."""

    why: str = "stopped"


@dataclass(frozen=True)
class Lost:
    """The process that ran the body vanished."""

    crashes: int


@dataclass(frozen=True)
class LeaseGone:
    """The body ended but another execution has taken the lease meanwhile."""


Outcome = Union[NotStarted, Crowded, Returned, Raised, Resubmitted, Cancelled, Rejected, Stopped, Lost, LeaseGone]

# -- what to do about it ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Run the body; ``guarded`` is False where the store is down and the setting says ``"open"``, ``alone`` in quarantine only."""

    attempt: int
    deadline: float | None
    guarded: bool = True
    alone: bool = False


@dataclass(frozen=True)
class Complete:
    """Record the completion, return the value."""


@dataclass(frozen=True)
class Replay:
    """Return the stored result, do not run the body."""

    result: StoredResult | None


@dataclass(frozen=True)
class RetryIn:
    """Publish the message again after ``delay`` seconds with ``attempts`` charged, then acknowledge."""

    delay: float
    attempts: int
    throttled: bool = False


@dataclass(frozen=True)
class HandBack:
    """The same message again after ``delay`` seconds, nothing charged."""

    delay: float
    why: str


@dataclass(frozen=True)
class DeadLetterNow:
    """Publish to the dead letter exchange with a confirm, then acknowledge; the task has failed."""

    reason: str
    attempts: int
    crashes: int = 0
    why: str = ""


@dataclass(frozen=True)
class Fail:
    """The task has failed, as in plain Celery; nothing is dead-lettered."""

    reason: str
    why: str = ""


@dataclass(frozen=True)
class Skip:
    """Acknowledge without running and without a result."""

    why: str


@dataclass(frozen=True)
class PassThrough:
    """Celery's own semantics apply (``Ignore``, ``self.retry()``, ``Reject(requeue=True)``); give the lease back.

    ``charge`` is the number of attempts to charge; ``forget`` drops the record.
    """

    charge: int = 0
    forget: bool = False


Verdict = Union[Run, Complete, Replay, RetryIn, HandBack, DeadLetterNow, Fail, Skip, PassThrough]

# -- the limits of the task -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What the task's options and the settings allow.

    Args:
        retry: the policy.
        max_crashes: worker losses after which a message is poison.
        on_duplicate: ``"return"``, ``"ignore"`` or ``"raise"``.
        dead_letter: whether failures are dead-lettered.
        store_failure: ``"defer"`` or ``"open"``.
        busy_cap: seconds, the longest wait before a held key is looked at again.
        resource: what the task calls, or None.
        max_stalls: runs in a row that may leave the loops of a task where they found them without a charge.
        quarantine_cap: seconds, the longest wait for what runs beside a message that should be alone; None: no limit.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_crashes: int = 3
    on_duplicate: str = "return"
    dead_letter: bool = True
    store_failure: str = "defer"
    busy_cap: float = 60.0
    resource: Resource | None = None
    max_stalls: int = 5
    quarantine_cap: float | None = None


#: Seconds before a message that found its store away is looked at again: first step and cap.
STORE_BACKOFF = (1.0, 30.0)
#: Seconds before a message that found its key held is looked at again, first step.
BUSY_STEP = 0.5
#: Seconds before a message that could not be alone is tried elsewhere: first step and cap.
CROWDED_BACKOFF = (2.0, 30.0)
#: Seconds, what a wait is not cut below: shorter ones are none, and the message would come again and again.
_SHORTEST = 0.3
#: Seconds, the longest wait of a message that found no slot, token or room in the rate.
RESOURCE_CAP = 10.0
#: Seconds, the longest wait of a message that found a breaker open: an operator may close it before its time.
OPEN_CAP = 15.0


def attempt_number(delivery: Delivery, claim: Claim) -> int:
    """Return the 1-based number of the attempt that runs now.

    The message and the record both count; the larger counts, so that two copies of one message share their attempts.
    """
    return max(delivery.travel.attempts, claim.attempts) + 1


def deadline_of(delivery: Delivery, limits: Limits) -> float | None:
    """Return the unix time in seconds after which the task is given up, or None: its own deadline or an inherited one, the earlier."""
    travel, retry = delivery.travel, limits.retry
    until = travel.until if retry.inherit_deadline else None
    if travel.first is None or retry.deadline is None:
        return until
    own = travel.first + retry.deadline
    return own if until is None else min(own, until)


def decide(delivery: Delivery, claim: Claim, outcome: Outcome, limits: Limits, *, now: float, fraction: float) -> Verdict:
    """Return what happens next.

    Args:
        delivery: the message.
        claim: the store's answer.
        outcome: what the body did.
        limits: of the task.
        now: unix time in seconds.
        fraction: uniform random number in ``[0, 1)`` for the jitter.
    """
    if isinstance(outcome, NotStarted):
        return _admit(delivery, claim, limits, now, fraction)
    if isinstance(outcome, Crowded):
        return _elsewhere(delivery, claim, limits, now, fraction)
    if isinstance(outcome, Returned):
        return Complete()
    if isinstance(outcome, Raised):
        return _failed(delivery, claim, outcome, limits, now, fraction)
    if isinstance(outcome, Resubmitted):
        return PassThrough(charge=1)
    if isinstance(outcome, Cancelled):
        return PassThrough(forget=True)
    if isinstance(outcome, Rejected):
        if outcome.requeue:
            return PassThrough()
        return _dead(delivery, claim, limits, "rejected")
    if isinstance(outcome, Stopped):
        return HandBack(0.0, outcome.why)
    if isinstance(outcome, Lost):
        if _proven(claim, outcome.crashes) >= limits.max_crashes:
            return _dead(delivery, claim, limits, "poison", charged=0, crashes=outcome.crashes)
        return HandBack(0.0, "crashed")
    return HandBack(BUSY_STEP, "lease lost")


def _admit(delivery: Delivery, claim: Claim, limits: Limits, now: float, fraction: float) -> Verdict:
    deadline = deadline_of(delivery, limits)
    expired = deadline is not None and now >= deadline
    if claim.state is ClaimState.UNAVAILABLE:
        if limits.store_failure == "open":
            if expired:
                return _dead(delivery, claim, limits, "deadline", charged=0)
            return Run(attempt_number(delivery, claim), deadline, guarded=False)
        return HandBack(_backoff(delivery, *STORE_BACKOFF, fraction), "store away")
    if claim.state is ClaimState.CONFLICT:
        return _dead(delivery, claim, limits, "conflict", charged=0)
    if claim.state is ClaimState.COMPLETED:
        result = claim.result
        same_task = result is not None and result.task_id == delivery.task_id
        if limits.on_duplicate == "return" or same_task:
            return Replay(result)
        return Skip("duplicate") if limits.on_duplicate == "ignore" else Fail("duplicate")
    if claim.state is ClaimState.BUSY:
        # also past the deadline: whoever runs it may yet complete it, and its time limit is cut to the deadline
        step = _backoff(delivery, BUSY_STEP, limits.busy_cap, 1.0)
        return HandBack(min(claim.wait, step) + 0.25 * fraction, "held")
    if claim.state is ClaimState.REFUSED:
        return HandBack(_until_deadline(_resource_wait(delivery, claim, fraction), deadline, now), claim.why)
    if _proven(claim, claim.crashes) >= limits.max_crashes:
        return _dead(delivery, claim, limits, "poison", charged=0)
    if expired:
        return _dead(delivery, claim, limits, "deadline", charged=0)
    stalls = claim.progress.stalled(attempt_number(delivery, claim) - 1, claim.losses)
    if stalls >= limits.max_stalls:
        return _dead(delivery, claim, limits, "exhausted", charged=0, why=_stalled(claim, stalls))
    alone = is_suspect(_proven(claim, claim.crashes), claim.progress.recent(claim.suspicions, claim.losses), limits.max_crashes)
    return Run(attempt_number(delivery, claim), deadline, alone=alone)


def _elsewhere(delivery: Delivery, claim: Claim, limits: Limits, now: float, fraction: float) -> Verdict:
    """Send a suspect that is not alone to another worker, or to this one when it is empty; after so many tries it runs all the same."""
    deadline, vain = deadline_of(delivery, limits), delivery.travel.vain
    if deadline is not None and now >= deadline:  # it has come while it waited
        return _dead(delivery, claim, limits, "deadline", charged=0)
    if vain >= TRIES:
        return Run(attempt_number(delivery, claim), deadline, alone=True)
    return HandBack(_until_deadline(_spread(vain, *CROWDED_BACKOFF, fraction), deadline, now), CROWDED)


def _proven(claim: Claim, crashes: int) -> int:
    """Return how many of the crashes that are charged came since the task's loops moved on.

    Losses of both kinds are counted from there, since a crash that is proven makes crashes of what was suspicion before it; of
    those that came since, as many as there are suspicions are taken for suspicions.
    """
    since = claim.progress.losses(crashes + claim.suspicions)
    return since - min(since, claim.suspicions)


def _failed(delivery: Delivery, claim: Claim, outcome: Raised, limits: Limits, now: float, fraction: float) -> Verdict:
    kind = outcome.classification.kind
    if kind in (PERMANENT, POISON):
        return _dead(delivery, claim, limits, outcome.reason or kind)
    attempt = attempt_number(delivery, claim)
    tried = claim.progress.failures(attempt)
    if tried >= limits.retry.max_attempts:
        return _dead(delivery, claim, limits, "exhausted")
    delay = limits.retry.delay(tried, fraction, previous=delivery.travel.waited, retry_after=outcome.classification.retry_after)
    deadline = deadline_of(delivery, limits)
    if deadline is not None and now + delay >= deadline:
        return _dead(delivery, claim, limits, "deadline")
    return RetryIn(delay, attempts=attempt, throttled=kind == THROTTLED)


def _dead(
    delivery: Delivery, claim: Claim, limits: Limits, reason: str, *, charged: int = 1, crashes: int | None = None, why: str = ""
) -> Verdict:
    if reason == "poison" and claim.progress.saved_at is not None:
        why = f"a loop of it stands at the cursor {claim.progress.where()}"
    if not limits.dead_letter:
        return Fail(reason, why)
    attempts = attempt_number(delivery, claim) - 1 + charged
    return DeadLetterNow(reason, attempts=attempts, crashes=claim.crashes if crashes is None else crashes, why=why)


def _stalled(claim: Claim, stalls: int) -> str:
    return f"its loop has left the cursor {claim.progress.where()} {stalls} times where it was (guardrails_max_stalls)"


def _until_deadline(delay: float, deadline: float | None, now: float) -> float:
    """Cut a wait at the deadline, so that a message which waits is dead-lettered on time."""
    return delay if deadline is None else min(delay, max(_SHORTEST, deadline - now))


def _backoff(delivery: Delivery, step: float, cap: float, fraction: float) -> float:
    """Exponential in the times handed back."""
    return _spread(delivery.travel.deferrals, step, cap, fraction)


def _spread(times: int, step: float, cap: float, fraction: float) -> float:
    """Exponential in the times before, between half and the whole of the step."""
    whole = float(min(cap, step * 2.0 ** min(times, 30)))
    return whole / 2 + whole / 2 * fraction


def _resource_wait(delivery: Delivery, claim: Claim, fraction: float) -> float:
    """How long a message waits that its resource did not let in.

    Behind an open breaker all wait for one moment, which is known; they come back spread over half as long again. Who
    found no slot, token or room in the rate asks again after growing times: how many others ask, nobody knows.
    """
    if claim.why == BREAKER:
        wait = min(claim.wait, OPEN_CAP)
        return wait + max(1.0, wait / 2) * fraction
    return min(claim.wait, OPEN_CAP) + _backoff(delivery, BUSY_STEP, RESOURCE_CAP, fraction)


def effect_of(outcome: Outcome) -> Effect:
    """Return what the end of an execution says of the resource that it called: only retryable failures count against it."""
    if isinstance(outcome, Returned):
        return Effect.SUCCESS
    kind = outcome.classification.kind if isinstance(outcome, Raised) else outcome.kind if isinstance(outcome, Resubmitted) else ""
    return Effect.FAILURE if kind == RETRYABLE else Effect.NEUTRAL
