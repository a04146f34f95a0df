"""The store: read a record, let the policy change it, write it back if nobody was there meanwhile."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ...errors import StoreUnavailable
from ...policy import lease as transitions
from ...policy.lease import Claim, ClaimState, Record, RecordState, StoredResult
from ...policy.resource import Ask, Tell
from .. import STEPS_SECONDS
from . import table
from .census import Answer, Execute, count_records
from .dialects import Dialect
from .resources import SqlResources
from .table import NAMES, TABLE, Row

__all__ = ["Answer", "Execute", "SqlStore", "SqlTransaction"]

T = TypeVar("T")

#: Times that a record is read again because somebody wrote it in between.
_ROUNDS = 50
#: Leases renewed by one statement, and listed by one.
_BATCH = 200
_COLUMNS = ", ".join(NAMES)


class SqlStore(SqlResources, abc.ABC):
    """Leases and completion records in a table (:mod:`.table`); a subclass brings the connection.

    Every change is read, made by the pure functions of :mod:`celery_guardrails.policy.lease`, and written back on the
    condition that the row's version is still the one that was read. Only the ways that every task takes have
    statements of their own: the first claim of a key (one round trip on PostgreSQL), its completion, and renewal.

    Args:
        dialect: of the database.
        namespace: of the app.
        memory: seconds that a record is kept while its key is not completed.
    """

    #: Records that are over stay in the table until somebody deletes them.
    needs_pruning = True

    def __init__(self, dialect: Dialect, *, namespace: str, memory: float = 86400.0) -> None:
        self.dialect = dialect
        self._namespace = namespace
        self._memory = memory

    @abc.abstractmethod
    def _execute(self, statement: str, parameters: Mapping[str, Any]) -> Answer:
        """Run a statement in a transaction of its own.

        Raises:
            StoreUnavailable: the database does not answer, or refuses.
        """

    # -- one key ----------------------------------------------------------------------------------------------

    def claim(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        lease: float,
        owner: str = "",
        attempts: int = 0,
        beside: bool = False,
        ask: Ask | None = None,
    ) -> Claim:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        claim = self._claim(key, holder, fingerprint, lease, owner, attempts, beside)
        return claim if ask is None else self._enter(claim, ask, key=key, holder=holder, lease=lease)

    def _claim(self, key: str, holder: str, fingerprint: str | None, lease: float, owner: str, attempts: int, beside: bool) -> Claim:
        def change(record: Record | None, now: float) -> tuple[Record | None, Claim, float]:
            taken, claim = transitions.claim(
                record, holder=holder, fingerprint=fingerprint, lease=lease, now=now, owner=owner, attempts=attempts, beside=beside
            )
            return (taken if claim.state is ClaimState.CLAIMED else record), claim, self._kept(taken) + lease

        if self.dialect.insert_or_read is None:
            return self._change(key, change, afresh=True)
        blank = Record(RecordState.LEASED, fingerprint, attempts=attempts, holder=holder, owner=owner, beside=beside)
        parameters = {
            **self._named(key),
            **table.values(blank, expires=0, version=1),
            "lease_us": int(lease * 1e6),
            "kept_us": int((self._memory + lease) * 1e6),
        }
        for name in ("fence", "claimed_us", "until_us", "expires_us"):
            del parameters[name]
        rows = self._execute(self.dialect.insert_or_read, parameters).rows
        if not rows:  # somebody else's first claim was committed while ours was looking
            return self._change(key, change, afresh=True)
        now, fresh, *columns = rows[0]
        row = Row.read(columns)
        if fresh:
            return Claim(ClaimState.CLAIMED, fence=row.record.fence, attempts=attempts, now=now / 1e6)
        return self._change(key, change, (row, now / 1e6), afresh=True)

    def complete(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        fence: int,
        result: StoredResult,
        retention: float,
        tell: Tell | None = None,
    ) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        if tell is not None:
            self.tell(tell, holder=holder)
        return self._complete(self._execute, "", key, holder, fingerprint, fence, result, retention)

    def _complete(
        self,
        execute: Execute,
        lock: str,
        key: str,
        holder: str,
        fingerprint: str | None,
        fence: int,
        result: StoredResult,
        retention: float,
    ) -> bool:
        now = self.dialect.now
        statement = (
            f"UPDATE {TABLE} SET state = 2, fence = :fence, attempts = 0, crashes = 0, owner = '', until_us = 0, claimed_us = {now}, "
            f"expires_us = {now} + :retention_us, version = version + 1, task_id = :task_id, content_type = :content_type, "
            "content_encoding = :content_encoding, data = :data, steps = '' WHERE id = :id AND state = 1 AND holder = :holder"
        )
        parameters = {
            "id": table.identifier(self._namespace, key),
            "holder": holder,
            "fence": fence,
            "retention_us": int(retention * 1e6),
            **table.result_values(result),
        }
        if execute(statement, parameters).count:
            return True

        def change(record: Record | None, now: float) -> tuple[Record | None, bool, float]:
            done = transitions.complete(record, holder=holder, fingerprint=fingerprint, fence=fence, result=result, now=now)
            return (*done, retention)

        return self._change(key, change, execute=execute, lock=lock)

    def release(
        self, key: str, *, holder: str, attempts: int = 0, crashes: int = 0, drop: bool = False, tell: Tell | None = None
    ) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        if tell is not None:
            self.tell(tell, holder=holder)

        def change(record: Record | None, now: float) -> tuple[Record | None, Record | None, float]:
            left, done = transitions.release(record, holder=holder, attempts=attempts, crashes=crashes, drop=drop)
            return left, left if done else None, self._kept(left)

        return self._change(key, change)

    def reset(self, key: str, *, holder: str | None = None, tell: Tell | None = None) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        if tell is not None:
            self.tell(tell, holder=holder or "")

        def change(record: Record | None, now: float) -> tuple[Record | None, bool, float]:
            left, done = transitions.reset(record, holder=holder)
            return left, done, self._kept(left)

        return self._change(key, change)

    def save_step(self, key: str, *, holder: str, name: str, value: StoredResult) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""

        def change(record: Record | None, now: float) -> tuple[Record | None, bool, float]:
            kept, done = transitions.save_step(record, holder=holder, name=name, value=value)
            return kept, done, self._kept(kept) + (max(0.0, kept.until - now) if kept is not None else 0.0)

        return self._change(key, change)

    def break_lease(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""

        def change(record: Record | None, now: float) -> tuple[Record | None, Record | None, float]:
            left, done = transitions.break_lease(record)
            return left, record if done else None, self._kept(left)

        return self._change(key, change)

    def lookup(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        row, now = self._read(self._execute, key)
        return row.record if row is not None and row.expires > now else None

    def forget(self, key: str) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return self._change(key, lambda record, _: (None, record is not None, 0.0))

    # -- many keys --------------------------------------------------------------------------------------------

    def renew(self, leases: Iterable[tuple[str, str]], lease: float) -> list[bool]:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        wanted = [(table.identifier(self._namespace, key), holder) for key, holder in leases]
        answers: list[bool] = []
        for start in range(0, len(wanted), _BATCH):
            answers += self._renew(wanted[start : start + _BATCH], lease)
        return answers

    def _renew(self, wanted: list[tuple[str, str]], lease: float) -> list[bool]:
        pairs, names = _any_of(wanted)
        held = f"FROM {TABLE} WHERE state = 1 AND ({pairs})"
        free = {str(row[0]) for row in self._execute(f"SELECT id {held} {self.dialect.skip_locked}", names).rows}
        if free:
            # pairs, not a mapping: a key may be asked for by two holders, one of whom only waits for it
            self._extend([pair for pair in wanted if pair[0] in free], lease)
        if len(free) == len(set(wanted)):
            return [True] * len(wanted)
        # A task that commits just now has its row locked: it is still held, and to wait for it would hold up all others.
        found = {(str(row), holder) for row, holder in self._execute(f"SELECT id, holder {held}", names).rows}
        return [pair in found for pair in wanted]

    def _extend(self, wanted: list[tuple[str, str]], lease: float) -> None:
        now, kept = self.dialect.now, "CASE WHEN steps = '' THEN :memory_us ELSE :steps_us END"
        pairs, names = _any_of(wanted)
        names |= {
            "lease_us": int(lease * 1e6),
            "memory_us": int(self._memory * 1e6),
            "steps_us": int(max(self._memory, STEPS_SECONDS) * 1e6),
        }
        self._execute(
            f"UPDATE {TABLE} SET until_us = {now} + :lease_us, expires_us = {now} + :lease_us + {kept}, version = version + 1 "
            f"WHERE state = 1 AND ({pairs})",
            names,
        )

    def leases(self) -> Iterator[tuple[str, Record]]:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        after = ""
        while True:
            answer = self._execute(
                f"SELECT id, key_text, {_COLUMNS} FROM {TABLE} WHERE namespace = :namespace AND state = 1 AND id > :after "
                f"AND expires_us > {self.dialect.now} ORDER BY id LIMIT {_BATCH}",
                {"namespace": table.namespace_text(self._namespace), "after": after},
            )
            for row, key, *columns in answer.rows:
                after = str(row)
                yield table.key_of(str(key)), Row.read(columns).record
            if len(answer.rows) < _BATCH:
                return

    def census(self) -> Iterator[Mapping[RecordState, int]]:
        """See :class:`~celery_guardrails.ports.CountingStore`."""
        return count_records(self._execute, self.dialect, self._namespace)

    def prune(self, limit: int) -> int:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return self._execute(self.dialect.prune, {"namespace": table.namespace_text(self._namespace), "limit": limit}).count

    # -- the server -------------------------------------------------------------------------------------------

    def now(self) -> float:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return float(self._execute(f"SELECT {self.dialect.now}", {}).rows[0][0]) / 1e6

    def ping(self) -> None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`; it also misses the table."""
        self._execute(f"SELECT 1 FROM {TABLE} WHERE id = :id", {"id": ""})

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""

    # -- compare and swap -------------------------------------------------------------------------------------

    def _change(
        self,
        key: str,
        change: Callable[[Record | None, float], tuple[Record | None, T, float]],
        read: tuple[Row | None, float] | None = None,
        *,
        execute: Execute | None = None,
        lock: str = "",
        afresh: bool = False,
    ) -> T:
        """Carry a transition out.

        Args:
            key: idempotency key.
            change: record and the database's time → record, answer, seconds to keep the record.
            read: what has been read already.
            execute: runs the statements; by default each in a transaction of its own.
            lock: how to read the newest version of a row inside a transaction.
            afresh: a record whose time is over is an empty one that keeps its fence, not None.
        """
        run = execute or self._execute
        for _ in range(_ROUNDS):
            row, now = read or self._read(run, key, lock)
            read = None
            before = row.record if row is not None and row.expires > now else None
            if afresh and before is None and row is not None:
                before = Record(fence=row.record.fence)
            after, answer, seconds = change(before, now)
            if after is before:
                return answer
            if self._write(run, key, row, after, now + seconds):
                return answer
        raise StoreUnavailable(f"guardrails_store: the record of {key!r} was written by others {_ROUNDS} times while it was to be changed")

    def _read(self, execute: Execute, key: str, lock: str = "") -> tuple[Row | None, float]:
        # the join gives the database's time also where there is no record
        statement = f"SELECT {self.dialect.now}, {_COLUMNS} FROM {TABLE} WHERE id = :id {lock}"
        parameters = {"id": table.identifier(self._namespace, key)}
        if not lock:
            statement = (
                f"SELECT moment.us, {', '.join(f'r.{name}' for name in NAMES)} FROM (SELECT {self.dialect.now} AS us) moment "
                f"LEFT JOIN {TABLE} r ON r.id = :id"
            )
        rows = execute(statement, parameters).rows
        if not rows:
            return None, float(execute(f"SELECT {self.dialect.now}", {}).rows[0][0]) / 1e6
        now, *columns = rows[0]
        return (Row.read(columns) if columns[0] is not None else None), now / 1e6

    def _write(self, execute: Execute, key: str, row: Row | None, record: Record | None, expires: float) -> bool:
        named = self._named(key)
        if record is None:
            if row is None:
                return True
            return bool(
                execute(f"DELETE FROM {TABLE} WHERE id = :id AND version = :version", {"id": named["id"], "version": row.version}).count
            )
        if row is None:
            return bool(execute(self.dialect.insert, {**named, **table.values(record, expires=expires, version=1)}).count)
        changes = ", ".join(f"{name} = :{name}" for name in NAMES)
        parameters = table.values(record, expires=expires, version=row.version + 1)
        return bool(
            execute(
                f"UPDATE {TABLE} SET {changes} WHERE id = :id AND version = :read_version",
                {**parameters, "id": named["id"], "read_version": row.version},
            ).count
        )

    def _named(self, key: str) -> dict[str, Any]:
        return {
            "id": table.identifier(self._namespace, key),
            "namespace": table.namespace_text(self._namespace),
            "key_text": table.key_text(key),
        }

    def _kept(self, record: Record | None) -> float:
        return max(self._memory, STEPS_SECONDS) if record is not None and record.steps else self._memory


def _any_of(wanted: Sequence[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """Return the condition that a row is one of these, given as (identifier, holder), and its parameters."""
    names: dict[str, Any] = {}
    for number, (row, holder) in enumerate(wanted):
        names |= {f"id{number}": row, f"holder{number}": holder}
    return " OR ".join(f"(id = :id{number} AND holder = :holder{number})" for number in range(len(wanted))), names


class SqlTransaction:
    """A transaction that a task's body runs in: the completion is written on its connection.

    Args:
        store: whose records are in the same database.
        execute: runs a statement within the transaction.
    """

    def __init__(self, store: SqlStore, execute: Execute) -> None:
        self._store = store
        self._execute = execute

    def complete(self, key: str, *, holder: str, fingerprint: str | None, fence: int, result: StoredResult, retention: float) -> bool:
        """See :class:`~celery_guardrails.ports.Transaction`."""
        lock = self._store.dialect.lock
        return self._store._complete(self._execute, lock, key, holder, fingerprint, fence, result, retention)
