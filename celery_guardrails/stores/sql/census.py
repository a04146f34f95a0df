"""Records counted by their state, a stretch of the table at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...policy.lease import RecordState
from ...policy.suspicion import QUARANTINE
from . import table
from .dialects import Dialect
from .table import TABLE

__all__ = ["Answer", "Execute", "count_records"]

#: Records counted by one statement.
_STRIDE = 2000


@dataclass(frozen=True)
class Answer:
    """What a statement gave.

    Args:
        rows: of a query.
        count: rows that were changed.
    """

    rows: Sequence[Sequence[Any]] = ()
    count: int = 0


#: Runs one statement; parameters are written ``:name``.
Execute = Callable[[str, Mapping[str, Any]], Answer]


def count_records(execute: Execute, dialect: Dialect, namespace: str) -> Iterator[Mapping[RecordState, int]]:
    """Yield how many live records of users' keys are in each state; along the primary key, so that each statement is short.

    Raises:
        StoreUnavailable: the database did not answer.
    """
    # what is ours begins with a character that the table writes as two (:func:`.table.key_text`)
    names = {"namespace": table.namespace_text(namespace), "own": table.key_text("\0"), "lane": QUARANTINE[:1]}
    after, going = "", True
    while going:
        rows = execute(
            f"SELECT state, passed, COUNT(*), MAX(id) FROM (SELECT id, state, CASE WHEN expires_us <= {dialect.now} "
            "OR SUBSTR(key_text, 1, 2) = :own OR SUBSTR(key_text, 1, 1) = :lane THEN 1 ELSE 0 END AS passed "
            f"FROM {TABLE} WHERE namespace = :namespace AND id > :after ORDER BY id LIMIT {_STRIDE}) stride GROUP BY state, passed",
            {**names, "after": after},
        ).rows
        yield {table.STATES[int(state)]: int(count) for state, passed, count, _ in rows if not int(passed)}
        going = sum(int(count) for _, _, count, _ in rows) >= _STRIDE
        after = max((str(last) for *_, last in rows), default="")
