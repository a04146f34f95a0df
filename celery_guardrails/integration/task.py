"""The child's side: ``GuardedTask.__call__`` admits, runs and settles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Task as CeleryTask
from celery import _state
from celery.app.base import Celery
from celery.exceptions import Ignore, Reject, Retry
from celery.utils import uuid

from ..errors import GuardrailsConfigError
from ..execution import Execution, executing
from ..policy.classification import THROTTLED, Classification
from ..policy.delivery import TRAVEL_HEADER, Delivery, Travel
from ..policy.retry import RetryPolicy
from ..policy.verdict import deadline_of
from . import beat
from .options import TaskOptions
from .running import GuardedRun, grown_history, running_now
from .translate import DEADLINE_FIELD, DELIVERY_FIELD

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["GuardMixin", "GuardedTask"]


class GuardMixin:
    """Puts the guard around ``run()``; mixed with the app's own task class by :func:`guarded_base`."""

    abstract = True
    Request = "celery_guardrails.integration.request:GuardedRequest"
    Strategy = "celery_guardrails.integration.strategy:guarded"

    # Without these three the message is gone when something goes wrong.
    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure_or_timeout = True
    acks_on_failure = True
    acks_on_timeout = True
    #: Celery's own bounded retry after a loss would bypass the crash count.
    retry_on_worker_lost = False
    #: ``self.retry()`` is bounded by the policy's max_attempts unless the task says otherwise.
    max_retries: int | None = None

    key: Any = None
    fingerprint: Any = None
    retention: float | None = None
    on_duplicate = "return"
    retry_policy = RetryPolicy()
    retryable: Any = ()
    permanent: Any = ()
    dead_letter = True
    atomic: bool | str = False
    resource: str | None = None

    #: False on Celery's built-in tasks, which keep their own semantics.
    guarded = True
    _guard_options: TaskOptions | None = None
    _plain_call: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # the option is called `retry`, and so is the method: keep both
        policy = cls.__dict__.get("retry")
        if policy is not None and not callable(policy):
            if not isinstance(policy, RetryPolicy):
                name = cls.__dict__.get("name") or cls.__name__
                raise GuardrailsConfigError(f"{name}: retry = {policy!r}: a RetryPolicy(...) is allowed")
            cls.retry_policy = policy
            del cls.retry

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options as soon as the task knows its app."""
        super().on_bound(app)  # type: ignore[misc]
        from .app import ensure_guardrails

        ensure_guardrails(app)
        name = getattr(cls, "name", None) or ""
        if name.startswith("celery."):
            cls._become_plain(app)
            return
        if getattr(cls, "run", None) is not None and name:
            cls._guard_options = TaskOptions.from_task(cls)
            if "slot" in cls._guard_options.special:
                beat.watch()
            cls._plain_call = _foreign_call(cls)

    @classmethod
    def _become_plain(cls, app: Celery) -> None:
        """Give a built-in task Celery's semantics back (chord unlock counts on its own retries)."""
        cls.guarded = False
        cls.Request, cls.Strategy = CeleryTask.Request, CeleryTask.Strategy
        cls.acks_late = app.conf.task_acks_late
        cls.reject_on_worker_lost = bool(app.conf.task_reject_on_worker_lost)
        if "max_retries" not in cls.__dict__:
            cls.max_retries = CeleryTask.max_retries

    @property
    def guardrails(self) -> Guardrails:
        """The :class:`Guardrails` of this task's app."""
        from .app import ensure_guardrails

        return ensure_guardrails(self.app)  # type: ignore[attr-defined]

    @property
    def guard_options(self) -> TaskOptions:
        """The validated options."""
        options = self._guard_options
        if options is None:
            options = type(self)._guard_options = TaskOptions.from_task(type(self))
        return options

    # -- publishing -------------------------------------------------------------------------------------------

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """As in Celery; key and fingerprint are computed here and travel in the message.

        Raises:
            GuardrailsConfigError: the key cannot be made from the arguments; ``atomic`` with a store that cannot do it.
            TypeError: the arguments do not fit the task or have no stable fingerprint.
        """
        if self.guarded and not self.app.conf.task_always_eager:  # type: ignore[attr-defined]
            if self.atomic:
                self.guardrails.transactional(self.guard_options)
            if args is not None and not isinstance(args, (list, tuple)):
                args = tuple(args)  # a generator can be read once only
            headers = dict(options.get("headers") or {})
            if TRAVEL_HEADER not in headers:
                slot = None
                if "slot" in self.guard_options.special:
                    slot = beat.current_slot()
                    if slot is None:  # nobody's schedule: it runs, and runs once, also when its publisher publishes it again
                        slot, rest, options = _with_task_id(rest, options)
                travel = self._travel(args or (), kwargs or {}, slot)
                if travel is not None:
                    headers[TRAVEL_HEADER] = travel.to_header()
                    options["headers"] = headers
        return super().apply_async(args, kwargs, *rest, **options)  # type: ignore[misc]

    def _travel(self, args: Any, kwargs: Any, slot: str | None) -> Travel | None:
        running = running_now.get()
        now = self.guardrails.clock.now() if running is None else running.now()
        try:
            key, mark = self.guard_options.identify(args, kwargs, slot)
        except (TypeError, GuardrailsConfigError):
            # A step of a chain is published by its parent: raising here would turn the parent's success into a
            # failure. The worker will dead-letter the step as invalid instead.
            if running is not None or _inside_a_worker():
                return None
            raise
        return Travel(key=key, fingerprint=mark, first=now)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Any = None,
        throw: bool = True,
        eta: Any = None,
        countdown: Any = None,
        max_retries: Any = None,
        **options: Any,
    ) -> Any:
        """As in Celery, and the guard counts it: one attempt is charged, key and history travel on.

        Without ``eta`` and ``countdown`` the wait is the policy's, unless the task sets ``default_retry_delay``: with its jitter,
        and no shorter than ``exc`` (or the error that is being handled) asks for, by ``Retry-After`` for instance.
        """
        running = running_now.get()
        request = self.request  # type: ignore[attr-defined]
        if running is None or request.called_directly or request.is_eager or request.id != running.delivery.task_id:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)  # type: ignore[misc]
        limit = max_retries if max_retries is not None else self.max_retries
        if limit is None:
            # Celery raises once retries + 1 is above the limit; our attempts are counted from the message's own history
            max_retries = request.retries + max(0, self.retry_policy.max_attempts - running.tried())
        error = exc if isinstance(exc, BaseException) else sys.exc_info()[1]
        waited, said = running.delivery.travel.waited, self._said_of(error)
        running.said = "" if said is None else said.kind
        if eta is None and countdown is None and self.default_retry_delay == CeleryTask.default_retry_delay:  # type: ignore[attr-defined]
            countdown = waited = self.retry_policy.delay(
                running.tried(),
                self.guardrails.clock.fraction(),
                previous=running.delivery.travel.waited,
                retry_after=None if said is None else said.retry_after,
            )
        travel = running.delivery.travel.evolve(
            key=running.delivery.key,
            fingerprint=running.delivery.fingerprint,
            attempts=running.attempt,
            deferrals=0,
            vain=0,
            deliveries=running.delivery.travel.deliveries + 1,
            waited=waited,
            throttled=said is not None and said.kind == THROTTLED,
            origin=None,
            history=grown_history(running, error),
        )
        options["headers"] = {**(request.headers or {}), **(options.get("headers") or {}), TRAVEL_HEADER: travel.to_header()}
        try:
            answer = super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)  # type: ignore[misc]
        except Retry:
            raise
        except Reject as rejected:
            # Whatever the publish raises becomes a reject for good (celery/app/task.py, 5.7), as if the body had asked for one. It is
            # a failure like any other: the broker that was away then gets the copy from the guard, or keeps the original.
            if isinstance(rejected.reason, Exception):
                raise rejected.reason from None
            raise
        except BaseException:
            running.gave_up = True
            raise
        running.resubmitted = True  # throw=False: the body goes on, but its successor is on the way
        return answer

    def _said_of(self, error: BaseException | None) -> Classification | None:
        """Return what the rules say of the error that ``self.retry()`` was called for; None where there is none."""
        if error is None:
            return None
        options = self.guard_options
        return self.guardrails.classify(error, retryable=options.retryable, permanent=options.permanent)

    def replace(self, sig: Any) -> Any:
        """As in Celery; delivered again, the task is not replaced again.

        Raises:
            GuardrailsConfigError: in a task with ``atomic``, whose transaction the ``Ignore`` would roll back.
        """
        running = running_now.get()
        guarded = running is not None and running.delivery.task_id == self.request.id  # type: ignore[attr-defined]
        if guarded and self.atomic:
            raise GuardrailsConfigError(
                f"{self.name}: self.replace() leaves the body of an atomic task by an exception, which rolls its transaction back: "  # type: ignore[attr-defined]
                "publish the next task when it has committed, or leave atomic out"
            )
        try:
            return super().replace(sig)  # type: ignore[misc]
        except Ignore:  # it has been published
            if running is not None and guarded:
                running.replaced = True
            raise

    # -- running ----------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body under the guard, or plainly where it is called as a function."""
        request = self.request  # type: ignore[attr-defined]
        delivery: Delivery | None = request.__dict__.pop(DELIVERY_FIELD, None)
        if request.headers:
            request.headers.pop(DELIVERY_FIELD, None)  # else it would travel on with self.retry()
        if delivery is None or request.called_directly:
            return self._run_plain(request, args, kwargs)
        run = GuardedRun(self, delivery)
        value = run.run(args, kwargs)
        # Only now: error callbacks, which Celery publishes for a task that has failed, inherit no deadline.
        request.__dict__[DEADLINE_FIELD] = deadline_of(delivery, run.limits)
        return value

    def _run_plain(self, request: Any, args: Any, kwargs: Any) -> Any:
        if request.called_directly or not self.guarded:
            return super().__call__(*args, **kwargs) if request.called_directly else self._body(args, kwargs)  # type: ignore[misc]
        # eager mode: no broker, no lease; the body still finds its execution
        key, _ = self.guard_options.identify(args, kwargs, beat.current_slot() or request.id)
        execution = Execution(key or request.id or "", 0, (request.retries or 0) + 1, 1, None)
        with executing(execution):
            return self._body(args, kwargs)

    def _body(self, args: Any, kwargs: Any) -> Any:
        # not super().__call__: it loses the request's id in eager mode on Celery 5.4
        if self._plain_call is not None:
            return self._plain_call(*args, **kwargs)
        return self.run(*args, **kwargs)  # type: ignore[attr-defined]


def _with_task_id(rest: tuple[Any, ...], options: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the task id of a publish, and its options with it: Celery makes one up later where there is none."""
    chosen: str = (rest[0] if rest else options.get("task_id")) or uuid()
    return (chosen, (chosen, *rest[1:]), options) if rest else (chosen, rest, {**options, "task_id": chosen})


def _inside_a_worker() -> bool:
    task = _state.get_current_worker_task()
    return task is not None and bool(getattr(task.request, "id", None)) and not task.request.called_directly


def _foreign_call(cls: type) -> Callable[..., Any] | None:
    """Return a ``__call__`` that a project's own base class defines below the guard, if any."""
    seen = False
    for base in cls.__mro__:
        if base is GuardMixin:
            seen = True
        elif seen and base is not CeleryTask and "__call__" in base.__dict__ and base is not object:
            found: Callable[..., Any] = base.__dict__["__call__"]
            return found
    return None


class GuardedTask(GuardMixin, CeleryTask):
    """Task base class with the guard: subclass it, or give it as ``base=`` or ``task_cls=``."""

    abstract = True
