"""SQLAlchemy: the driver's own error, ``orig``, decides; its class is the fallback.

``NoResultFound`` has no rule: most often it is a task that overtook its publisher's commit.
"""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .psycopg import PEP249, by_sqlstate
from .table import Handler, Look, Rules, always, attribute

__all__ = ["RULES"]

_MODULE = "sqlalchemy.exc"


def _handler(name: str, kind: str | None) -> Handler:
    def handler(error: Any, look: Look) -> Classification | None:
        if attribute(error, "connection_invalidated") is True:
            return Classification(RETRYABLE, rule="sqlalchemy.connection_invalidated")
        orig = attribute(error, "orig")
        found = look.known(orig) or by_sqlstate(orig, "sqlstate")
        if found is None and kind is not None:
            return Classification(kind, rule=f"sqlalchemy.{name}")
        return found

    return handler


RULES: Rules = {
    **{f"{_MODULE}.{name}": _handler(name, kind) for name, kind in (*PEP249.items(), ("StatementError", None))},
    **always(RETRYABLE, _MODULE, "TimeoutError", "DisconnectionError"),
    **always(
        PERMANENT,
        _MODULE,
        "ArgumentError",
        "CompileError",
        "CircularDependencyError",
        "IdentifierError",
        "NoInspectionAvailable",
        "NoReferenceError",
        "NoSuchTableError",
        "UnboundExecutionError",
        "AmbiguousColumnError",
        "MissingGreenlet",
    ),
    # another transaction changed or removed the row first
    **always(RETRYABLE, "sqlalchemy.orm.exc", "StaleDataError", "ObjectDeletedError"),
    **always(PERMANENT, "sqlalchemy.orm.exc", "UnmappedError", "DetachedInstanceError", "FlushError"),
}
