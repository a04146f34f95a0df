"""What the package opens in one process: store, broker, engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import GuardrailsConfigError
from ..guard import Guard, Patience
from ..ports import Broker, IdempotencyStore
from ..stores import open_store
from ..stores.codec import KombuCodec
from .brokers import make_broker

if TYPE_CHECKING:
    from ..dead_letters.archive import Archive
    from ..dead_letters.service import DeadLetters
    from .app import Guardrails

__all__ = ["Parts"]

#: The worker's main process must not block: its hub also answers heartbeats.
_NO_PATIENCE = Patience(complete=0.0, release=0.0, publish=0.0)


class Parts:
    """What one process opens, each on first use.

    Args:
        rails: whose settings say what.
        hooks: called with the store before its first use.
    """

    def __init__(self, rails: Guardrails, hooks: Iterable[Callable[[IdempotencyStore], None]]) -> None:
        self._rails = rails
        self._hooks = hooks
        self._archive: Archive | None = None

    @cached_property
    def store(self) -> IdempotencyStore:
        """Leases and records."""
        store = open_store(self._rails.store_url, namespace=self._rails.namespace)
        for hook in self._hooks:
            hook(store)
        return store

    @cached_property
    def broker(self) -> Broker:
        """Delayed messages and dead letters."""
        return make_broker(self._rails.app, self._rails.settings)

    @cached_property
    def codec(self) -> KombuCodec:
        """Results, as the result backend has them."""
        conf = self._rails.app.conf
        accept = conf.result_accept_content or conf.accept_content
        return KombuCodec(conf.result_serializer, list(accept), self._rails.settings.max_result_bytes, self._rails.emit)

    def _guard(self, patience: Patience) -> Guard:
        from celery.utils.nodenames import gethostname

        from .mainstate import state
        from .solitude import solitude

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
            room=solitude if solitude.opened else None,
        )

    @cached_property
    def guard(self) -> Guard:
        """The engine for the process that runs tasks."""
        return self._guard(Patience())

    @cached_property
    def main_guard(self) -> Guard:
        """The engine for the worker's main process: never waits."""
        return self._guard(_NO_PATIENCE)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """The service behind the commands."""
        from ..dead_letters.service import DeadLetters

        rails = self._rails
        return DeadLetters.for_app(
            rails.app, broker=self.broker, store=self.store, settings=rails.settings, clock=rails.clock, redact=rails.redact
        )

    @property
    def archive(self) -> Archive | None:
        """Where dead letters are archived, or None; asked again each time until there is one, since tables may be made any time."""
        if self._archive is None:
            self._archive = self._open_archive()
        return self._archive

    def _open_archive(self) -> Archive | None:
        from ..dead_letters.archive import Archive, open_table
        from ..dead_letters.decoder import KombuDecoder
        from ..dead_letters.tasks import tasks_of

        rails = self._rails
        if rails.archive_url is None:
            return None
        table = open_table(rails.archive_url)
        if not table.ready():
            if rails.settings.archive is None:
                return None
            alias = table.name.partition("://")[2]
            database = "" if alias == "default" else f" --database {alias}"
            raise GuardrailsConfigError(f"guardrails_archive = {table.name!r}: no tables: run `python manage.py migrate{database}`")
        decoder = KombuDecoder(rails.app.conf.accept_content)
        tasks = tasks_of(rails.app)
        return Archive(table, self.broker, self.store, clock=rails.clock, decoder=decoder, redact=rails.redact, tasks=tasks)
