"""``Guardrails``: the one place where the package is put on a Celery app."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import Celery, _state

from ..config import PREFIX, Settings
from ..errors import GuardrailsConfigError
from ..events import Event, Listener
from ..guard import Guard
from ..policy.alerts import Alert
from ..policy.breaker import CircuitBreaker
from ..policy.budget import RetryBudget
from ..policy.classification import Classification
from ..policy.classify import Classifier
from ..policy.key import shortened
from ..policy.lease import Record
from ..policy.progress import Progress
from ..policy.rate import Rate
from ..policy.resource import Resource, ResourceView
from ..policy.suspicion import QUARANTINE
from ..policy.verdict import Limits
from ..ports import Broker, Clock, IdempotencyStore, ResourceStore, TransactionalStore
from ..stores import hide_password
from ..stores.codec import progress_of
from .alerts.service import Alerts
from .clock import SystemClock
from .configuration import configured, confirm_publishes, redis_of
from .hearing import presentable, tell_all
from .inspected import Inspected
from .logs import log_event
from .options import TaskOptions
from .parts import Parts
from .resources import Resources
from .steps import add_steps

if TYPE_CHECKING:
    from ..dead_letters.archive import Archive
    from ..dead_letters.service import DeadLetters

__all__ = ["Guardrails", "classify", "ensure_guardrails"]


class Guardrails(Inspected):
    """Puts the guard on a Celery app.

    Args:
        app: the app, or None to call :meth:`init_app` later.
        store: URL of the store; the same as the setting ``guardrails_store``, and goes before it.
        **settings: other settings by their name without the prefix; they go before the Celery configuration.

    Raises:
        GuardrailsConfigError: for a setting that is unknown or wrong; those in the Celery configuration are looked
            at when the worker starts or the first task is published.
    """

    #: The store's URL where no setting names one and the app uses no Redis; a framework that brings a database says it.
    fallback_store: str | None = None
    #: The same for the archive of dead letters; it is one only where its tables have been made.
    fallback_archive: str | None = None

    def __init__(self, app: Celery | None = None, *, store: str | None = None, **settings: Any) -> None:
        self._overrides = {PREFIX + name: value for name, value in settings.items()}
        if store is not None:
            self._overrides[PREFIX + "store"] = store
        Settings.from_mapping(self._overrides)
        self.clock: Clock = SystemClock()
        self._listeners: list[Listener] = [log_event]
        #: See :meth:`alert`.
        self.alerts = Alerts(self)
        self._pending_rules: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._opened: tuple[int, Parts] | None = None
        self._resources = Resources(self)
        self._inherited: list[Parts] = []
        self._store_hooks: list[Callable[[IdempotencyStore], None]] = []
        self._lock = threading.Lock()
        self._app: Celery | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> None:
        """Attach to an app; may be called before the app is configured."""
        present = getattr(app, "guardrails", None)
        if isinstance(present, Guardrails) and present is not self:
            # a task was defined first and attached the default: this one, given by hand, goes before it
            self.alerts.inherit(present.alerts)
            self._listeners.extend(listener for listener in present._listeners if listener not in self._listeners)
            self._resources.inherit(present._resources)
            self.fallback_store = self.fallback_store or present.fallback_store
            self.fallback_archive = self.fallback_archive or present.fallback_archive
        self._app = app
        app.guardrails = self
        from . import beat, deadlines
        from .topology import install

        beat.install()
        deadlines.install()
        if present is None:
            add_steps(app)
        install(app, lambda: self.settings)
        confirm_publishes(app)

    @property
    def app(self) -> Celery:
        """The Celery app."""
        if self._app is None:
            raise GuardrailsConfigError("Guardrails has no app yet: call init_app(app)")
        return self._app

    # -- settings ---------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Settings:
        """The validated settings.

        Raises:
            GuardrailsConfigError: naming the setting, the value and what is allowed.
        """
        return Settings.from_mapping({**configured(self.app), **self._overrides})

    @cached_property
    def namespace(self) -> str:
        """Prefix of every key and queue of ours."""
        return self.settings.namespace or self.app.main or "celery"

    @cached_property
    def store_url(self) -> str:
        """The store's URL: the setting, or the Redis that the app uses already, or with Django's app its database."""
        url = self.settings.store or redis_of(self.app) or self.fallback_store
        if url is not None:
            return url
        raise GuardrailsConfigError(
            "guardrails_store is not set and neither broker_url nor result_backend is a Redis to use instead: "
            "set guardrails_store, for instance to 'redis://localhost:6379/1'"
        )

    @property
    def archive_url(self) -> str | None:
        """The URL of the archive of dead letters: the setting, or with Django's app its database; None where there is none."""
        return self.settings.archive or self.fallback_archive

    # -- parts, one set a process -----------------------------------------------------------------------------

    @property
    def _parts(self) -> Parts:
        pid = os.getpid()
        parts = self._opened
        if parts is None or parts[0] != pid:  # connections must not be shared across a fork
            with self._lock:
                parts = self._opened
                if parts is None or parts[0] != pid:
                    if parts is not None:
                        self._inherited.append(parts[1])  # were they collected here, some drivers would end the parent's sessions
                    parts = self._opened = (pid, Parts(self, self._store_hooks))
        return parts[1]

    @property
    def store(self) -> IdempotencyStore:
        """The store, connected in this process."""
        return self._parts.store

    @property
    def broker(self) -> Broker:
        """The broker, connected in this process."""
        return self._parts.broker

    @property
    def guard(self) -> Guard:
        """The engine for the process that runs tasks: patient with a store or a broker that is away."""
        return self._parts.guard

    @property
    def main_guard(self) -> Guard:
        """The engine for the worker's main process: never waits."""
        return self._parts.main_guard

    @property
    def dead_letters(self) -> DeadLetters:
        """The service behind the commands."""
        return self._parts.dead_letters

    @property
    def archive(self) -> Archive | None:
        """The archive of dead letters, or None where there is none.

        Raises:
            GuardrailsConfigError: ``guardrails_archive`` is wrong, or its tables are not there.
        """
        return self._parts.archive

    # -- what users call --------------------------------------------------------------------------------------

    @cached_property
    def classifier(self) -> Classifier:
        """The rules of this app."""
        classifier = Classifier(default_kind=self.settings.default_kind)
        for args, options in self._pending_rules:
            classifier.rule(*args, **options)
        return classifier

    def classify(self, exc: BaseException, *, retryable: tuple[Any, ...] = (), permanent: tuple[Any, ...] = ()) -> Classification:
        """Say what kind of failure an exception is, and which rule says so."""
        return self.classifier(exc, retryable=retryable, permanent=permanent, now=self.clock.now())

    def rule(self, *args: Any, **options: Any) -> Any:
        """Register a classification rule; see :meth:`celery_guardrails.policy.classify.Classifier.rule`."""
        if "classifier" in self.__dict__ or not (args and options):
            return self.classifier.rule(*args, **options)
        Classifier().rule(*args, **options)  # refuse a wrong rule here, where it is written
        self._pending_rules.append((args, options))
        return None

    @cached_property
    def redact(self) -> Callable[[Any], Any]:
        """What may be shown of a dead letter's arguments, error and traceback: the setting ``guardrails_redact``.

        Raises:
            GuardrailsConfigError: the setting names no callable.
        """
        from ..dead_letters.redaction import redactor

        return redactor(self.settings.redact)

    # -- resources --------------------------------------------------------------------------------------------

    def resource(
        self,
        name: str,
        *,
        retry_budget: RetryBudget | None = RetryBudget(),  # noqa: B008 - frozen
        breaker: CircuitBreaker | None = CircuitBreaker(),  # noqa: B008 - frozen
        max_concurrency: int | None = None,
        rate: Rate | str | float | None = None,
    ) -> Resource:
        """Declare something that tasks call, with the limits that the whole fleet keeps to through the store.

        Tasks name it with ``@guarded_task(resource=name)``. What it does not let in waits in the broker and loses no attempt.

        Args:
            name: of the resource, at most 200 characters.
            retry_budget: how many retries it is spared; None: as many as the tasks' policies want.
            breaker: when it is left alone; None: never.
            max_concurrency: executions at one time; a crashed one gives its slot back when its lease ends.
            rate: executions that start a second: a number, or ``"100/s"``, ``"10/m"``, ``"5/h"``.

        Returns:
            What was declared.

        Raises:
            GuardrailsConfigError: an option is wrong, or the name is declared already with other options.
        """
        return self._resources.declare(Resource(name, retry_budget, breaker, max_concurrency, Rate.parse(rate)))

    def resources(self) -> list[ResourceView]:
        """Return the declared resources as they stand now in the fleet, by name.

        Raises:
            StoreUnavailable: the store did not answer.
            GuardrailsConfigError: the store keeps no resources.
        """
        return self._resources.views()

    def force(self, name: str, condition: str | None, seconds: float = 3600.0) -> None:
        """Put the breaker of a resource ``"open"`` or ``"closed"`` for so many seconds; None leaves it to itself again.

        Raises:
            GuardrailsConfigError: there is no such resource or condition.
            StoreUnavailable: the store did not answer.
        """
        self._resources.force(name, condition, seconds)

    @property
    def resource_store(self) -> ResourceStore:
        """The store, for resources.

        Raises:
            GuardrailsConfigError: it keeps none.
        """
        return self._resources.store

    def limits_of(self, options: TaskOptions) -> Limits:
        """Return what the policy needs to know of a task."""
        if options.resource is None:
            return options.limits(self.settings)
        return options.limits(self.settings, self._resources.named(options.resource))

    def check_task(self, options: TaskOptions) -> None:
        """Refuse a task that cannot run in this app; for a worker's start.

        Raises:
            GuardrailsConfigError: its resource is not declared, or the store cannot do what the task wants.
        """
        if options.atomic:
            self.transactional(options)
        self._resources.check(options)

    # -- idempotency keys -------------------------------------------------------------------------------------

    def lookup(self, key: str) -> Record | None:
        """Return the record of a key, or None.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self.store.lookup(shortened(key))

    def progress(self, key: str) -> Progress | None:
        """Return how far the loops of a task that runs, waits or is dead have come, or None where it has none (any more).

        Raises:
            StoreUnavailable: the store did not answer.
        """
        record = self.store.lookup(shortened(key))
        return None if record is None else progress_of(record.steps)

    def forget(self, key: str) -> bool:
        """Let a completed key run again; whether there was a record.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self.store.forget(shortened(key))

    def leases(self) -> Iterator[tuple[str, Record]]:
        """Yield every key that is leased now, with its record: holder, owner, since when, until when.

        It looks at the whole store in small steps, holds nothing up and changes nothing.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return (found for found in self.store.leases() if found[0] != QUARANTINE)

    def break_lease(self, key: str) -> Record | None:
        """Take the lease of a key from its holder, so that the next delivery of its message runs at once.

        The fence rises, nothing is charged. A holder that lives learns it at its next step, at the end at the latest,
        and can no longer complete the key; what it does until then it does beside its successor.

        Returns:
            The record as it was, or None where nobody held the key.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self.store.break_lease(shortened(key))

    def transactional(self, options: TaskOptions) -> TransactionalStore:
        """Return the store for a task with ``atomic``.

        Raises:
            GuardrailsConfigError: it cannot keep its records in the transaction of a task.
        """
        store = self.store
        if not isinstance(store, TransactionalStore):
            raise GuardrailsConfigError(
                f"{options.task}: atomic = {options.atomic!r} needs a store that keeps its records in the task's own database, "
                f"and guardrails_store = {hide_password(self.store_url)!r} cannot: set guardrails_store to 'django://default' or "
                "'sqlalchemy+postgresql://…', or leave atomic out"
            )
        if isinstance(options.atomic, str):
            store.transaction(options.atomic)  # not begun: a store refuses a database that is not its own
        return store

    def on_store(self, hook: Callable[[IdempotencyStore], None]) -> None:
        """Call ``hook`` with the store when a process opens it, before its first use."""
        self._store_hooks.append(hook)
        if self._opened is not None and self._opened[0] == os.getpid() and "store" in vars(self._opened[1]):
            hook(self._opened[1].store)

    def listen(self, listener: Listener) -> Listener:
        """Call ``listener`` with every event (:mod:`celery_guardrails.events`); usable as a decorator."""
        self._listeners.append(listener)
        return listener

    def alert(
        self,
        function: Callable[[Alert], object] | None = None,
        *,
        webhook: str | None = None,
        email: str | Sequence[str] | None = None,
        new: bool = True,
        rate: str | None = "100/m",
        every: float = 300.0,
        quiet: float = 86400.0,
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> Any:
        """Tell somebody of dead letters: by a callable, a webhook (Slack's form), or e-mail (Django's mailer); one of the three.

        It never delays a task or its dead-lettering, and the whole fleet sends one message together.

        Args:
            function: called with an :class:`~celery_guardrails.policy.alerts.Alert`, in a thread of its own; usable as a decorator.
            webhook: URL that a JSON document is posted to.
            email: addresses.
            new: at the first letter of a kind (error fingerprint) that has not been seen for ``quiet`` seconds.
            rate: when more letters die than this, ``"100/m"``, ``"20/30s"``; None: never.
            every: seconds between two messages of the same sort; what is held back is summed up in the next.
            quiet: seconds, for ``new``.
            where: globs that letters must match: ``{"task": "shop.*", "queue": …, "reason": …, "error": …}``, each one or several.

        Raises:
            GuardrailsConfigError: naming the option, the value and what is allowed.
        """
        self.alerts.add(function, webhook=webhook, email=email, new=new, rate=rate, every=every, quiet=quiet, where=where)
        return function

    def emit(self, event: Event) -> None:
        """Tell every listener; one that fails is logged and does not disturb the task."""
        tell_all(self._listeners, presentable(event, self))


_attach_lock = threading.Lock()


def ensure_guardrails(app: Any) -> Guardrails:
    """Return the app's :class:`Guardrails`; an app that has guarded tasks and none gets the default one."""
    if hasattr(app, "_get_current_object"):
        app = app._get_current_object()
    found = getattr(app, "guardrails", None)
    if isinstance(found, Guardrails):
        return found
    with _attach_lock:
        found = getattr(app, "guardrails", None)
        return found if isinstance(found, Guardrails) else Guardrails(app)


def classify(exc: BaseException) -> Classification:
    """Say what kind of failure an exception is, by the rules of the current app (the shipped ones where it has none)."""
    app = _state.get_current_app()
    found = getattr(app, "guardrails", None)
    return found.classify(exc) if isinstance(found, Guardrails) else Classifier()(exc)
