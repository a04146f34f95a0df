"""Stores of leases and completion records, found by the scheme of their URL.

A third-party store is one class with a ``from_url(url, namespace=..., memory=...)`` and one line in :data:`REGISTRY`.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from ..errors import GuardrailsConfigError
from ..ports import IdempotencyStore

__all__ = ["MEMORY_SECONDS", "REGISTRY", "STEPS_SECONDS", "hide_password", "open_store"]

#: URL scheme → dotted name of the class; nothing is imported before it is needed. A ``+`` at the end stands for any dialect.
REGISTRY: dict[str, str] = {
    "memory": "celery_guardrails.stores.memory:MemoryStore",
    "redis": "celery_guardrails.stores.redis:RedisStore",
    "rediss": "celery_guardrails.stores.redis:RedisStore",
    "unix": "celery_guardrails.stores.redis:RedisStore",
    "redis+socket": "celery_guardrails.stores.redis:RedisStore",
    "redis+sentinel": "celery_guardrails.stores.redis:RedisStore",
    "rediss+sentinel": "celery_guardrails.stores.redis:RedisStore",
    "redis+cluster": "celery_guardrails.stores.redis:RedisStore",
    "rediss+cluster": "celery_guardrails.stores.redis:RedisStore",
    "valkey": "celery_guardrails.stores.redis:RedisStore",
    "valkeys": "celery_guardrails.stores.redis:RedisStore",
    "django": "celery_guardrails.contrib.django.store:DjangoStore",
    "sqlalchemy+": "celery_guardrails.contrib.sqlalchemy:SQLAlchemyStore",
}

#: Seconds that charged attempts and crashes of a key are remembered after it was last touched.
MEMORY_SECONDS = 86400.0
#: The same for a key that has recovery points: their effects must not be repeated when a dead letter is replayed weeks later.
STEPS_SECONDS = 30 * 86400.0

#: "user:" and what follows up to the last @, unless that is a port.
_USER = re.compile(r"(://(?::|[^:@/?#]+:(?!\d+(?:[,/?#]|$)))).*@", re.DOTALL)
_OPTION = re.compile(r"([?&][^=&#]*(?:password|secret)[^=&#]*=)[^&#]*", re.IGNORECASE)


def open_store(url: str, *, namespace: str, memory: float = MEMORY_SECONDS) -> IdempotencyStore:
    """Open the store that a URL names.

    Args:
        url: for instance ``redis://localhost:6379/1``.
        namespace: prefix of every key.
        memory: seconds that a record is kept while the key is not completed.

    Raises:
        GuardrailsConfigError: for a scheme that is not known, or a URL that the store cannot use.
    """
    scheme = url.partition("://")[0].lower()
    dotted = REGISTRY.get(scheme) or REGISTRY.get(scheme.partition("+")[0] + "+")
    if dotted is None:
        raise GuardrailsConfigError(
            f"guardrails_store = {hide_password(url)!r}: no store for {scheme + '://'!r}; "
            f"allowed are {', '.join(sorted(name + '://' for name in REGISTRY))}"
        )
    module, _, name = dotted.partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    try:
        store: IdempotencyStore = cls.from_url(url, namespace=namespace, memory=memory)
    except (ValueError, TypeError) as exc:
        raise GuardrailsConfigError(f"guardrails_store = {hide_password(url)!r}: {exc}") from exc
    return store


def hide_password(url: str) -> str:
    """Return a URL for people: without its passwords, before the hosts or among the options, quoted as they should be or not."""
    return _OPTION.sub(r"\1***", _USER.sub(r"\1***@", url))
