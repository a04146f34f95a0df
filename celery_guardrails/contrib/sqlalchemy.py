"""The store in a database that SQLAlchemy knows, and tasks that commit together with their completion.

    guardrails_store = "sqlalchemy+postgresql+psycopg://user@host/shop"

    @guarded_task(key="charge:{order_id}", atomic=True)
    def charge(order_id):
        session().add(Charge(order_id=order_id))        # no commit: it comes with the completion record

With sessions of your own (a ``scoped_session``, ``db.session`` of Flask-SQLAlchemy, a function): ``use_session(guardrails, db.session)``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import sqlalchemy as sa
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import event
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from celery_guardrails.errors import GuardrailsConfigError, GuardrailsError, StoreUnavailable
from celery_guardrails.integration.app import Guardrails
from celery_guardrails.stores.sql import DIALECTS, TABLE, Answer, SqlStore, SqlTransaction

__all__ = ["SQLAlchemyStore", "metadata", "record_table", "session", "use_session"]

#: Holds the one table, for Alembic: ``target_metadata = [Base.metadata, metadata]``.
metadata = sa.MetaData()
_LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
#: The table of records; made on first use where it does not exist.
record_table = sa.Table(
    TABLE,
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("namespace", sa.String(200), nullable=False),
    sa.Column("key_text", _LONG_TEXT, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Column("claimed_us", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("task_id", sa.String(255), nullable=False),
    sa.Column("content_type", sa.String(100), nullable=False),
    sa.Column("content_encoding", sa.String(40), nullable=False),
    sa.Column("data", sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"), nullable=False),
    sa.Column("steps", _LONG_TEXT, nullable=False),
)

#: Seconds before the one repetition.
_PAUSE = 0.05
_ALIASES = {"mariadb": "mysql"}
_inside: ContextVar[Session | None] = ContextVar("celery_guardrails_session", default=None)


def session() -> Session:
    """Return the session of the task that runs with ``atomic``; what is done in it commits with the task's completion.

    Raises:
        GuardrailsError: outside such a task.
    """
    found = _inside.get()
    if found is None:
        raise GuardrailsError("session() is only known inside a guarded task with atomic=True and a sqlalchemy+… store")
    return found


def use_session(guardrails: Guardrails, source: Callable[[], Session]) -> None:
    """Run tasks with ``atomic`` in sessions of the project's own.

    Args:
        guardrails: of the Celery app.
        source: returns the session of the running task: a ``scoped_session`` is one, ``db.session`` of Flask-SQLAlchemy
            as well. Its database must be the store's.
    """

    def hook(store: Any) -> None:
        if isinstance(store, SQLAlchemyStore):
            store.source = source

    guardrails.on_store(hook)


class SQLAlchemyStore(SqlStore):
    """Records in the table :data:`record_table`.

    Args:
        url: of SQLAlchemy.
        namespace: of the app.
        memory: seconds that a record is kept while its key is not completed.
    """

    #: Where sessions come from; None: they are made here.
    source: Callable[[], Session] | None = None

    def __init__(self, url: str, *, namespace: str, memory: float = 86400.0) -> None:
        parsed = make_url(url)
        name = _ALIASES.get(parsed.get_backend_name(), parsed.get_backend_name())
        if name not in DIALECTS:
            raise ValueError(f"no store for the database {name!r}; allowed are {', '.join(sorted(DIALECTS))}")
        super().__init__(DIALECTS[name], namespace=namespace, memory=memory)
        #: A database in memory is another one in every process.
        self.one_process_only = name == "sqlite" and parsed.database in (None, "", ":memory:")
        self._engine = sa.create_engine(parsed)
        self._statements = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._made = False
        self._lock = threading.Lock()

    @classmethod
    def from_url(cls, url: str, *, namespace: str, memory: float = 86400.0) -> SQLAlchemyStore:
        """Connect lazily to ``sqlalchemy+DIALECT://…``; what follows the first ``+`` is SQLAlchemy's own URL."""
        try:
            return cls(url.partition("+")[2], namespace=namespace, memory=memory)
        except (ArgumentError, NoSuchModuleError, ImportError) as exc:
            raise ValueError(f"SQLAlchemy says: {exc}") from exc

    def close(self) -> None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        self._engine.dispose()

    # -- transactions -----------------------------------------------------------------------------------------

    def transaction(self, database: str | None) -> AbstractContextManager[SqlTransaction]:
        """See :class:`~celery_guardrails.ports.TransactionalStore`.

        The body must not commit: that would let its effects stand without their completion. Savepoints are its own.
        """
        if database is not None:
            raise GuardrailsConfigError(f"atomic = {database!r}: with a sqlalchemy+… store only atomic=True is allowed")
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[SqlTransaction]:
        own = self.source is None
        current = Session(self._engine) if self.source is None else self.source()
        self._same_database(current)
        self._make_table()
        token = _inside.set(current)
        event.listen(current, "before_commit", _refuse_commit)
        try:
            if self.dialect.own_writer:
                # SQLite lets a reader become a writer only if nobody wrote since, and fails at once otherwise. Who begins as a
                # writer waits.
                _run(current.connection(), f"DELETE FROM {TABLE} WHERE id = ''", {})  # noqa: S608 - a constant
            yield SqlTransaction(self, lambda statement, parameters: _run_within(current, statement, parameters))
            event.remove(current, "before_commit", _refuse_commit)
            current.commit()
        except BaseException as exc:
            if event.contains(current, "before_commit", _refuse_commit):
                event.remove(current, "before_commit", _refuse_commit)
            if isinstance(exc, SoftTimeLimitExceeded):
                current.invalidate()  # it may have struck in the middle of an answer
            current.rollback()
            raise
        finally:
            _inside.reset(token)
            if own:
                current.close()

    def _same_database(self, current: Session) -> None:
        mine, theirs = self._engine.url, current.get_bind().engine.url
        if (mine.get_backend_name(), mine.database) != (theirs.get_backend_name(), theirs.database):
            raise GuardrailsConfigError(
                f"atomic = True: the session's database is {theirs!r} and guardrails_store is {mine!r}: they must be the same one"
            )

    # -- statements -------------------------------------------------------------------------------------------

    def _execute(self, statement: str, parameters: Mapping[str, Any]) -> Answer:
        current = _inside.get() if self.dialect.own_writer else None
        if current is not None:
            return _run_within(current, statement, parameters)
        try:
            return self._once(statement, parameters)
        except (SQLAlchemyError, OSError):
            time.sleep(_PAUSE)  # a server that was restarted left us with dead connections; every step may be repeated
        try:
            return self._once(statement, parameters)
        except (SQLAlchemyError, OSError) as exc:
            reason = exc.orig if isinstance(exc, DBAPIError) else exc
            raise StoreUnavailable(f"guardrails_store: {reason!r}") from exc

    def _once(self, statement: str, parameters: Mapping[str, Any]) -> Answer:
        self._make_table()
        with self._statements.connect() as connection:
            try:
                return _run(connection, statement, parameters)
            except SQLAlchemyError:
                raise
            except BaseException:
                # A soft time limit may strike anywhere: an answer that nobody has read must not be the next statement's.
                connection.invalidate()
                raise

    def _make_table(self) -> None:
        if self._made:
            return
        with self._lock:
            try:
                metadata.create_all(self._engine)
            except DBAPIError:  # another process was quicker
                if not sa.inspect(self._engine).has_table(TABLE):
                    raise
            self._made = True


def _refuse_commit(current: Session) -> None:
    if not current.in_nested_transaction():
        raise GuardrailsError(
            "session.commit() in a task with atomic=True: the transaction commits when the task has returned, together with its "
            "completion record; leave the commit out, or use session.begin_nested()"
        )


def _run_within(current: Session, statement: str, parameters: Mapping[str, Any]) -> Answer:
    current.flush()  # what the body has left to write fails here, as the body's own error
    return _run(current.connection(), statement, parameters)


def _run(connection: sa.Connection, statement: str, parameters: Mapping[str, Any]) -> Answer:
    result = connection.execute(_text(statement), dict(parameters))
    if result.returns_rows:
        return Answer([tuple(row) for row in result], 0)
    return Answer((), result.rowcount)


_texts: dict[str, Any] = {}


def _text(statement: str) -> Any:
    """Return a parsed statement; there are few, but for those with a number of leases in them."""
    found = _texts.get(statement)
    if found is None:
        if len(_texts) > 500:
            _texts.clear()
        found = _texts[statement] = sa.text(statement)
    return found
