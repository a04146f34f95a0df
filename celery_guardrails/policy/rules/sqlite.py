"""sqlite3, by result code (Python 3.11 and later) or message."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .table import Look, Rules, always, attribute

__all__ = ["RULES"]

#: Primary result codes (https://www.sqlite.org/rescode.html); extended ones start with these names.
_NOT_NOW = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_PROTOCOL", "SQLITE_NOMEM", "SQLITE_INTERRUPT")
_NOT_NOW_TEXT = ("is locked", "disk i/o error", "disk is full", "locking protocol", "out of memory", "interrupted")


def _operational(error: Any, _look: Look) -> Classification:
    name = attribute(error, "sqlite_errorname")
    if isinstance(name, str):
        return Classification(RETRYABLE if name.startswith(_NOT_NOW) else PERMANENT, rule=f"sqlite3.{name}")
    text = str(error).lower()
    return Classification(RETRYABLE if any(part in text for part in _NOT_NOW_TEXT) else PERMANENT, rule="sqlite3.OperationalError")


RULES: Rules = {
    "sqlite3.OperationalError": _operational,
    **always(
        PERMANENT, "sqlite3", "DatabaseError", "IntegrityError", "DataError", "ProgrammingError", "InterfaceError", "NotSupportedError"
    ),
}
