"""Stores of leases and completion records, found by the scheme of their URL.

A third-party store is one class with a ``from_url(url, namespace=..., memory=...)`` and one line in :data:`REGISTRY`.
"""

from __future__ import annotations

import importlib
from typing import Any
from urllib.parse import urlsplit

from ..errors import GuardrailsConfigError
from ..ports import IdempotencyStore

__all__ = ["REGISTRY", "open_store"]

#: URL scheme → dotted name of the class; nothing is imported before it is needed.
REGISTRY: dict[str, str] = {
    "memory": "celery_guardrails.stores.memory:MemoryStore",
    "redis": "celery_guardrails.stores.redis:RedisStore",
    "rediss": "celery_guardrails.stores.redis:RedisStore",
    "unix": "celery_guardrails.stores.redis:RedisStore",
    "redis+socket": "celery_guardrails.stores.redis:RedisStore",
    "valkey": "celery_guardrails.stores.redis:RedisStore",
    "valkeys": "celery_guardrails.stores.redis:RedisStore",
}

#: Seconds that charged attempts and crashes of a key are remembered after it was last touched.
MEMORY_SECONDS = 86400.0


def open_store(url: str, *, namespace: str, memory: float = MEMORY_SECONDS) -> IdempotencyStore:
    """Open the store that a URL names.

    Args:
        url: for instance ``redis://localhost:6379/1``.
        namespace: prefix of every key.
        memory: seconds that a record is kept while the key is not completed.

    Raises:
        GuardrailsConfigError: for a scheme that is not known, or a URL that the store cannot use.
    """
    scheme = urlsplit(url).scheme
    dotted = REGISTRY.get(scheme)
    if dotted is None:
        raise GuardrailsConfigError(
            f"guardrails_store = {_hide(url)!r}: no store for {scheme + '://'!r}; "
            f"allowed are {', '.join(sorted(name + '://' for name in REGISTRY))}"
        )
    module, _, name = dotted.partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    try:
        store: IdempotencyStore = cls.from_url(url, namespace=namespace, memory=memory)
    except (ValueError, TypeError) as exc:
        raise GuardrailsConfigError(f"guardrails_store = {_hide(url)!r}: {exc}") from exc
    return store


def _hide(url: str) -> str:
    """Leave the password out."""
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":***@") if parts.password else url
