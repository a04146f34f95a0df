"""Where the databases differ."""

from __future__ import annotations

from dataclasses import dataclass

from .table import NAMES, TABLE

__all__ = ["DIALECTS", "Dialect"]


@dataclass(frozen=True)
class Dialect:
    """One database's way of saying things; parameters are written ``:name``.

    Args:
        name: of the dialect.
        now: expression for the database's own clock, in microseconds since 1970.
        insert: statement that inserts a record unless there is one.
        prune: statement that deletes records whose time is over.
        insert_or_read: statement that inserts a record or answers with the one that is there, in one round trip; None
            where there is no such thing.
        lock: what makes a query read and lock the newest version of a row within a transaction.
        skip_locked: what makes a query pass over rows that another transaction holds; empty where writers wait for one another anyway.
        own_writer: a second connection waits for the first one's transaction, so all writing must be done on the same one.
    """

    name: str
    now: str
    insert: str
    prune: str
    insert_or_read: str | None = None
    lock: str = ""
    skip_locked: str = ""
    own_writer: bool = False


_COLUMNS = ", ".join(("id", "namespace", "key_text", *NAMES))
_VALUES = ", ".join(f":{name}" for name in ("id", "namespace", "key_text", *NAMES))
_READ = ", ".join(NAMES)

_POSTGRESQL_NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
#: The columns that a fresh claim takes from the database's clock.
_FRESH = {
    "fence": _POSTGRESQL_NOW,
    "claimed_us": _POSTGRESQL_NOW,
    "until_us": f"{_POSTGRESQL_NOW} + :lease_us",
    "expires_us": f"{_POSTGRESQL_NOW} + :kept_us",
}
_FRESH_VALUES = ", ".join(_FRESH.get(name, f":{name}") for name in ("id", "namespace", "key_text", *NAMES))

DIALECTS: dict[str, Dialect] = {
    "postgresql": Dialect(
        "postgresql",
        now=_POSTGRESQL_NOW,
        insert=f"INSERT INTO {TABLE} ({_COLUMNS}) VALUES ({_VALUES}) ON CONFLICT (id) DO NOTHING",
        insert_or_read=(
            f"WITH fresh AS (INSERT INTO {TABLE} ({_COLUMNS}) VALUES ({_FRESH_VALUES}) ON CONFLICT (id) DO NOTHING RETURNING {_READ}) "
            f"SELECT {_POSTGRESQL_NOW}, 1, {_READ} FROM fresh UNION ALL SELECT {_POSTGRESQL_NOW}, 0, {_READ} FROM {TABLE} WHERE id = :id"
        ),
        prune=(
            f"DELETE FROM {TABLE} WHERE id IN (SELECT id FROM {TABLE} WHERE namespace = :namespace AND expires_us <= {_POSTGRESQL_NOW} "
            "ORDER BY expires_us LIMIT :limit FOR UPDATE SKIP LOCKED)"
        ),
        lock="FOR UPDATE",
        skip_locked="FOR UPDATE SKIP LOCKED",
    ),
    "mysql": Dialect(
        "mysql",
        # not UNIX_TIMESTAMP(NOW()): the session's time zone may have an hour twice
        now="TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
        # not ON DUPLICATE KEY UPDATE: with CLIENT_FOUND_ROWS, as Django and SQLAlchemy set it, that counts an old row as well
        insert=f"INSERT IGNORE INTO {TABLE} ({_COLUMNS}) VALUES ({_VALUES})",
        prune=(
            f"DELETE FROM {TABLE} WHERE namespace = :namespace "
            "AND expires_us <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) ORDER BY expires_us LIMIT :limit"
        ),
        lock="FOR UPDATE",
        skip_locked="FOR UPDATE SKIP LOCKED",
    ),
    "sqlite": Dialect(
        "sqlite",
        # SQLite has no clock but its host's, in milliseconds
        now="CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000",
        insert=f"INSERT INTO {TABLE} ({_COLUMNS}) VALUES ({_VALUES}) ON CONFLICT (id) DO NOTHING",
        prune=(
            f"DELETE FROM {TABLE} WHERE id IN (SELECT id FROM {TABLE} WHERE namespace = :namespace "
            "AND expires_us <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000 ORDER BY expires_us LIMIT :limit)"
        ),
        own_writer=True,
    ),
}
