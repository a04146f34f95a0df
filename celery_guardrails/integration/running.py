"""One guarded run of a task's body: carries the guard's verdicts over into Celery's language."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate

from .. import events
from ..errors import GuardrailsConfigError, LeaseLost, PublishFailed, RejectedTask, RetryableError
from ..execution import Execution, executing
from ..guard import ErrorReport
from ..policy.classification import PERMANENT, RETRYABLE, Classification
from ..policy.deadletter import past_attempt
from ..policy.delivery import Delivery
from ..policy.history import PastAttempt, remembered
from ..policy.lease import Claim
from ..policy.progress import Progress
from ..policy.refusal import refusal
from ..policy.verdict import (
    Cancelled,
    Complete,
    DeadLetterNow,
    Fail,
    HandBack,
    LeaseGone,
    Outcome,
    PassThrough,
    Raised,
    Rejected,
    Replay,
    Resubmitted,
    RetryIn,
    Returned,
    Run,
    Skip,
    Stopped,
    Verdict,
    attempt_number,
)
from ..tether import HandOver, Untethered
from . import looping, overtaken, replacing, stopping
from .logs import logger
from .options import TaskOptions
from .stopping import Checkpointed

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["GuardedRun", "Running", "error_report", "grown_history", "running_now"]

#: Characters of headers beside which a message has no room for its history: Celery publishes what ``self.retry()`` sends, and
#: RabbitMQ closes the connection on headers beyond its frame_max (131,072 bytes by default).
_HEADERS_LIMIT = 65_536


#: Seconds; Celery's note of who publishes the body of a chord is kept for 21 with its default settings.
_ECHO = 45.0


class _OutOfMemory(RetryableError):
    """A ``MemoryError`` of the body: reported as itself it would end the worker's main process."""


class Running:
    """What the methods of a task that runs right now need to know of the run.

    Args:
        delivery: of the message.
        attempt: its number.
        now: unix time in seconds.
        deadline: of the task.
        tried: attempts that count, this one included: all, or those since a loop of the task moved on.
    """

    __slots__ = ("attempt", "deadline", "delivery", "gave_up", "now", "replaced", "resubmitted", "said", "tried")

    def __init__(
        self,
        delivery: Delivery,
        attempt: int,
        now: Callable[[], float],
        deadline: float | None = None,
        tried: Callable[[], int] | None = None,
    ) -> None:
        self.delivery = delivery
        self.deadline = deadline
        self.attempt = attempt
        self.now = now
        self.tried = tried or (lambda: attempt)
        self.gave_up = False
        self.replaced = False
        self.resubmitted = False
        #: Kind of the error that ``self.retry()`` was called for.
        self.said = ""


running_now: ContextVar[Running | None] = ContextVar("celery_guardrails_running", default=None)


class GuardedRun:
    """One guarded run of one task: carries the guard's verdicts over into Celery's language.

    For the body it is also the :class:`~celery_guardrails.tether.Tether` of its execution.
    """

    claim: Claim
    execution: Execution | None = None

    def __init__(self, task: Any, delivery: Delivery) -> None:
        self.task = task
        self.delivery = delivery
        self.rails: Guardrails = task.guardrails
        self.guard = self.rails.guard
        self.options: TaskOptions = task.guard_options
        self.limits = self.rails.limits_of(self.options)
        self.hand_over_seconds: float | None = self.rails.settings.hand_over_seconds
        self._steps: dict[str, tuple[bool, Any]] = {}

    @property
    def retention(self) -> float:
        """Seconds that the completion of this task is kept."""
        retention: float = self.options.retention or self.rails.settings.result_retention
        return retention

    def run(self, args: Any, kwargs: Any) -> Any:
        """Return the body's value, or the stored one; raise what Celery shall see otherwise."""
        if stopping.is_stopping():
            # It was on its way into this process when SIGTERM came (in a pipe, or in the queue of a thread pool): begun
            # now, it would be killed at the end of the drain time. Nothing is claimed, so nothing is charged.
            raise Reject("the worker is stopping", requeue=True)
        try:
            return self._run(args, kwargs)
        except (WorkerShutdown, WorkerTerminate) as exc:
            if stopping.is_stopping():
                raise
            # Celery lets these two pass by the callbacks of its pools (concurrency/base.py, ``apply_target``)
            raise SystemExit(exc.code) from exc
        finally:
            self.guard.leave(self.delivery)

    def _run(self, args: Any, kwargs: Any) -> Any:
        verdict, claim = self._admit()
        if not isinstance(verdict, Run):
            return self._refused(verdict)
        self.claim = claim
        replaced = replacing.predecessor(self, claim)
        if replaced is not None:
            return replacing.follow(self, replaced)
        guarded = verdict.guarded
        execution = self.execution = Execution(
            key=self.delivery.key,
            fence=claim.fence,
            attempt=verdict.attempt,
            deliveries=self.delivery.travel.deliveries + 1,
            deadline=verdict.deadline,
            crashes=claim.crashes,
            began=claim.now,
            _tether=self if guarded else Untethered(self.now, self.stopping),
        )
        present = Running(self.delivery, verdict.attempt, self.now, verdict.deadline, self._tried)
        token = running_now.set(present)
        try:
            with executing(execution):
                if self.options.atomic and guarded:
                    return self._atomic(present, args, kwargs)
                value = self.task._body(args, kwargs)
        except Retry:
            self._settle(claim, Resubmitted(present.said))
            raise
        except Ignore:
            self._ignored(claim, present, guarded)
            raise
        except Reject as exc:
            self._rejected(claim, exc)
            raise
        except LeaseLost as exc:
            self._settle(claim, LeaseGone())
            raise self._overtaken() from exc
        except HandOver as exc:
            raise self._handed_over(exc.why) from None
        except Exception as exc:  # the boundary: every failure of a body is classified here
            self._failed(claim, exc, present)
            raise
        finally:
            running_now.reset(token)
        return self._returned(present, execution, value) if guarded else value

    # -- while the body runs ----------------------------------------------------------------------------------

    def now(self) -> float:
        """See :class:`~celery_guardrails.tether.Tether`."""
        now: float = self.guard.now()
        return now

    def stopping(self) -> bool:
        """See :class:`~celery_guardrails.tether.Tether`."""
        return stopping.is_stopping()

    def ensure_live(self) -> None:
        """See :class:`~celery_guardrails.tether.Tether`."""
        self.guard.ensure_live(self.delivery)

    def recall(self, name: str) -> tuple[bool, Any]:
        """See :class:`~celery_guardrails.tether.Tether`; a lease known to be lost is noticed before the work, not after it."""
        if overtaken.marked(self.delivery.holder):
            self.ensure_live()
        done, value = self._steps.get(name) or self.guard.recall(self.claim, name)
        return done, value

    def remember(self, name: str, value: Any) -> None:
        """See :class:`~celery_guardrails.tether.Tether`."""
        self.guard.remember(self.delivery, name, value)
        self._steps[name] = (True, value)

    def resume(self) -> Progress:
        """See :class:`~celery_guardrails.tether.Tether`."""
        return looping.resume(self)

    def check(self, cursors: Mapping[str, Any]) -> None:
        """See :class:`~celery_guardrails.tether.Tether`."""
        looping.packed(self, cursors)

    def keep(self, cursors: Mapping[str, Any], items: int, *, patient: bool) -> bool:
        """See :class:`~celery_guardrails.tether.Tether`."""
        return looping.keep(self, cursors, items, patient=patient)

    def hand_over(self, why: str) -> None:
        """See :class:`~celery_guardrails.tether.Tether`."""
        raise HandOver(why)

    def _tried(self) -> int:
        self._flush()
        return self.claim.progress.failures(attempt_number(self.delivery, self.claim))

    def _flush(self) -> None:
        """Save where the loops stand before the body's end is settled: what moved since the last save counts, and is not repeated."""
        if self.execution is None:
            return
        try:
            self.execution.flush()
        except (LeaseLost, GuardrailsConfigError) as exc:
            logger.warning("%s[%s]: its cursor is not saved: %s", self.task.name, self.delivery.task_id, exc)

    def _atomic(self, run: Running, args: Any, kwargs: Any) -> Any:
        """Run the body in a transaction that the completion commits with."""
        store, database = self.rails.transactional(self.options), self.options.atomic
        value, written = None, False
        try:
            with store.transaction(database if isinstance(database, str) else None) as transaction:
                value = self.task._body(args, kwargs)
                if not run.resubmitted:
                    self.guard.complete_within(transaction, self.delivery, self.claim, value, self.retention)
                    written = True
        except Exception as exc:
            # The commit's answer was lost, or something that was to run after it failed: what stands in the database counts.
            if not (written and self.guard.committed(self.delivery, self.claim)):
                raise
            logger.warning("%s[%s] has committed all the same: %r", self.task.name, self.delivery.task_id, exc, exc_info=True)
        if not written:
            self._settle(self.claim, Resubmitted(run.said))
        else:
            attempt = attempt_number(self.delivery, self.claim)
            self.guard.emit(events.Completed(self.task.name, self.delivery.task_id, self.delivery.key, attempt))
            self.guard.tell(self.delivery, self.claim, self.limits, Returned(value))
        return value

    # -- carrying verdicts over -------------------------------------------------------------------------------

    def _admit(self) -> tuple[Verdict, Claim]:
        try:
            answer: tuple[Verdict, Claim] = self.guard.admit(self.delivery, self.limits)
        except PublishFailed as exc:
            self.guard.surrender(self.delivery, self.limits)
            raise Reject(exc, requeue=True) from exc
        except SoftTimeLimitExceeded as exc:  # the body has not begun: the store kept us waiting
            self.guard.surrender(self.delivery, self.limits)
            raise Reject(exc, requeue=True) from exc
        if isinstance(answer[0], Run) and answer[0].alone and stopping.is_stopping():  # it has waited for others to end
            self.guard.surrender(self.delivery, self.limits)
            raise Reject("the worker is stopping", requeue=True)
        return answer

    def _returned(self, run: Running, execution: Execution, value: Any) -> Any:
        if execution.left and not run.resubmitted:
            logger.warning("%s[%s] has swallowed what ended its loop: it goes on all the same", self.task.name, self.delivery.task_id)
            raise self._handed_over(execution.left)
        settled = self._settle(self.claim, Resubmitted(run.said) if run.resubmitted else Returned(value))
        if isinstance(settled, (Complete, PassThrough)):
            return value
        raise self._overtaken()

    def _overtaken(self) -> Ignore:
        return Ignore(f"the lease of {self.delivery.key!r} was taken over meanwhile; the other execution's result stands")

    def _handed_over(self, why: str) -> Checkpointed:
        """Give the message back to its queue, and return what Celery shall see."""
        self._settle(self.claim, Stopped(why))
        return Checkpointed(f"{self.delivery.key!r}: its loop goes on in the next run ({why})")

    def _ignored(self, claim: Claim, run: Running, guarded: bool) -> None:
        """Settle an ``Ignore``: that of ``self.replace()``, or the body's own."""
        if run.replaced and guarded:
            replacing.remember(self)
        else:
            self._settle(claim, Cancelled())

    def _rejected(self, claim: Claim, exc: Reject) -> None:
        """Settle a ``Reject``; raises what Celery shall see, or returns where it is the exception itself."""
        verdict = self._settle(claim, Rejected(exc.requeue), exc)
        if isinstance(verdict, DeadLetterNow):
            raise RejectedTask(str(exc.reason)) from exc
        if isinstance(verdict, HandBack):
            raise self._overtaken() from exc

    def _failed(self, claim: Claim, exc: Exception, run: Running) -> None:
        """Settle a failure; raises what Celery shall see, or returns where it is the exception itself."""
        if run.gave_up:
            raised = Raised(Classification(PERMANENT, rule="self.retry"), reason="exhausted")
        elif isinstance(exc, MemoryError):
            raised = Raised(Classification(RETRYABLE, rule="builtins.MemoryError"))
        else:
            raised = Raised(self._classify(exc))
        verdict = self._settle(claim, raised, exc)
        if isinstance(verdict, RetryIn):
            raise Retry(exc=exc, when=verdict.delay) from exc
        if isinstance(verdict, HandBack):
            raise self._overtaken() from exc
        if isinstance(exc, MemoryError):
            raise _OutOfMemory(repr(exc)) from exc

    def _classify(self, exc: BaseException) -> Classification:
        return self.rails.classify(exc, retryable=self.options.retryable, permanent=self.options.permanent)

    def _settle(self, claim: Claim, outcome: Outcome, exc: BaseException | None = None) -> Verdict:
        retention = self.retention
        report = error_report(exc, outcome) if exc is not None else None
        published: list[Verdict] = []

        def settle() -> Verdict:
            present = claim
            if isinstance(outcome, (Raised, Resubmitted, Rejected, Stopped)):
                self._flush()
                present = self.claim
            verdict: Verdict = self.guard.settle(
                self.delivery, present, outcome, self.limits, error=report, retention=retention, published=published
            )
            return verdict

        try:
            try:
                return settle()
            except SoftTimeLimitExceeded:  # raised anywhere, once; the body has ended, and what is published already is not again
                return settle()
        except PublishFailed as failed:
            self.guard.surrender(self.delivery, self.limits)
            raise Reject(failed, requeue=True) from failed

    def _echo(self) -> None:
        """Ask for a last member of a chord once more whose process may have died while it published the chord's body.

        Celery's result backend notes who publishes the body, for up to half a minute, and this delivery may find that note of a
        process that is dead (celery/backends/redis.py 5.7, ``on_chord_part_return``): then nobody would ever publish it.
        """
        delivery = self.delivery
        again = delivery.redelivered or delivery.travel.deferrals or delivery.travel.deliveries
        if not (self.task.request.chord and again) or delivery.travel.echo or delivery.raw is None:
            return
        try:
            self.guard.echo(delivery, _ECHO)
        except PublishFailed as failed:
            raise Reject(failed, requeue=True) from failed

    def _refused(self, verdict: Verdict) -> Any:
        if isinstance(verdict, Replay):
            self._echo()
            return self.guard.codec.decode(verdict.result)
        if isinstance(verdict, HandBack):
            raise Ignore(f"{self.delivery.key!r}: {verdict.why}, looked at again in {verdict.delay:.1f} s")
        if isinstance(verdict, Skip):
            raise Ignore(f"{self.delivery.key!r} has completed already")
        if isinstance(verdict, (DeadLetterNow, Fail)):
            raise refusal(verdict.reason, self.delivery, verdict.why)
        raise refusal("poison", self.delivery)


def error_report(exc: BaseException, outcome: Outcome | None = None) -> ErrorReport:
    """Return an exception as text."""
    cls = type(exc)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    try:
        message = str(exc.reason) if isinstance(exc, Reject) else str(exc)  # a Reject's own text is a tuple with `requeue`
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may raise anything
        message = f"<unprintable: {broken!r}>"
    text = "".join(traceback.format_exception(cls, exc, exc.__traceback__))
    rule = outcome.classification.rule if isinstance(outcome, Raised) else ""
    return ErrorReport(name, message, text, rule)


def grown_history(running: Running, error: BaseException | None) -> tuple[PastAttempt, ...]:
    """Return the history of the message that ``self.retry()`` sends: with the attempt that runs, and what it was called for."""
    delivery = running.delivery
    if delivery.raw is not None and len(repr(delivery.raw.headers)) > _HEADERS_LIMIT:
        return ()
    report = ErrorReport(message="self.retry() was called without an error") if error is None else error_report(error)
    return remembered(delivery.travel.history, past_attempt(report, attempt=running.attempt, now=running.now()))
