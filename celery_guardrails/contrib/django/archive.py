"""The archive of dead letters in a database of the Django project."""

from __future__ import annotations

from typing import Any

from celery_guardrails.dead_letters import archive as common
from celery_guardrails.dead_letters.archive import ArchivedGroup
from celery_guardrails.dead_letters.decoder import Decoder, KombuDecoder
from celery_guardrails.dead_letters.redaction import Redactor, hide_secrets
from celery_guardrails.ports import Broker, Clock, IdempotencyStore

from .table import DjangoTable

__all__ = ["Archive", "ArchivedGroup"]


class Archive(common.Archive):
    """See :class:`celery_guardrails.dead_letters.archive.Archive`; which letters is said by query sets.

    Args:
        broker: see there, as for the others.
        store: …
        clock: …
        decoder: …
        redact: …
        using: alias of the database; None for the one that the project's routers say.
    """

    def __init__(
        self,
        broker: Broker | None,
        store: IdempotencyStore | None,
        *,
        clock: Clock,
        decoder: Decoder,
        redact: Redactor = hide_secrets,
        using: str | None = None,
    ) -> None:
        table = DjangoTable(using)
        super().__init__(table, broker, store, clock=clock, decoder=decoder, redact=redact)
        self.using = table.using

    @classmethod
    def of(cls, rails: Any) -> Archive:
        """Return the archive of an app's :class:`~celery_guardrails.Guardrails`."""
        return cls(rails.broker, rails.store, clock=rails.clock, decoder=KombuDecoder(rails.app.conf.accept_content))
