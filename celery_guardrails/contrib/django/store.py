"""The store in a database of the Django project, and tasks that commit together with their completion.

``CELERY_GUARDRAILS_STORE = "django://default"``; the task says ``atomic=True``: what its body writes through the ORM
commits with the completion record, or not at all.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, InternalError, OperationalError, ProgrammingError, connections, transaction
from django.utils.connection import ConnectionDoesNotExist

from celery_guardrails.errors import GuardrailsConfigError, StoreUnavailable
from celery_guardrails.stores.sql import DIALECTS, TABLE, Answer, SqlStore, SqlTransaction

__all__ = ["DjangoStore"]

APP = "celery_guardrails.contrib.django"
#: What a second try on a new connection may mend. InternalError: PyMySQL says so of an answer to an earlier question, and
#: psycopg of a server that has become a replica.
_PASSING = (OperationalError, InterfaceError, InternalError)
#: Changes nothing.
_BECOME_WRITER = f"DELETE FROM {TABLE} WHERE id = ''"
_MISSING = ("no such table", "doesn't exist", "does not exist", "no such column", "unknown column", "has no column")


class _OfThread(threading.local):
    """What a thread has of a store: its second connection, and whether a task's transaction is going on."""

    def __init__(self) -> None:
        self.second: Any = None
        self.inside = False


class DjangoStore(SqlStore):
    """Records in the table of :class:`~celery_guardrails.contrib.django.models.IdempotencyRecord`.

    Statements run on Django's own connection of this thread while it is in autocommit. Inside of an atomic block they
    run on a second one: what a recovery point keeps must survive the block's rollback, and its row lock must not last
    until the block's commit. SQLite has one writer, so there everything is done on the first.

    Args:
        alias: of the database in ``DATABASES``.
        namespace: of the app.
        memory: seconds that a record is kept while its key is not completed.
    """

    def __init__(self, alias: str, *, namespace: str, memory: float = 86400.0) -> None:
        try:
            connection = connections[alias]
            installed = apps.is_installed(APP)
        except (ImproperlyConfigured, AppRegistryNotReady) as exc:
            raise ValueError(f"Django is not set up (set DJANGO_SETTINGS_MODULE, or call django.setup() first): {exc}") from exc
        except ConnectionDoesNotExist:
            raise ValueError(f"no {alias!r} in DATABASES; allowed are {', '.join(map(repr, connections))}") from None
        if not installed:
            raise ValueError(f"{APP!r} has the table of the records: put it into INSTALLED_APPS and run `python manage.py migrate`")
        if connection.vendor not in DIALECTS:
            raise ValueError(f"no store for the database {connection.vendor!r}; allowed are {', '.join(sorted(DIALECTS))}")
        super().__init__(DIALECTS[connection.vendor], namespace=namespace, memory=memory)
        self.alias = alias
        #: A database in memory is another one in every process.
        self.one_process_only = connection.vendor == "sqlite" and connection.is_in_memory_db()
        self._mine = _OfThread()
        self._seconds: weakref.WeakSet[Any] = weakref.WeakSet()

    @classmethod
    def from_url(cls, url: str, *, namespace: str, memory: float = 86400.0) -> DjangoStore:
        """Use the database that ``django://ALIAS`` names."""
        parts = urlsplit(url)
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("django:// takes the alias of a database and nothing else, as in django://default")
        return cls(parts.netloc or "default", namespace=namespace, memory=memory)

    def close(self) -> None:
        """Close the second connections; the first ones are Django's."""
        for connection in list(self._seconds):
            connection.close()

    # -- statements -------------------------------------------------------------------------------------------

    def _execute(self, statement: str, parameters: Mapping[str, Any]) -> Answer:
        try:
            return self._once(statement, parameters)
        except _PASSING as exc:
            # A connection may have died since it was last used. The statement may also have been carried out and its
            # answer lost: every operation of a store may be repeated by the same holder.
            if not self._mendable(exc):
                raise self._unavailable(exc) from exc
        except DatabaseError as exc:
            raise self._unavailable(exc) from exc
        try:
            return self._once(statement, parameters)
        except (DatabaseError, InterfaceError) as exc:
            raise self._unavailable(exc) from exc

    def _once(self, statement: str, parameters: Mapping[str, Any]) -> Answer:
        connection = self._connection()
        try:
            answer = _run(connection, statement, parameters)
        except BaseException as exc:
            # What was left half done (a soft time limit may strike anywhere) would be taken for the next one's answer.
            if not connection.in_atomic_block and not isinstance(exc, ProgrammingError):
                connection.close()
            raise
        if connection is self._mine.second and not self._mine.inside:
            connection.close_if_unusable_or_obsolete()  # as Django does with its own, by CONN_MAX_AGE
        return answer

    def _connection(self) -> Any:
        own = connections[self.alias]
        if self.dialect.own_writer or _autocommits(own):
            return own
        second = self._mine.second
        if second is None or second.settings_dict["NAME"] != own.settings_dict["NAME"]:  # a test run has databases of its own
            second = self._mine.second = own.copy()
            second.settings_dict["AUTOCOMMIT"] = True
            # the project's pool counts on one connection a thread
            second.settings_dict["OPTIONS"] = {name: value for name, value in second.settings_dict["OPTIONS"].items() if name != "pool"}
            second.inc_thread_sharing()  # to be closed by whoever closes the store
            self._seconds.add(second)
        return second

    def _mendable(self, exc: Exception) -> bool:
        return not (_misses_table(exc) or (self.dialect.own_writer and connections[self.alias].in_atomic_block))

    def _unavailable(self, exc: Exception) -> StoreUnavailable:
        named = f"guardrails_store = 'django://{self.alias}'"
        if _misses_table(exc):
            database = "" if self.alias == "default" else f" --database {self.alias}"
            return StoreUnavailable(f"{named}: no table {TABLE}, or an old one: run `python manage.py migrate{database}` ({exc})")
        return StoreUnavailable(f"{named}: {type(exc).__name__}: {exc}")

    # -- transactions -----------------------------------------------------------------------------------------

    def transaction(self, database: str | None) -> AbstractContextManager[SqlTransaction]:
        """See :class:`~celery_guardrails.ports.TransactionalStore`: ``transaction.atomic`` of the store's database."""
        if database not in (None, self.alias):
            raise GuardrailsConfigError(
                f"atomic = {database!r}: the completion is recorded in {self.alias!r} (guardrails_store = 'django://{self.alias}'), and "
                f"a transaction has one database: allowed are True and {self.alias!r}, or set guardrails_store to 'django://{database}'"
            )
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[SqlTransaction]:
        connection = connections[self.alias]
        if not _autocommits(connection):
            raise GuardrailsConfigError(
                f"atomic needs the database {self.alias!r} in autocommit, so that the task's transaction is the outermost one and its "
                "end is the commit: leave AUTOCOMMIT in DATABASES at True, and do not run the task inside of another atomic block"
            )
        self._mine.inside = True
        try:
            with transaction.atomic(using=self.alias):
                if self.dialect.own_writer:
                    # SQLite lets a reader become a writer only if nobody wrote since, and fails at once otherwise. Who
                    # begins as a writer waits.
                    _run(connection, _BECOME_WRITER, {})
                yield SqlTransaction(self, partial(_run, connection))
        finally:
            self._mine.inside = False
            if self._mine.second is not None:
                self._mine.second.close()


def _autocommits(connection: Any) -> bool:
    if connection.in_atomic_block:
        return False
    return bool(connection.autocommit if connection.connection is not None else connection.settings_dict["AUTOCOMMIT"])


def _run(connection: Any, statement: str, parameters: Mapping[str, Any]) -> Answer:
    with connection.cursor() as cursor:
        cursor.execute(_formatted(statement), dict(parameters))
        return Answer(cursor.fetchall() if cursor.description else (), cursor.rowcount)


@lru_cache(maxsize=512)
def _formatted(statement: str) -> str:
    """Return a statement with its parameters as Django wants them."""
    return re.sub(r":([a-z]\w*)", r"%(\1)s", statement.replace("%", "%%"))


def _misses_table(exc: Exception) -> bool:
    text = str(exc).lower()
    return isinstance(exc, (ProgrammingError, OperationalError)) and any(sign in text for sign in _MISSING)
