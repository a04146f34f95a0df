"""The resources of an app: which are declared, and what the store knows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import GuardrailsConfigError
from ..policy.breaker import Condition
from ..policy.budget import is_number
from ..policy.resource import Resource, ResourceView
from ..ports import ResourceStore
from ..stores import hide_password
from .options import TaskOptions

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["Resources"]


class Resources:
    """What the tasks of an app may name with ``resource=``.

    Args:
        rails: whose store keeps their state.
    """

    def __init__(self, rails: Guardrails) -> None:
        self._rails = rails
        self._declared: dict[str, Resource] = {}

    def inherit(self, others: Resources) -> None:
        """Take over what was declared on the default guardrails of an app before these came."""
        self._declared = {**others._declared, **self._declared}

    def declare(self, wanted: Resource) -> Resource:
        """Return what is declared now by this name.

        Raises:
            GuardrailsConfigError: it was declared with other options.
        """
        declared = self._declared.setdefault(wanted.name, wanted)
        if declared != wanted:
            raise GuardrailsConfigError(f"resource {wanted.name!r} is declared already, with other options: {declared!r}")
        return declared

    def named(self, name: str) -> Resource:
        """Return the resource that a task names."""
        # a task that was defined after the worker had started: refused by no check, and better guarded than not
        return self._declared.get(name) or Resource(name)

    def views(self) -> list[ResourceView]:
        """Return all as they stand now in the fleet, by name.

        Raises:
            StoreUnavailable: the store did not answer.
            GuardrailsConfigError: the store keeps no resources.
        """
        return self.store.view([self._declared[name] for name in sorted(self._declared)])

    def force(self, name: str, condition: str | None, seconds: float) -> None:
        """Put a breaker ``"open"`` or ``"closed"`` for so many seconds; None leaves it to itself again.

        Raises:
            GuardrailsConfigError: there is no such resource or condition.
            StoreUnavailable: the store did not answer.
        """
        if name not in self._declared:
            raise GuardrailsConfigError(f"there is no resource {name!r}; declared are {self._names()}")
        if condition not in (None, Condition.OPEN.value, Condition.CLOSED.value):
            raise GuardrailsConfigError(f'resource {name!r}: condition = {condition!r}: "open", "closed" or None is allowed')
        if not (is_number(seconds) and seconds > 0):
            raise GuardrailsConfigError(f"resource {name!r}: seconds = {seconds!r}: a number above 0 is allowed")
        self.store.force(name, None if condition is None else Condition(condition), seconds)

    @property
    def store(self) -> ResourceStore:
        """The store, for resources.

        Raises:
            GuardrailsConfigError: it keeps none.
        """
        store = self._rails.store
        if not isinstance(store, ResourceStore):
            raise GuardrailsConfigError(
                f"guardrails_store = {hide_password(self._rails.store_url)!r} keeps no resources (celery_guardrails.ports.ResourceStore): "
                "use another store, or leave resource=… out"
            )
        return store

    def check(self, options: TaskOptions) -> None:
        """Refuse a task that names a resource which is not declared, or which the store cannot keep.

        Raises:
            GuardrailsConfigError: it does.
        """
        if options.resource is None:
            return
        if options.resource not in self._declared:
            raise GuardrailsConfigError(
                f"{options.task}: resource = {options.resource!r} is not declared; declared are "
                f"{self._names()}: add guardrails.resource({options.resource!r}) beside Guardrails(app)"
            )
        _ = self.store

    def _names(self) -> str:
        return ", ".join(sorted(self._declared)) or "none"
