"""Tables of archives, found by the scheme of their URL."""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import GuardrailsConfigError
from ...stores import hide_password
from .table import LetterTable

__all__ = ["REGISTRY", "open_table"]

#: URL scheme → dotted name of the class, as in :data:`celery_guardrails.stores.REGISTRY`.
REGISTRY: dict[str, str] = {
    "django": "celery_guardrails.contrib.django.table:DjangoTable",
    "sqlalchemy+": "celery_guardrails.contrib.sqlalchemy_archive:SQLAlchemyTable",
}


def open_table(url: str) -> LetterTable:
    """Open the table that a URL names; it connects when it is used.

    Args:
        url: ``django://``, ``django://ALIAS`` or ``sqlalchemy+DIALECT://…``.

    Raises:
        GuardrailsConfigError: for a scheme that is not known, or a URL that the table cannot use.
    """
    scheme = url.partition("://")[0].lower()
    dotted = REGISTRY.get(scheme) or REGISTRY.get(scheme.partition("+")[0] + "+")
    if dotted is None:
        allowed = ", ".join(sorted(name + "://" for name in REGISTRY))
        raise GuardrailsConfigError(
            f"guardrails_archive = {hide_password(url)!r}: no archive for {scheme + '://'!r}; allowed are {allowed}"
        )
    module, _, name = dotted.partition(":")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
        table: LetterTable = cls.from_url(url)
    except (ValueError, TypeError, ImportError) as exc:
        raise GuardrailsConfigError(f"guardrails_archive = {hide_password(url)!r}: {exc}") from exc
    return table
