"""``@guarded_task``, and the classes it makes tasks of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from celery import Task as CeleryTask
from celery import _state
from celery.app.base import Celery
from celery.local import Proxy

from ..errors import GuardrailsConfigError
from ..policy.retry import RetryPolicy
from .options import TaskOptions
from .task import GuardedTask, GuardMixin

__all__ = ["guarded_base", "guarded_task"]

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
        atomic: True (or the name of the store's database): the body runs in a transaction of the database that holds
            the records, and its completion commits with it: exactly once. Only with a ``django://`` or ``sqlalchemy+…`` store.
        resource: name of what the task calls, declared with :meth:`Guardrails.resource`.
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

    signature = inspect.signature(fun)
    bound.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return bound
