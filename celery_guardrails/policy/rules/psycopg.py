"""psycopg 2 and 3, and the kinds of SQLSTATE that SQLAlchemy's other PostgreSQL drivers share.

Codes: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes".
"""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .table import Handler, Look, Rules, attribute

__all__ = ["PEP249", "RULES", "by_sqlstate", "sqlstate_kind"]

#: Kind by the class names of PEP 249, where nothing finer is known. InternalError says nothing.
PEP249 = {
    "OperationalError": RETRYABLE,
    "InterfaceError": RETRYABLE,
    "IntegrityError": PERMANENT,
    "DataError": PERMANENT,
    "ProgrammingError": PERMANENT,
    "NotSupportedError": PERMANENT,
}

_RETRYABLE_CLASSES = frozenset({"08", "40", "53", "57", "58", "72"})
_PERMANENT_CLASSES = frozenset("03 09 0A 0B 0F 0L 0P 0Z 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 42 44 54 55 F0 P0".split())
_EXCEPTIONS = {
    "40002": PERMANENT,  # integrity constraint violation at commit
    "57P04": PERMANENT,  # the database was dropped
    "53400": PERMANENT,  # configuration limit
    "55P03": RETRYABLE,  # lock not available (NOWAIT, lock_timeout)
    "55006": RETRYABLE,  # object in use
    "25006": RETRYABLE,  # read-only transaction: after a failover the pool still has the old primary
    "25P03": RETRYABLE,  # idle in transaction timeout
    "25P04": RETRYABLE,  # transaction timeout
    "26000": RETRYABLE,  # a prepared statement that is gone: the pooler gave another connection
    "XX000": RETRYABLE,  # internal error: also what poolers give for their own trouble
    "XX001": PERMANENT,  # data corrupted
    "XX002": PERMANENT,  # index corrupted
    "HV00N": RETRYABLE,  # a foreign server cannot be reached
}


def sqlstate_kind(code: str) -> str | None:
    """Return the kind for a SQLSTATE, or None for one of an unknown class."""
    if code in _EXCEPTIONS:
        return _EXCEPTIONS[code]
    if code[:2] in _RETRYABLE_CLASSES:
        return RETRYABLE
    return PERMANENT if code[:2] in _PERMANENT_CLASSES else None


def by_sqlstate(error: object, prefix: str) -> Classification | None:
    """Return the classification by ``sqlstate`` (psycopg 3, asyncpg) or ``pgcode`` (psycopg 2), or None where it has none."""
    code = attribute(error, "sqlstate", "pgcode")
    kind = sqlstate_kind(code) if isinstance(code, str) else None
    return None if kind is None else Classification(kind, rule=f"{prefix}.{code}")


def _handler(package: str, name: str, kind: str | None) -> Handler:
    def handler(error: Any, _look: Look) -> Classification | None:
        found = by_sqlstate(error, package)
        if found is None and kind is not None:
            return Classification(kind, rule=f"{package}.{name}")
        return found

    return handler


RULES: Rules = {
    f"{package}.{name}": _handler(package, name, kind)
    for package in ("psycopg", "psycopg2")
    for name, kind in (*PEP249.items(), ("Error", None))
}
