"""The archive of dead letters in a database of the Django project."""

from __future__ import annotations

from typing import Any

from celery_guardrails.dead_letters import archive as common
from celery_guardrails.dead_letters.archive import ArchivedGroup
from celery_guardrails.dead_letters.decoder import Decoder, KombuDecoder
from celery_guardrails.dead_letters.redaction import Redactor, hide_secrets
from celery_guardrails.dead_letters.tasks import Tasks, no_tasks, tasks_of
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.ports import Broker, Clock, IdempotencyStore

from .table import DjangoTable, alias_of

__all__ = ["Archive", "ArchivedGroup"]


class Archive(common.Archive):
    """See :class:`celery_guardrails.dead_letters.archive.Archive`; which letters is said by query sets.

    Args:
        broker: see there, as for the others.
        store: …
        clock: …
        decoder: …
        redact: …
        tasks: …
        using: alias of the database; None for the one that the project's routers say.

    Raises:
        GuardrailsConfigError: there is no such database.
    """

    def __init__(
        self,
        broker: Broker | None,
        store: IdempotencyStore | None,
        *,
        clock: Clock,
        decoder: Decoder,
        redact: Redactor = hide_secrets,
        tasks: Tasks = no_tasks,
        using: str | None = None,
    ) -> None:
        try:
            self.django_table = DjangoTable(using)
        except ValueError as exc:
            raise GuardrailsConfigError(f"guardrails_archive = 'django://{using or ''}': {exc}") from exc
        super().__init__(self.django_table, broker, store, clock=clock, decoder=decoder, redact=redact, tasks=tasks)
        self.using = self.django_table.using

    @classmethod
    def of(cls, rails: Any) -> Archive:
        """Return the archive of an app's :class:`~celery_guardrails.Guardrails`: where ``guardrails_archive`` says, if in this project."""
        decoder, tasks = KombuDecoder(rails.app.conf.accept_content), tasks_of(rails.app)
        using = alias_of(rails.archive_url)
        return cls(rails.broker, rails.store, clock=rails.clock, decoder=decoder, redact=rails.redact, tasks=tasks, using=using)
