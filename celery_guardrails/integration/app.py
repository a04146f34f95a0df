"""``Guardrails``: the one place where the package is put on a Celery app."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from celery import Celery, _state

from ..config import PREFIX, Settings
from ..errors import GuardrailsConfigError
from ..events import Event, Listener
from ..guard import Guard, Patience
from ..policy.classification import Classification
from ..policy.classify import Classifier
from ..policy.lease import Record
from ..ports import Broker, Clock, IdempotencyStore, TransactionalStore
from ..stores import hide_password, open_store
from ..stores.codec import KombuCodec
from .brokers import make_broker
from .clock import SystemClock
from .logs import log_event, logger
from .options import TaskOptions

if TYPE_CHECKING:
    from ..dead_letters.service import DeadLetters

__all__ = ["Guardrails", "classify", "ensure_guardrails"]

#: The worker's main process must not block: its hub also answers heartbeats.
_NO_PATIENCE = Patience(complete=0.0, release=0.0, publish=0.0)
#: By name: this room does not know the one above it, and a publisher does not load what only a worker runs.
_WORKER_STEPS = ("celery_guardrails.worker.drain:Drain",)
_CONSUMER_STEPS = (
    "celery_guardrails.worker.topology:DeadLetterTopology",
    "celery_guardrails.worker.bad_messages:BadMessages",
    "celery_guardrails.worker.renewal:Renewal",
    "celery_guardrails.worker.pruning:Pruning",
    "celery_guardrails.worker.lost_children:LostChildren",
    "celery_guardrails.worker.delayed:DelayedPump",
)
_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket", "valkey", "valkeys")


class Guardrails:
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

    def __init__(self, app: Celery | None = None, *, store: str | None = None, **settings: Any) -> None:
        self._overrides = {PREFIX + name: value for name, value in settings.items()}
        if store is not None:
            self._overrides[PREFIX + "store"] = store
        Settings.from_mapping(self._overrides)
        self.clock: Clock = SystemClock()
        self._listeners: list[Listener] = [log_event]
        self._pending_rules: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._resources: tuple[int, _Resources] | None = None
        self._inherited: list[_Resources] = []
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
            self._listeners.extend(listener for listener in present._listeners if listener not in self._listeners)
            self.fallback_store = self.fallback_store or present.fallback_store
        self._app = app
        app.guardrails = self
        from . import beat
        from .topology import install

        beat.install()
        if present is None:
            app.steps["worker"].update(_WORKER_STEPS)
            app.steps["consumer"].update(_CONSUMER_STEPS)
        install(app, lambda: self.settings)
        _confirm_publishes(app)

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
        return Settings.from_mapping({**_configured(self.app), **self._overrides})

    @cached_property
    def namespace(self) -> str:
        """Prefix of every key and queue of ours."""
        return self.settings.namespace or self.app.main or "celery"

    @cached_property
    def store_url(self) -> str:
        """The store's URL: the setting, or the Redis that the app uses already, or with Django's app its database."""
        conf = self.app.conf
        if self.settings.store:
            return self.settings.store
        for url in (conf.broker_url, conf.broker_write_url, conf.result_backend):
            for candidate in [url] if isinstance(url, str) else list(url or ()):
                first = str(candidate).split(";")[0]
                if urlsplit(first).scheme in _REDIS_SCHEMES:
                    return first
        if self.fallback_store is not None:
            return self.fallback_store
        raise GuardrailsConfigError(
            "guardrails_store is not set and neither broker_url nor result_backend is a Redis to use instead: "
            "set guardrails_store, for instance to 'redis://localhost:6379/1'"
        )

    # -- parts, one set a process -----------------------------------------------------------------------------

    @property
    def _parts(self) -> _Resources:
        pid = os.getpid()
        parts = self._resources
        if parts is None or parts[0] != pid:  # connections must not be shared across a fork
            with self._lock:
                parts = self._resources
                if parts is None or parts[0] != pid:
                    if parts is not None:
                        self._inherited.append(parts[1])  # were they collected here, some drivers would end the parent's sessions
                    parts = self._resources = (pid, _Resources(self))
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

    def lookup(self, key: str) -> Record | None:
        """Return the record of a key, or None.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self.store.lookup(key)

    def forget(self, key: str) -> bool:
        """Let a completed key run again; whether there was a record.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self.store.forget(key)

    def leases(self) -> Iterator[tuple[str, Record]]:
        """Yield every key that is leased now, with its record: holder, owner, since when, until when.

        It looks at the whole store in small steps, holds nothing up and changes nothing.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self.store.leases()

    def break_lease(self, key: str) -> Record | None:
        """Take the lease of a key from its holder, so that the next delivery of its message runs at once.

        The fence rises, nothing is charged. A holder that lives learns it at its next step, at the end at the latest,
        and can no longer complete the key; what it does until then it does beside its successor.

        Returns:
            The record as it was, or None where nobody held the key.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        return self.store.break_lease(key)

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
        if self._resources is not None and self._resources[0] == os.getpid() and "store" in vars(self._resources[1]):
            hook(self._resources[1].store)

    def listen(self, listener: Listener) -> Listener:
        """Call ``listener`` with every event (:mod:`celery_guardrails.events`); usable as a decorator."""
        self._listeners.append(listener)
        return listener

    def emit(self, event: Event) -> None:
        """Tell every listener; one that fails is logged and does not disturb the task."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a user's code may raise anything
                logger.exception("a guardrails listener failed on %r", event)


class _Resources:
    """What one process opens, each on first use."""

    def __init__(self, rails: Guardrails) -> None:
        self._rails = rails

    @cached_property
    def store(self) -> IdempotencyStore:
        store = open_store(self._rails.store_url, namespace=self._rails.namespace)
        for hook in self._rails._store_hooks:
            hook(store)
        return store

    @cached_property
    def broker(self) -> Broker:
        return make_broker(self._rails.app, self._rails.settings)

    @cached_property
    def codec(self) -> KombuCodec:
        conf = self._rails.app.conf
        accept = conf.result_accept_content or conf.accept_content
        return KombuCodec(conf.result_serializer, list(accept), self._rails.settings.max_result_bytes, self._rails.emit)

    def _guard(self, patience: Patience) -> Guard:
        from celery.utils.nodenames import gethostname

        from .mainstate import state

        rails = self._rails
        node = getattr(state.consumer, "hostname", None) or gethostname()
        return Guard(
            store=self.store,
            broker=self.broker,
            codec=self.codec,
            clock=rails.clock,
            emit=rails.emit,
            lease=rails.settings.lease_seconds,
            node=f"{node}/{os.getpid()}",
            patience=patience,
        )

    @cached_property
    def guard(self) -> Guard:
        return self._guard(Patience())

    @cached_property
    def main_guard(self) -> Guard:
        return self._guard(_NO_PATIENCE)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        from ..dead_letters.service import DeadLetters

        rails = self._rails
        return DeadLetters.for_app(rails.app, broker=self.broker, store=self.store, settings=rails.settings, clock=rails.clock)


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


def _configured(app: Celery) -> dict[str, Any]:
    """Return the ``guardrails_*`` settings of an app, however its configuration spells them."""
    conf = app.conf
    found: dict[str, Any] = {}
    for name in list(conf.keys()):
        lowered = str(name).lower()
        start = lowered.find(PREFIX)
        if start < 0 or (start and not lowered[:start].endswith("_")):
            continue
        normal = lowered[start:]
        try:
            found[normal] = conf[normal]
        except KeyError:  # another namespace's setting of that name
            continue
    return found


def _confirm_publishes(app: Celery) -> None:
    """Have RabbitMQ confirm what the app publishes: without it a lost retry or chain step is lost in silence."""

    def configure(conf: Any) -> None:
        options = dict(conf.broker_transport_options or {})
        if "confirm_publish" not in options:
            conf.broker_transport_options = {**options, "confirm_publish": True}

    if app.configured:
        configure(app.conf)
        return

    def once(source: Any = None, **_: Any) -> None:
        configure(source)

    app.on_after_configure.connect(once, weak=False)
