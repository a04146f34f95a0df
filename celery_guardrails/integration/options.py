"""The options of one guarded task, validated when the task is defined."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..config import Settings
from ..errors import GuardrailsConfigError
from ..policy.key import KeyTemplate, bind_arguments, fingerprint, make_key, template_fields
from ..policy.resource import Resource
from ..policy.retry import RetryPolicy
from ..policy.verdict import Limits

__all__ = ["TaskOptions"]

#: What a key may name beside the arguments; an argument of that name goes before it.
_SPECIAL = frozenset({"task", "slot"})
_LATER = ("max_queue_depth",)


@dataclass(frozen=True)
class TaskOptions:
    """What ``@guarded_task`` was given; see section 3 of the contract for each.

    Raises:
        GuardrailsConfigError: naming the option, its value and what is allowed.
    """

    task: str
    signature: inspect.Signature
    key: KeyTemplate = None
    fingerprint: tuple[str, ...] | bool | None = None
    retention: float | None = None
    on_duplicate: str = "return"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    retryable: tuple[Any, ...] = ()
    permanent: tuple[Any, ...] = ()
    dead_letter: bool = True
    atomic: bool | str = False
    resource: str | None = None
    quarantine_cap: float | None = None

    @classmethod
    def from_task(cls, task: Any) -> TaskOptions:
        """Read and check the options of a task class."""
        name = task.name or task.__name__
        for later in _LATER:
            if getattr(task, later, None) not in (None, False):
                raise GuardrailsConfigError(f"{name}: the option {later} = {getattr(task, later)!r} is not in this release; leave it out")
        if getattr(task, "autoretry_for", None):
            raise GuardrailsConfigError(
                f"{name}: autoretry_for = {task.autoretry_for!r} would be a second retry engine beside the guard's; "
                "remove it and use retryable=(...), permanent=(...) and retry=RetryPolicy(...)"
            )
        options = cls(
            task=name,
            signature=_signature(task),
            key=_unwrap(task, "key"),
            fingerprint=_names(name, _unwrap(task, "fingerprint")),
            retention=task.retention,
            on_duplicate=task.on_duplicate,
            retry=task.retry_policy,
            retryable=_errors(name, "retryable", task.retryable),
            permanent=_errors(name, "permanent", task.permanent),
            dead_letter=task.dead_letter,
            atomic=task.atomic or False,
            resource=task.resource,
            quarantine_cap=_half_the_limit(getattr(task, "soft_time_limit", None), getattr(task, "time_limit", None)),
        )
        options._check()
        return options

    def _check(self) -> None:
        if not (self.key is None or callable(self.key) or (isinstance(self.key, str) and self.key)):
            self._refuse("key", self.key, "None, a template such as 'charge:{order_id}' or a callable")
        if self.on_duplicate not in ("return", "ignore", "raise"):
            self._refuse("on_duplicate", self.on_duplicate, '"return", "ignore" or "raise"')
        if not isinstance(self.retry, RetryPolicy):
            self._refuse("retry", self.retry, "a RetryPolicy(...)")
        if self.retention is not None and (isinstance(self.retention, bool) or not self.retention > 0):
            self._refuse("retention", self.retention, "None or a number of seconds above 0")
        if not isinstance(self.dead_letter, bool):
            self._refuse("dead_letter", self.dead_letter, "True or False")
        if not isinstance(self.atomic, (bool, str)):
            self._refuse("atomic", self.atomic, "True, False or the name of a database")
        if not (self.resource is None or (isinstance(self.resource, str) and self.resource)):
            self._refuse("resource", self.resource, "None or the name of a resource, declared with guardrails.resource(...)")
        known = self._argument_names()
        if known is None:
            return
        used = [name for name in self._template_fields if name not in _SPECIAL]
        chosen = self.fingerprint if isinstance(self.fingerprint, tuple) else ()
        for option, names in (("key", used), ("fingerprint", list(chosen))):
            unknown = [name for name in names if name not in known]
            if unknown:
                self._refuse(option, getattr(self, option), f"arguments of the task ({', '.join(sorted(known)) or 'it has none'})")

    def _argument_names(self) -> set[str] | None:
        parameters = self.signature.parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return None
        return set(parameters)

    def _refuse(self, option: str, value: Any, allowed: str) -> None:
        raise GuardrailsConfigError(f"{self.task}: {option} = {value!r}: {allowed} is allowed")

    @cached_property
    def _template_fields(self) -> tuple[str, ...]:
        if not isinstance(self.key, str):
            return ()
        try:
            return tuple(template_fields(self.key))
        except ValueError as exc:
            raise GuardrailsConfigError(f"{self.task}: key = {self.key!r} is no template: {exc}") from exc

    @cached_property
    def special(self) -> frozenset[str]:
        """What the key names beside the arguments: ``task``, ``slot``."""
        return _SPECIAL.intersection(self._template_fields).difference(self.signature.parameters)

    def identify(self, args: Iterable[Any], kwargs: dict[str, Any], slot: str | None = None) -> tuple[str | None, str | None]:
        """Return key and fingerprint for a call; (None, None) where the task id is the key.

        Args:
            args: of the call.
            kwargs: of the call.
            slot: for a key that names it, see :mod:`celery_guardrails.integration.beat`.

        Raises:
            TypeError: the arguments do not fit the task, or have no stable fingerprint.
            GuardrailsConfigError: the key cannot be made from them.
        """
        if self.key is None:
            return None, None
        positional = tuple(args)
        arguments = bind_arguments(self.signature, positional, kwargs)
        fields = arguments
        if self.special:
            fields = {"task": self.task, **({} if slot is None else {"slot": slot}), **arguments}
        return make_key(self.key, fields, positional, kwargs), fingerprint(arguments, self.fingerprint)

    def limits(self, settings: Settings, resource: Resource | None = None) -> Limits:
        """Return what the policy needs to know; ``resource`` is what :attr:`resource` names."""
        return Limits(
            retry=self.retry,
            max_crashes=settings.max_crashes,
            on_duplicate=self.on_duplicate,
            dead_letter=self.dead_letter,
            store_failure=settings.store_failure,
            busy_cap=settings.lease_seconds,
            resource=resource,
            max_stalls=settings.max_stalls,
            quarantine_cap=self.quarantine_cap,
        )


def _half_the_limit(*seconds: float | None) -> float | None:
    """Return for how long a task may wait to be alone: its time limits run meanwhile."""
    limits = [limit for limit in seconds if limit]
    return min(limits) / 2 if limits else None


def _signature(task: Any) -> inspect.Signature:
    """Return the signature of ``run`` as a caller sees it, without ``self``."""
    found = inspect.getattr_static(task, "run")
    if isinstance(found, (staticmethod, classmethod)):
        return inspect.signature(task.run)
    signature = inspect.signature(found)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _unwrap(task: Any, name: str) -> Any:
    """Return a class attribute as it was given: a function must not turn into a method."""
    value = inspect.getattr_static(task, name, None)
    return value.__func__ if isinstance(value, staticmethod) else value


def _names(task: str, value: Any) -> tuple[str, ...] | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise GuardrailsConfigError(f"{task}: fingerprint = {value!r}: None (all), False (none) or a tuple of argument names is allowed")
    return tuple(value)


def _errors(task: str, option: str, value: Any) -> tuple[Any, ...]:
    chosen = value if isinstance(value, (tuple, list)) else (value,)
    for item in chosen:
        if not (isinstance(item, str) or (isinstance(item, type) and issubclass(item, BaseException))):
            raise GuardrailsConfigError(f"{task}: {option} = {value!r}: exception classes or their qualified names are allowed")
    return tuple(chosen)
