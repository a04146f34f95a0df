"""Django: a database error's ``__cause__``, the driver's own error, decides; its class is the fallback.

``DoesNotExist`` has no rule: most often it is a task that overtook its publisher's commit.
"""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, Classification
from .psycopg import PEP249
from .table import Handler, Look, Rules, always

__all__ = ["RULES"]

_MODULE = "django.db.utils"


def _handler(name: str, kind: str | None) -> Handler:
    def handler(error: Any, look: Look) -> Classification | None:
        found = look.known(error.__cause__)
        if found is None and kind is not None:
            return Classification(kind, rule=f"django.{name}")
        return found

    return handler


RULES: Rules = {
    **{f"{_MODULE}.{name}": _handler(name, kind) for name, kind in (*PEP249.items(), ("Error", None))},
    **always(
        PERMANENT,
        "django.core.exceptions",
        "AppRegistryNotReady",
        "BadRequest",
        "FieldDoesNotExist",
        "FieldError",
        "ImproperlyConfigured",
        "PermissionDenied",
        "SuspiciousOperation",
        "SynchronousOnlyOperation",
        "ValidationError",
        "ViewDoesNotExist",
    ),
    **always(PERMANENT, "django.utils.connection", "ConnectionDoesNotExist"),
    **always(PERMANENT, "django.db.transaction", "TransactionManagementError"),
    **always(PERMANENT, "django.template.exceptions", "TemplateDoesNotExist", "TemplateSyntaxError"),
}
