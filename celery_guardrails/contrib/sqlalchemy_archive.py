"""The archive of dead letters in a database that SQLAlchemy knows: ``guardrails_archive = "sqlalchemy+postgresql+psycopg://…"``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from celery_guardrails.dead_letters.archive.table import AUDIT_TABLE, GROUP, LETTER_TABLE, Entry, GroupCount, State, regex_of
from celery_guardrails.dead_letters.filters import Filter

__all__ = ["SQLAlchemyTable", "archive_metadata", "audit_table", "letter_table"]

_CHUNK = 500
_MYSQL = ("mysql", "mariadb")
#: Seconds that SQLite waits for another writer.
_PATIENCE = 20.0


class Moment(sa.TypeDecorator[float]):
    """Unix time in seconds, kept as a time of UTC; what is no time that a database can hold is NULL."""

    impl = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), *_MYSQL)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> datetime | None:
        """Return what goes to the database."""
        if value is None or value < 0:
            return None
        try:
            moment = datetime.fromtimestamp(value, timezone.utc)
        except (OverflowError, ValueError, OSError):
            return None
        return moment if dialect.name == "postgresql" else moment.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> float | None:
        """Return what came from it."""
        if value is None:
            return None
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()


_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), *_MYSQL)
_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), *_MYSQL)
#: Names are told apart by case there, too.
_OPTIONS: dict[str, Any] = {
    f"{name}_{option}": value for name in _MYSQL for option, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def _text(name: str, length: int | None = None, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, _LONG_TEXT if length is None else sa.String(length), nullable=nullable)


def _whole(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


#: Holds the two tables, for Alembic: ``target_metadata = [Base.metadata, archive_metadata]``.
archive_metadata = sa.MetaData()
#: Letters, with the columns of Django's table; made on first use where it does not exist.
letter_table = sa.Table(
    LETTER_TABLE,
    archive_metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    _text("letter_id", 64),
    _text("dead_letter_queue", 255),
    _text("queue", 255),
    _text("task", 255),
    _text("task_id", 255),
    _text("key"),
    _text("reason", 32),
    _text("error", 255),
    _text("message"),
    _text("fingerprint", 32),
    _text("worker", 255),
    _whole("attempts"),
    _whole("crashes"),
    _whole("replays"),
    sa.Column("first_seen", Moment),
    sa.Column("died_at", Moment),
    sa.Column("archived_at", Moment, nullable=False),
    sa.Column("taken_at", Moment),
    _text("state", 10),
    sa.Column("changed_at", Moment, nullable=False),
    _text("note", 200),
    sa.Column("body", _BYTES, nullable=False),
    _text("content_type", 255, nullable=True),
    _text("content_encoding", 255, nullable=True),
    _text("exchange", 255),
    _text("routing_key", 255),
    _text("headers"),
    _text("properties"),
    _text("certificate"),
    sa.UniqueConstraint("dead_letter_queue", "letter_id", name="guardrails_letter_once"),
    sa.Index("guardrails_letter_group", "fingerprint", "died_at"),
    sa.Index("guardrails_letter_state", "state", "id"),
    sa.Index("guardrails_letter_age", "archived_at"),
    sa.Index("guardrails_letter_task", "task_id"),
    **_OPTIONS,
)
#: The audit trail.
audit_table = sa.Table(
    AUDIT_TABLE,
    archive_metadata,
    sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("at", Moment, nullable=False),
    _text("who", 255),
    _text("action", 10),
    _text("selection"),
    _text("why"),
    _whole("before"),
    sa.Column("after", sa.Integer),
    _whole("letters"),
    _text("outcome"),
    sa.Index("guardrails_audit_at", "at"),
    **_OPTIONS,
)
_c = letter_table.c
_PK = _c.id.label("pk")
_GROUP = [_c[name] for name in GROUP]
_PRESENT = (_PK, _c.letter_id, _c.state, _c.note, _c.taken_at)
#: What a letter is made of.
_LETTER = (
    *_PRESENT,
    *(_c[name] for name in "dead_letter_queue queue body content_type content_encoding exchange routing_key headers properties".split()),
)


@dataclass(frozen=True)
class Rows:
    """A selection: what must hold of a row."""

    conditions: tuple[Any, ...]

    def and_(self, *conditions: Any) -> Rows:
        """Return a narrower one."""
        return Rows((*self.conditions, *conditions))

    @property
    def clause(self) -> Any:
        """It as SQL."""
        return sa.and_(sa.true(), *self.conditions)


class SQLAlchemyTable:
    """See :class:`~celery_guardrails.dead_letters.archive.table.LetterTable`; a selection is :class:`Rows`.

    Args:
        url: of SQLAlchemy.
    """

    errors: tuple[type[Exception], ...] = (SQLAlchemyError,)

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("postgresql", "sqlite", *_MYSQL):
            raise ValueError(f"no archive for the database {parsed.get_backend_name()!r}; allowed are mariadb, mysql, postgresql, sqlite")
        on_sqlite = parsed.get_backend_name() == "sqlite"
        if on_sqlite and parsed.database in (None, "", ":memory:"):
            raise ValueError("a database in memory is gone with its process: name a file")
        options = {"timeout": _PATIENCE} if on_sqlite and "timeout" not in parsed.query else {}
        self._engine = sa.create_engine(parsed, pool_pre_ping=True, connect_args=options)
        self.name = f"sqlalchemy+{parsed.render_as_string(hide_password=True)}"
        self._mine = threading.local()
        self._made = False
        self._lock = threading.Lock()

    @classmethod
    def from_url(cls, url: str) -> SQLAlchemyTable:
        """Connect lazily to ``sqlalchemy+DIALECT://…``; what follows the first ``+`` is SQLAlchemy's own URL."""
        try:
            return cls(url.partition("+")[2])
        except (ArgumentError, NoSuchModuleError, ImportError) as exc:
            raise ValueError(f"SQLAlchemy says: {exc}") from exc

    def ready(self) -> bool:
        """Make the tables where they are not there."""
        with self._lock:
            if not self._made:
                try:
                    archive_metadata.create_all(self._engine)
                except DBAPIError:  # another process was quicker
                    if not all(sa.inspect(self._engine).has_table(name) for name in (LETTER_TABLE, AUDIT_TABLE)):
                        raise
                self._made = True
        return True

    def close(self) -> None:
        """See the port."""
        self._engine.dispose()

    @contextmanager
    def atomic(self) -> Iterator[Any]:
        """See the port."""
        current = getattr(self._mine, "connection", None)
        if current is not None:
            yield current
            return
        self.ready()
        with self._engine.begin() as connection:
            self._mine.connection = connection
            try:
                yield connection
            finally:
                self._mine.connection = None

    def _ask(self, statement: Any) -> Sequence[Any]:
        with self.atomic() as connection:
            found: Sequence[Any] = connection.execute(statement).all()
            return found

    def _do(self, statement: Any) -> int:
        with self.atomic() as connection:
            return int(connection.execute(statement).rowcount)

    # -- looking ----------------------------------------------------------------------------------------------

    def select(self, where: Filter, *, ids: Iterable[str], state: str | None, dead_letter_queue: str | None = None) -> Rows:
        """See the port."""
        asked = list(ids)
        chosen = (
            (state, _c.state == state),
            (asked or None, _c.letter_id.in_(asked) | _c.task_id.in_(asked)),
            (dead_letter_queue, _c.dead_letter_queue == dead_letter_queue),
            (where.queue, (_c.queue == where.queue) | (_c.dead_letter_queue == where.queue)),
            (where.task, _c.task.regexp_match(f"^{regex_of(where.task or '')}$")),
            (where.error, _c.error.regexp_match(rf"^(.*\.)?{regex_of(where.error or '')}$")),
            (where.fingerprint, _c.fingerprint.startswith(where.fingerprint or "", autoescape=True)),
            (where.reason, _c.reason == where.reason),
            (where.key, _c.key == where.key),
            (where.since, _c.died_at >= (where.since or 0.0)),
            (where.until, _c.died_at < (where.until or 0.0)),
        )
        return Rows(tuple(condition for value, condition in chosen if value is not None))

    def only(self, rows: Rows, state: str) -> Rows:
        """See the port."""
        return rows.and_(_c.state == state)

    def free(self, rows: Any) -> Any:
        """See the port; there are no canaries that outlive a command."""
        return rows

    def up_to(self, rows: Rows, pk: int) -> Rows:
        """See the port."""
        return rows.and_(_c.id <= pk)

    def chunk(self, rows: Rows, *, limit: int, beyond: int | None = None, newest_first: bool = False) -> Sequence[Any]:
        """See the port."""
        if beyond is not None:
            rows = rows.and_(_c.id < beyond if newest_first else _c.id > beyond)
        return self._ask(sa.select(*_LETTER).where(rows.clause).order_by(_c.id.desc() if newest_first else _c.id).limit(limit))

    def nth(self, rows: Rows, number: int) -> int | None:
        """See the port."""
        found = self._ask(sa.select(_c.id).where(rows.clause).order_by(_c.id).limit(1).offset(number))
        return found[0][0] if found else None

    def count(self, rows: Rows) -> int:
        """See the port."""
        return int(self._ask(sa.select(sa.func.count(_c.id)).where(rows.clause))[0][0])

    def queues(self, rows: Rows, column: str) -> Mapping[str, int]:
        """See the port."""
        return {row[0]: row[1] for row in self._ask(sa.select(_c[column], sa.func.count(_c.id)).where(rows.clause).group_by(_c[column]))}

    def uncertain(self, dead_letter_queue: str, *, before: float | None = None) -> Sequence[str]:
        """See the port."""
        found = sa.select(_c.letter_id).where(_c.dead_letter_queue == dead_letter_queue, _c.taken_at.is_(None))
        found = found if before is None else found.where(_c.archived_at < before)
        return [name for (name,) in self._ask(found)]

    def groups(self, rows: Rows, *, limit: int | None) -> Sequence[GroupCount]:
        """See the port."""
        number = sa.func.count(_c.id)
        counted = sa.select(*_GROUP, number, sa.func.min(_c.died_at), sa.func.max(_c.died_at), sa.func.max(_c.id)).where(rows.clause)
        counted = counted.group_by(*_GROUP).order_by(number.desc(), *_GROUP).limit(limit)
        return [GroupCount((row[0], row[1], row[2]), *row[3:]) for row in self._ask(counted)]

    def samples(self, pks: Sequence[int]) -> Mapping[int, tuple[str, str]]:
        """See the port."""
        return {
            pk: (name, message) for pk, name, message in self._ask(sa.select(_c.id, _c.letter_id, _c.message).where(_c.id.in_(list(pks))))
        }

    def names(self, rows: Rows, column: str) -> Iterable[tuple[str, str, str, str]]:
        """See the port."""
        chosen = (*_GROUP, _c[column])
        return [(row[0], row[1], row[2], row[3]) for row in self._ask(sa.select(*chosen).where(rows.clause).distinct().order_by(*chosen))]

    def hours(self, rows: Rows, since: float) -> Iterable[tuple[str, str, str, int, int]]:
        """See the port."""
        hour = self._hour().label("hour")
        counted = sa.select(*_GROUP, hour, sa.func.count(_c.id)).where(rows.and_(_c.died_at >= since).clause).group_by(*_GROUP, hour)
        return [(row[0], row[1], row[2], int(row[3]), row[4]) for row in self._ask(counted)]

    def _hour(self) -> Any:
        name = self._engine.dialect.name
        if name == "postgresql":
            return sa.func.floor(sa.extract("epoch", _c.died_at) / 3600)
        if name == "sqlite":
            return sa.cast(sa.func.strftime("%s", _c.died_at), sa.Integer) // 3600
        return sa.func.timestampdiff(sa.text("HOUR"), sa.text("'1970-01-01 00:00:00'"), _c.died_at)

    # -- changing ---------------------------------------------------------------------------------------------

    def mark(self, pk: int, *, old: str, new: str, now: float) -> bool:
        """See the port."""
        return self.change(Rows((_c.id == pk,)), old=old, new=new, now=now) > 0

    def change(self, rows: Rows, *, old: str, new: str, now: float) -> int:
        """See the port."""
        return self._do(sa.update(letter_table).where(self.only(rows, old).clause).values(state=new, changed_at=now))

    def present(self, dead_letter_queue: str, ids: Sequence[str]) -> Sequence[Any]:
        """See the port."""
        return self._ask(sa.select(*_PRESENT).where(_c.dead_letter_queue == dead_letter_queue, _c.letter_id.in_(list(ids))))

    def insert(self, values: Sequence[Mapping[str, Any]], *, again: Sequence[int], state: str, note: str, now: float) -> None:
        """See the port."""
        with self.atomic() as connection:
            if values:
                connection.execute(self._insert_unless_there(), [dict(row) for row in values])
            if again:
                found = sa.update(letter_table).where(_c.id.in_(list(again)))
                connection.execute(found.values(state=state, note=note, changed_at=now))

    def _insert_unless_there(self) -> Any:
        name = self._engine.dialect.name
        if name == "postgresql":
            return postgresql.insert(letter_table).on_conflict_do_nothing()
        if name == "sqlite":
            return sqlite.insert(letter_table).on_conflict_do_nothing()
        return sa.insert(letter_table).prefix_with("IGNORE")

    def taken(self, dead_letter_queue: str, took: Sequence[str], elsewhere: Sequence[str], *, note: str, now: float) -> None:
        """See the port."""
        of_queue = _c.dead_letter_queue == dead_letter_queue
        ours, theirs = (of_queue & _c.letter_id.in_(list(names)) for names in (took, elsewhere))
        with self.atomic() as connection:
            connection.execute(sa.update(letter_table).where(ours).values(taken_at=now))
            # a run beside this one, which read the letter before we took it, may have had the wrong idea
            connection.execute(sa.update(letter_table).where(ours, _c.note == note).values(note=""))
            connection.execute(sa.update(letter_table).where(theirs, _c.taken_at.is_(None)).values(note=note))

    def purge(self, *, before: float | None, keep: int | None, waiting: bool, dry_run: bool) -> int:
        """See the port."""
        rows = Rows(() if waiting else (_c.state != State.WAITING,))
        over = [] if before is None else [_c.archived_at < before]
        if keep is not None:
            newest = sa.select(_c.archived_at, _c.id).where(rows.clause).order_by(_c.archived_at.desc(), _c.id.desc())
            for archived_at, pk in self._ask(newest.limit(1).offset(keep)):
                over += [_c.archived_at < archived_at, (_c.archived_at == archived_at) & (_c.id <= pk)]
        doomed = rows.and_(sa.or_(sa.false(), *over))
        if dry_run:
            return self.count(doomed)
        oldest = sa.select(_c.id).where(doomed.clause).order_by(_c.archived_at, _c.id).limit(_CHUNK)
        deleted = 0
        while chunk := [pk for (pk,) in self._ask(oldest)]:
            deleted += self._do(sa.delete(letter_table).where(rows.and_(_c.id.in_(chunk)).clause))
        return deleted

    # -- the trail --------------------------------------------------------------------------------------------

    def begin(self, entry: Entry) -> Any:
        """See the port."""
        with self.atomic() as connection:
            return connection.execute(sa.insert(audit_table).values(vars(entry))).inserted_primary_key[0]

    def finish(self, name: Any, entry: Entry) -> None:
        """See the port."""
        changed = {"after": entry.after, "letters": entry.letters, "outcome": entry.outcome}
        self._do(sa.update(audit_table).where(audit_table.c.id == name).values(changed))

    def trail(self, limit: int) -> Sequence[Entry]:
        """See the port."""
        columns = [audit_table.c[field.name] for field in fields(Entry)]
        found = sa.select(*columns).order_by(audit_table.c.id.desc()).limit(limit)
        return [Entry(*row) for row in self._ask(found)]
