"""Moves dead letters out of the broker into a database of the Django project."""

from __future__ import annotations

from typing import Any

from celery_guardrails.dead_letters import archive as common
from celery_guardrails.dead_letters.archive import ArchiveReport

from .table import DjangoTable

__all__ = ["run_archive"]


def run_archive(rails: Any, *, using: str | None = None, **options: Any) -> ArchiveReport:
    """See :func:`celery_guardrails.dead_letters.archive.run_archive`.

    Args:
        rails: the app's :class:`~celery_guardrails.Guardrails`.
        using: alias of the database; None for the one that the project's routers say.
        **options: see there.
    """
    return common.run_archive(rails, DjangoTable(using), **options)
