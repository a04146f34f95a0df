"""The main process's side of one guarded request: it learns of lost children and hard time limits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import signals
from celery.exceptions import InvalidTaskError, Retry, Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger
from celery.worker.request import Request
from celery.worker.state import task_ready

from ..errors import DeadlineExceeded, GuardrailsConfigError, PublishFailed
from ..policy.classification import PERMANENT, Classification
from ..policy.deadline import cut_time_limits
from ..policy.delivery import TRAVEL_HEADER, Delivery, Travel
from ..policy.refusal import refusal
from ..policy.verdict import DeadLetterNow, Fail, HandBack, Raised, RetryIn, Verdict, deadline_of
from .app import Guardrails, ensure_guardrails
from .mainstate import state
from .options import TaskOptions
from .running import error_report
from .stopping import Checkpointed, is_stopping
from .translate import DELIVERY_FIELD, new_holder, queue_of, to_delivery

__all__ = ["GuardedRequest"]

logger = get_logger(__name__)


class GuardedRequest(Request):
    """Celery's request, with the delivery that the child settles, or, where the child is gone, this side does."""

    delivery: Delivery
    #: That has told this process that the task begins.
    thread: int | None = None
    _settled_here = False
    _cut_off = False
    _terminated = False
    #: What the tally of a shutdown takes an acknowledgement for.
    _ended_as = "finished"
    _own_limits: tuple[float | None, float | None] = (None, None)
    #: Seconds after which the pool kills the task because its deadline has come.
    _deadline_limit: float | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Celery makes a class for each task, with an ``on_success`` of its own (worker/request.py, ``create_request_cls``)."""
        super().__init_subclass__(**options)
        if "on_success" in cls.__dict__:
            cls.on_success = _told_of_the_end(cls.on_success)

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self._rails: Guardrails = ensure_guardrails(self._app)
        try:
            key, fingerprint = self._identify()
        except (TypeError, GuardrailsConfigError) as exc:
            raise InvalidTaskError(f"no idempotency key for {self.name}[{self.id}]: {exc}") from exc
        self.delivery = to_delivery(
            message,
            task_id=self.id,
            task_name=self._type,
            key=key,
            fingerprint=fingerprint,
            queue=queue_of(message, state.task_consumer),
            holder=new_holder(),
            first=self._rails.main_guard.now(),
        )
        state.serves.setdefault(self.delivery.queue, set()).add(self.resource)
        if self.delivery.counted:
            state.counted.add(self)
        # Pickled in one piece with the body that Celery sends along: the bytes travel once.
        self._request_dict[DELIVERY_FIELD] = self.delivery

    @property
    def resource(self) -> str | None:
        """Name of the resource that the task calls, or None."""
        name: str | None = self._task.guard_options.resource
        return name

    def _identify(self) -> tuple[str | None, str | None]:
        travel = self._request_dict.get(TRAVEL_HEADER)
        if isinstance(travel, (dict, Mapping)) and isinstance(travel.get("key"), str):
            return None, None  # it travelled with the message
        options: TaskOptions = self._task.guard_options
        slot = None
        if "slot" in options.special:  # beat's, or one that every delivery of this message has
            slot = Travel.from_headers(self._request_dict).slot or self.id
        return options.identify(self._args, self._kwargs, slot)

    @property
    def _limits(self) -> Any:
        return self._rails.limits_of(self._task.guard_options)

    def surrender(self) -> None:
        """Give the lease back of what this worker will not finish."""
        self._rails.main_guard.surrender(self.delivery, self._limits)

    @property
    def time_limits(self) -> tuple[float | None, float | None]:
        """Hard and soft limit in seconds, cut to what remains until the deadline.

        Celery asks when a process of the pool is free for the task (worker/request.py, ``create_request_cls``), so the time
        that it has waited for one in this worker is taken off.
        """
        hard, soft = self._own_limits
        delivery: Delivery | None = self.__dict__.get("delivery")
        deadline = None if delivery is None else deadline_of(delivery, self._limits)
        if deadline is None:
            return hard, soft
        pool = getattr(getattr(state.consumer, "pool", None), "options", {})  # of the command line: --time-limit
        hard = hard or self._task.time_limit or pool.get("timeout")
        soft = soft or self._task.soft_time_limit or pool.get("soft_timeout")
        hard, soft, cut = cut_time_limits(hard, soft, deadline - self._rails.main_guard.now())
        self._deadline_limit = hard if cut else None
        return hard, soft

    @time_limits.setter
    def time_limits(self, limits: Sequence[float | None]) -> None:
        hard, soft = limits
        self._own_limits = (hard, soft)

    @property
    def own_time_limits(self) -> tuple[float | None, float | None]:
        """Hard and soft limit in seconds as the message has them."""
        return self._own_limits

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """From now on this process renews the lease."""
        super().on_accepted(pid, time_accepted)
        self.thread = threading.get_ident()  # in the threads and solo pools the one that runs the task
        # after Celery counts it as active: the renewal's thread, coming in between, would take it for one that has ended
        state.live[self.delivery.holder] = self

    def cancel(self, pool: Any, *args: Any, **options: Any) -> None:
        """Celery ends what runs; where the pool cannot do that, the task ends by itself or with its process.

        It does so in a cold shutdown, which outside of prefork is not Celery's any more (``worker/drain.py`` takes its signals over, and
        ``worker/cutting_off.py`` ends the process), and when the connection is lost, with
        ``worker_cancel_long_running_tasks_on_connection_loss`` (consumer.py, ``on_connection_error_after_connected``): there the
        process goes on, and this is all there is. Celery lets the error of a pool that knows no ``terminate_job`` loose.
        """
        self._cut_off = bool(getattr(pool, "is_green", False))
        with contextlib.suppress(NotImplementedError):
            super().cancel(pool, *args, **options)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Somebody has revoked the task while it runs (``revoke(terminate=True)``)."""
        self._terminated = True
        super().terminate(pool, signal)

    def on_killed(self) -> None:
        """The greenlet of the task was killed, by whoever has revoked it, or by nobody that this worker knows of."""
        if self._terminated:
            task_ready(self)
            self.surrender()
            self.acknowledge()
        else:
            self._lost(WorkerLostError("its greenlet was killed"))

    def acknowledge(self) -> None:
        """The end of it, so there is nothing left to renew."""
        if self._cut_off:
            # a greenlet that was killed says that it has succeeded (celery/concurrency/gevent.py, ``_make_killable_target``)
            self._cut_off = False
            self.surrender()
            self.reject(requeue=True)
            return
        if self._task.acks_late:
            state.live.pop(self.delivery.holder, None)
            if not self.acknowledged:
                state.tally.count(self._ended_as)
        state.counted.discard(self)
        super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Refused by us or by the body; what goes back to its queue has not failed there, and is not counted as if it had."""
        if not (requeue and self.return_afresh()):
            self._reject(requeue)

    def _reject(self, requeue: bool) -> None:
        if not self.acknowledged:
            state.tally.count("handed_back" if requeue else "finished")
        state.counted.discard(self)
        super().reject(requeue=requeue)

    def return_afresh(self) -> bool:
        """Put a copy without the broker's count of deliveries into the queue and acknowledge; False where there is no such count.

        RabbitMQ says on a message how often a quorum queue has had it back, from the second delivery on. So one return in two is
        counted, and none is left on a message that waits for long.
        """
        if self.acknowledged or not self.delivery.counted:
            return False
        travel = self.delivery.travel.evolve(origin=self.delivery.origin)
        try:
            self._rails.broker.send(self.delivery.again(travel), self.delivery.queue)
        except PublishFailed as failed:
            logger.warning("%s[%s] goes back to its queue with one delivery counted: %r", self.name, self.id, failed)
            return False
        self._ended_as = "handed_back"
        self.acknowledge()
        return True

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A hard limit is a failed attempt: the policy decides whether it is tried again."""
        if soft:
            super().on_timeout(soft, timeout)
        elif not self._settled_here:
            self._overran(timeout)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Settle what the child no longer can; everything that the child did settle is Celery's to report."""
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, Checkpointed):
            self._ended_as = "checkpointed"
        if isinstance(exc, Terminated):
            super().on_failure(exc_info, send_failed_event, return_ok)
            self.surrender()
            return None
        if isinstance(exc, TimeLimitExceeded) and not return_ok:
            return None if self._settled_here else self._overran(exc.args[0] if exc.args else 0)
        lost = isinstance(exc, WorkerLostError) or (
            # billiard >= 4.3 reports it before the child is gone (SystemExit, KeyboardInterrupt), or has the child live on (pool.py,
            # ``workloop``), where Celery would acknowledge what nobody has settled
            not isinstance(exc, Exception) and not (self._already_cancelled or self._already_revoked)
        )
        if lost and not self.acknowledged:
            return self._lost(exc)
        if lost:  # ``acks_late=False``: no message is left to give back, but a lease is, and a place in the room
            self.surrender()
        return super().on_failure(exc_info, send_failed_event, return_ok)

    # -- a child that vanished --------------------------------------------------------------------------------

    def _lost(self, exc: BaseException) -> None:
        task_ready(self)
        guard = self._rails.main_guard
        if state.killing or (is_stopping() and _by_sigterm(exc)):
            self.surrender()
            self.reject(requeue=True)
            return
        try:
            verdict = guard.lost(self.delivery, self._limits, error_report(_what_left(exc)))
        except PublishFailed as failed:
            logger.error("%s[%s] stays in its queue, it could not be dead-lettered: %r", self.name, self.id, failed)
            self.reject(requeue=True)
            return
        if isinstance(verdict, (DeadLetterNow, Fail)):
            self._report_failure(refusal(verdict.reason, self.delivery, verdict.why))
            self.acknowledge()
            return
        logger.warning("%s[%s]: %s; it starts again", self.name, self.id, exc)
        self._reject(requeue=True)  # at once, before what waits behind it; and the broker may count what we do

    # -- a hard time limit ------------------------------------------------------------------------------------

    def _overran(self, timeout: float) -> None:
        self._settled_here = True
        task_ready(self)
        logger.error("Hard time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
        exc, raised = self._why_killed(timeout)
        try:
            verdict: Verdict = self._rails.main_guard.overran(self.delivery, self._limits, raised, error_report(exc, raised))
        except PublishFailed as failed:
            logger.error("%s[%s] stays in its queue, its verdict could not be carried out: %r", self.name, self.id, failed)
            self.reject(requeue=True)
            return
        if isinstance(verdict, HandBack):
            self.reject(requeue=True)
            return
        if isinstance(verdict, RetryIn):
            self._report_retry(exc, verdict.delay)
        else:
            self._report_failure(exc)
        self.acknowledge()

    def _why_killed(self, timeout: float) -> tuple[BaseException, Raised]:
        if timeout == self._deadline_limit:
            exc = DeadlineExceeded(f"{self.name}[{self.id}]: its deadline passed while it ran; it was killed after {timeout:.1f} s")
            return exc, Raised(Classification(PERMANENT, rule="deadline"), reason="deadline")
        limit = TimeLimitExceeded(timeout)
        options = self._task.guard_options
        return limit, Raised(self._rails.classify(limit, retryable=options.retryable, permanent=options.permanent))

    # -- what Celery would have reported ----------------------------------------------------------------------

    def _report_retry(self, exc: BaseException, delay: float) -> None:
        reason, info = Retry(exc=exc, when=delay), _info(exc)
        if self.store_errors:
            self._task.backend.mark_as_retry(self.id, exc, info.traceback, request=self._context)
        signals.task_retry.send(sender=self._task, request=self._context, reason=reason, einfo=info)
        self.send_event("task-retried", exception=repr(exc), traceback=info.traceback)

    def _report_failure(self, exc: BaseException) -> None:
        info = _info(exc)
        self._task.backend.mark_as_failure(self.id, exc, info.traceback, request=self._context, store_result=self.store_errors)
        self._task.on_failure(exc, self.id, self.args, self.kwargs, info)
        signals.task_failure.send(
            sender=self._task,
            task_id=self.id,
            exception=exc,
            args=self.args,
            kwargs=self.kwargs,
            traceback=exc.__traceback__,
            einfo=info,
        )
        self.send_event("task-failed", exception=repr(exc), traceback=info.traceback)


def _told_of_the_end(on_success: Callable[..., Any]) -> Callable[..., Any]:
    """Return Celery's ``on_success`` for results only: pools whose tasks run in the main process tell it of other ends as well.

    What is no ``Exception`` (``sys.exit()``, a ``KeyboardInterrupt``) reaches the callback of success as an ``ExceptionInfo`` of a
    ``WorkerLostError`` (concurrency/base.py, ``apply_target``), where Celery takes it for a tuple: the message stayed unacknowledged
    for ever, and a solo worker ended. A greenlet that was killed is a success there (concurrency/gevent.py,
    ``_make_killable_target``), known by its ``False``, which is 0 or 1 elsewhere.
    """

    @wraps(on_success)
    def told(self: GuardedRequest, result: Any, **options: Any) -> Any:
        if isinstance(result, ExceptionInfo):
            return self.on_failure(result)
        if result[0] is False and not self._cut_off:
            return self.on_killed()
        return on_success(self, result, **options)

    return told


def _what_left(exc: BaseException) -> BaseException:
    """Return what really left the body, where the pool says only that it has lost it."""
    left = exc.__context__
    return exc if left is None or isinstance(left, Exception) else left


def _by_sigterm(exc: BaseException) -> bool:
    """Whether a child was ended by the signal that stops workers: some supervisors send it to the whole process group."""
    return "SIGTERM" in str(exc) or getattr(exc, "code", None) == signal.SIGTERM - 256  # billiard/common.py, _shutdown_cleanup


def _info(exc: BaseException) -> ExceptionInfo:
    try:
        raise exc
    except BaseException:  # noqa: BLE001 - raised here, only to give it a traceback, as billiard wants it
        return ExceptionInfo()
