"""mysqlclient, PyMySQL and MySQL Connector/Python, by vendor code.

Codes: MySQL 8.4 error message reference (server 1000 to 1999 and from 3000, client 2000 to 2999); MariaDB's own are noted.
"""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .psycopg import PEP249
from .table import Handler, Look, Rules

__all__ = ["RULES", "code_kind"]

_RETRYABLE = frozenset(
    {
        # locks and transactions: lock wait timeout, deadlock, XA deadlock, lock table full, NOWAIT, changed since last read
        *(1205, 1213, 1614, 3058, 1206, 3572, 1020, 1412),
        # too many: connections, a user's connections, its resources, transactions; memory, disk
        *(1040, 1203, 1226, 1637, 1037, 1038, 1041, 1021),
        # the connection: shutdown, host blocked, aborted, network reads and writes, killed (MariaDB 1927), idle (4031)
        *(1053, 1077, 1079, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 4031, 1043, 1047),
        # interrupted: by KILL QUERY, by a time limit (MariaDB 1969)
        *(1317, 3024, 1969),
        # read-only: after a failover the pool still has the old primary
        *(1290, 1792, 1836),
    }
)
_PERMANENT = frozenset(
    {
        # access: database, user, table, column, privilege, routine; no such plug-in or account
        *(1044, 1045, 1142, 1143, 1227, 1370, 1698, 1524),
        # statement and schema: database, table, column, syntax, function, argument count, ambiguity
        *(1046, 1049, 1050, 1051, 1052, 1054, 1060, 1061, 1064, 1091, 1103, 1109, 1136, 1146, 1149, 1305, 1318, 1366),
        # data and constraints: null, duplicate, foreign keys, too long, out of range, no default, check (MariaDB 4025), packet
        *(1022, 1048, 1062, 1153, 1169, 1216, 1217, 1264, 1265, 1292, 1364, 1406, 1451, 1452, 1557, 1586, 1690, 3819, 4025),
        # raised by SIGNAL in a procedure or trigger
        1644,
        # client: unsupported authentication, packet too large, wrong parameters
        *(2020, 2031, 2034, 2054, 2058, 2059),
    }
)
_MODULES = ("MySQLdb", "MySQLdb._exceptions", "_mysql_exceptions", "pymysql.err", "mysql.connector.errors")


def code_kind(code: int) -> str | None:
    """Return the kind for a vendor code, or None for one that is not listed; other client errors (2000 to 2999) are retryable."""
    if code in _PERMANENT:
        return PERMANENT
    return RETRYABLE if code in _RETRYABLE or 2000 <= code <= 2999 else None


def _handler(name: str, kind: str | None) -> Handler:
    def handler(error: Any, _look: Look) -> Classification | None:
        code = error.args[0] if error.args else None
        if not isinstance(code, int):
            code = getattr(error, "errno", None)
        found = code_kind(code) if isinstance(code, int) else None
        if found is not None:
            return Classification(found, rule=f"mysql.{code}")
        return None if kind is None else Classification(kind, rule=f"mysql.{name}")

    return handler


# InternalError: PyMySQL's for a packet out of sequence, which a new connection mends
RULES: Rules = {
    f"{module}.{name}": _handler(name, kind)
    for module in _MODULES
    for name, kind in (*PEP249.items(), ("InternalError", RETRYABLE), ("Error", None))
}
