"""The child's side: ``GuardedTask.__call__`` admits, runs and settles."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery import Task as CeleryTask
from celery import _state
from celery.app.base import Celery
from celery.exceptions import Ignore, Reject, Retry
from celery.local import Proxy

from ..errors import (
    DeadlineExceeded,
    DuplicateTask,
    GuardrailsConfigError,
    IdempotencyConflict,
    PermanentError,
    PoisonTask,
    PublishFailed,
    RejectedTask,
    RetryableError,
)
from ..execution import Execution, executing
from ..guard import ErrorReport
from ..policy.classification import PERMANENT, RETRYABLE, Classification
from ..policy.delivery import TRAVEL_HEADER, Delivery, Travel
from ..policy.lease import Claim
from ..policy.retry import RetryPolicy
from ..policy.verdict import (
    Cancelled,
    Complete,
    DeadLetterNow,
    Fail,
    HandBack,
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
    Verdict,
)
from . import stopping
from .options import TaskOptions
from .translate import DELIVERY_FIELD

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["GuardMixin", "GuardedTask", "guarded_base", "guarded_task"]


class _OutOfMemory(RetryableError):
    """A ``MemoryError`` of the body: reported as itself it would end the worker's main process."""


class _Running:
    """What the methods of a task that runs right now need to know of the run."""

    __slots__ = ("attempt", "delivery", "gave_up", "resubmitted")

    def __init__(self, delivery: Delivery, attempt: int) -> None:
        self.delivery = delivery
        self.attempt = attempt
        self.gave_up = False
        self.resubmitted = False


_running: ContextVar[_Running | None] = ContextVar("celery_guardrails_running", default=None)


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
            GuardrailsConfigError: the key cannot be made from the arguments.
            TypeError: the arguments do not fit the task or have no stable fingerprint.
        """
        if self.guarded and not self.app.conf.task_always_eager:  # type: ignore[attr-defined]
            if args is not None and not isinstance(args, (list, tuple)):
                args = tuple(args)  # a generator can be read once only
            headers = dict(options.get("headers") or {})
            if TRAVEL_HEADER not in headers:
                travel = self._travel(args or (), kwargs or {})
                if travel is not None:
                    headers[TRAVEL_HEADER] = travel.to_header()
                    options["headers"] = headers
        return super().apply_async(args, kwargs, *rest, **options)  # type: ignore[misc]

    def _travel(self, args: Any, kwargs: Any) -> Travel | None:
        now = self.guardrails.clock.now()
        try:
            key, mark = self.guard_options.identify(args, kwargs)
        except (TypeError, GuardrailsConfigError):
            # A step of a chain is published by its parent: raising here would turn the parent's success into a
            # failure. The worker will dead-letter the step as invalid instead.
            if _running.get() is not None or _inside_a_worker():
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

        Without ``eta`` and ``countdown`` the wait is the policy's, unless the task sets ``default_retry_delay``.
        """
        running = _running.get()
        request = self.request  # type: ignore[attr-defined]
        if running is None or request.called_directly or request.is_eager or request.id != running.delivery.task_id:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)  # type: ignore[misc]
        limit = max_retries if max_retries is not None else self.max_retries
        if limit is None:
            # Celery raises once retries + 1 is above the limit; our attempts are counted from the message's own history
            max_retries = request.retries + max(0, self.retry_policy.max_attempts - running.attempt)
        if eta is None and countdown is None and self.default_retry_delay == CeleryTask.default_retry_delay:  # type: ignore[attr-defined]
            countdown = self.retry_policy.delay(running.attempt, self.guardrails.clock.fraction())
        travel = running.delivery.travel.evolve(
            key=running.delivery.key,
            fingerprint=running.delivery.fingerprint,
            attempts=running.attempt,
            deferrals=0,
            deliveries=running.delivery.travel.deliveries + 1,
            origin=None,
        )
        options["headers"] = {**(request.headers or {}), **(options.get("headers") or {}), TRAVEL_HEADER: travel.to_header()}
        try:
            answer = super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)  # type: ignore[misc]
        except Retry:
            raise
        except BaseException:
            running.gave_up = True
            raise
        running.resubmitted = True  # throw=False: the body goes on, but its successor is on the way
        return answer

    # -- running ----------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body under the guard, or plainly where it is called as a function."""
        request = self.request  # type: ignore[attr-defined]
        delivery: Delivery | None = request.__dict__.pop(DELIVERY_FIELD, None)
        if request.headers:
            request.headers.pop(DELIVERY_FIELD, None)  # else it would travel on with self.retry()
        if delivery is None or request.called_directly:
            return self._run_plain(request, args, kwargs)
        return _GuardedRun(self, delivery).run(args, kwargs)

    def _run_plain(self, request: Any, args: Any, kwargs: Any) -> Any:
        if request.called_directly or not self.guarded:
            return super().__call__(*args, **kwargs) if request.called_directly else self._body(args, kwargs)  # type: ignore[misc]
        # eager mode: no broker, no lease; the body still finds its execution
        key, _ = self.guard_options.identify(args, kwargs)
        execution = Execution(key or request.id or "", 0, (request.retries or 0) + 1, 1, None)
        with executing(execution):
            return self._body(args, kwargs)

    def _body(self, args: Any, kwargs: Any) -> Any:
        # not super().__call__: it loses the request's id in eager mode on Celery 5.4
        if self._plain_call is not None:
            return self._plain_call(*args, **kwargs)
        return self.run(*args, **kwargs)  # type: ignore[attr-defined]


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


class _GuardedRun:
    """One guarded run of one task: carries the guard's verdicts over into Celery's language."""

    def __init__(self, task: Any, delivery: Delivery) -> None:
        self.task = task
        self.delivery = delivery
        self.rails: Guardrails = task.guardrails
        self.guard = self.rails.guard
        self.options: TaskOptions = task.guard_options
        self.limits = self.options.limits(self.rails.settings)

    def run(self, args: Any, kwargs: Any) -> Any:
        try:
            verdict, claim = self.guard.admit(self.delivery, self.limits)
        except PublishFailed as exc:
            raise Reject(exc, requeue=True) from exc
        if not isinstance(verdict, Run):
            return self._refused(verdict)
        execution = Execution(
            key=self.delivery.key,
            fence=claim.fence,
            attempt=verdict.attempt,
            deliveries=self.delivery.travel.deliveries + 1,
            deadline=verdict.deadline,
            crashes=claim.crashes,
            _now=self.rails.clock.now,
            _stopping=stopping.is_stopping,
        )
        running = _Running(self.delivery, verdict.attempt)
        token = _running.set(running)
        try:
            with executing(execution):
                value = self.task._body(args, kwargs)
        except Retry:
            self._settle(claim, Resubmitted())
            raise
        except Ignore:
            self._settle(claim, Cancelled())
            raise
        except Reject as exc:
            if isinstance(self._settle(claim, Rejected(exc.requeue), exc), DeadLetterNow):
                raise RejectedTask(str(exc.reason)) from exc
            raise
        except Exception as exc:  # the boundary: every failure of a body is classified here
            self._failed(claim, exc, running)
            raise
        finally:
            _running.reset(token)
        if not verdict.guarded:
            return value
        settled = self._settle(claim, Resubmitted() if running.resubmitted else Returned(value))
        if isinstance(settled, (Complete, PassThrough)):
            return value
        raise Ignore(f"the lease of {self.delivery.key!r} was taken over meanwhile; the other execution's result stands")

    def _failed(self, claim: Claim, exc: Exception, running: _Running) -> None:
        """Settle a failure; raises what Celery shall see, or returns where it is the exception itself."""
        if running.gave_up:
            raised = Raised(Classification(PERMANENT, rule="self.retry"), reason="exhausted")
        elif isinstance(exc, MemoryError):
            raised = Raised(Classification(RETRYABLE, rule="builtins.MemoryError"))
        else:
            raised = Raised(self.rails.classify(exc, retryable=self.options.retryable, permanent=self.options.permanent))
        verdict = self._settle(claim, raised, exc)
        if isinstance(verdict, RetryIn):
            raise Retry(exc=exc, when=verdict.delay) from exc
        if isinstance(exc, MemoryError):
            raise _OutOfMemory(repr(exc)) from exc

    def _settle(self, claim: Claim, outcome: Outcome, exc: BaseException | None = None) -> Verdict:
        retention = self.options.retention or self.rails.settings.result_retention
        report = error_report(exc, outcome) if exc is not None else None
        try:
            verdict: Verdict = self.guard.settle(self.delivery, claim, outcome, self.limits, error=report, retention=retention)
        except PublishFailed as failed:
            self.guard.surrender(self.delivery)
            raise Reject(failed, requeue=True) from failed
        return verdict

    def _refused(self, verdict: Verdict) -> Any:
        if isinstance(verdict, Replay):
            return self.guard.codec.decode(verdict.result)
        if isinstance(verdict, HandBack):
            raise Ignore(f"{self.delivery.key!r}: {verdict.why}, looked at again in {verdict.delay:.1f} s")
        if isinstance(verdict, Skip):
            raise Ignore(f"{self.delivery.key!r} has completed already")
        raise refusal(verdict.reason if isinstance(verdict, (DeadLetterNow, Fail)) else "poison", self.delivery)


def refusal(reason: str, delivery: Delivery) -> PermanentError:
    """Return the error that stands for a refusal in the task's result."""
    key = delivery.key
    if reason == "conflict":
        return IdempotencyConflict(f"key {key!r} is in use for other arguments: make the key finer, or name fingerprint=(...)")
    if reason == "duplicate":
        return DuplicateTask(f"key {key!r} has completed already")
    if reason == "deadline":
        return DeadlineExceeded(f"{delivery.task_name}[{delivery.task_id}]: its deadline passed before it could start")
    return PoisonTask(f"{delivery.task_name}[{delivery.task_id}] killed its worker too often (guardrails_max_crashes)")


def error_report(exc: BaseException, outcome: Outcome | None = None) -> ErrorReport:
    """Return an exception as text."""
    cls = type(exc)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    try:
        message = str(exc)
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may raise anything
        message = f"<unprintable: {broken!r}>"
    text = "".join(traceback.format_exception(cls, exc, exc.__traceback__))
    rule = outcome.classification.rule if isinstance(outcome, Raised) else ""
    return ErrorReport(name, message, text, rule)


class GuardedTask(GuardMixin, CeleryTask):
    """Task base class with the guard: subclass it, or give it as ``base=`` or ``task_cls=``."""

    abstract = True


_bases: dict[type, type] = {CeleryTask: GuardedTask}


def guarded_base(base: type) -> type:
    """Return a class that guards the given task class and keeps what it can do (``delay_on_commit`` of Django's)."""
    if issubclass(base, GuardMixin):
        return base
    made = _bases.get(base)
    if made is None:
        namespace: dict[str, Any] = {"abstract": True, "__module__": base.__module__}
        for name in ("max_retries", "acks_late", "reject_on_worker_lost", "acks_on_failure_or_timeout"):
            # what a project's own base class says goes before the guard's defaults
            chosen = [cls.__dict__[name] for cls in base.__mro__ if cls is not CeleryTask and name in cls.__dict__]
            if chosen and chosen[0] is not None:
                namespace[name] = chosen[0]
        made = _bases[base] = type(f"Guarded{base.__name__}", (GuardMixin, base), namespace)
    return made


def guarded_task(*args: Any, **options: Any) -> Any:
    """Make a guarded task of a function; same call forms as :func:`celery.shared_task`.

    Args:
        *args: the function, where it is used without options.
        key: template over the arguments, callable, or None (the task id).
        fingerprint: argument names that must agree for the key; None all, False none.
        retention: seconds the completion record is kept (default ``guardrails_result_retention``).
        on_duplicate: ``"return"``, ``"ignore"`` or ``"raise"`` when the key has completed.
        retry: a :class:`~celery_guardrails.RetryPolicy`.
        retryable: exception classes (or qualified names) that are tried again.
        permanent: exception classes (or qualified names) that are not.
        dead_letter: False: fail as plain Celery does.
        **options: every option of Celery's tasks.

    Raises:
        GuardrailsConfigError: an option is wrong; ``autoretry_for`` is given.
    """

    def decorate(fun: Callable[..., Any]) -> Any:
        if type(fun) is Proxy:
            raise TypeError("@guarded_task was applied to a task; apply it to a function, once")
        _check_early(fun, options)
        chosen = dict(options)
        base = chosen.pop("base", None)
        name = chosen.get("name")

        def register(app: Celery) -> Any:
            return app._task_from_fun(fun, base=guarded_base(base or app.Task), **chosen)

        _state.connect_on_app_finalize(register)
        for app in _state._get_active_apps():
            if app.finalized:
                with app._finalize_mutex:
                    register(app)

        def by_name() -> Any:
            app = _state.get_current_app()
            return app.tasks[name or app.gen_task_name(fun.__name__, fun.__module__)]

        return Proxy(by_name)

    if len(args) == 1 and callable(args[0]):
        return decorate(args[0])
    if args:
        raise TypeError("guarded_task takes keyword options only")
    return decorate


def _check_early(fun: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse wrong options where they are written, not when some worker finalizes its app."""
    names = (
        "key",
        "fingerprint",
        "retention",
        "on_duplicate",
        "retryable",
        "permanent",
        "dead_letter",
        "autoretry_for",
        "resource",
        "atomic",
        "max_queue_depth",
    )
    probe: dict[str, Any] = {name: options[name] for name in names if name in options}
    if "retry" in options:
        probe["retry"] = options["retry"]
        if not isinstance(options["retry"], RetryPolicy):
            raise GuardrailsConfigError(f"{fun.__name__}: retry = {options['retry']!r}: a RetryPolicy(...) is allowed")
    run = fun if not options.get("bind") else _without_first(fun)
    cls = type(fun.__name__, (GuardMixin,), {**probe, "name": options.get("name") or fun.__name__, "run": staticmethod(run)})
    TaskOptions.from_task(cls)


def _without_first(fun: Callable[..., Any]) -> Callable[..., Any]:
    def bound(*args: Any, **kwargs: Any) -> Any:
        return fun(None, *args, **kwargs)

    import inspect

    signature = inspect.signature(fun)
    bound.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return bound
