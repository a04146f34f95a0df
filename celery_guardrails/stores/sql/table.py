"""The table, and a record as a row of it.

============== ============================================================================================================
id             40 hex digits: BLAKE2b-160 of namespace and key. Keys themselves are no primary key: a collation may take
               two for one, and an index has a limit of length.
namespace      of the app, up to 200 characters
key_text       the key, for people
state          0 idle, 1 leased, 2 completed
fingerprint    of the arguments, or empty
fence          fencing token of the last claim
attempts       charged
crashes        holders that vanished; 1,000 for each that another may have taken with it, and 1,000,000 while others may run beside
               the holder (:class:`~celery_guardrails.policy.suspicion.Losses`)
holder, owner  of the lease; who completed it
until_us       end of the lease, microseconds since 1970 by the database's clock
claimed_us     last claim, or completion
expires_us     from then on the record counts for nothing and may be deleted
version        rises with every write: what was read is written back only if it is still the same
task_id, content_type, content_encoding, data
               the result; an empty content_type where there is none
steps          recovery points: JSON, name to content type, content encoding, base64; empty where there are none
============== ============================================================================================================
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ...policy.lease import Record, RecordState, StoredResult
from ...policy.suspicion import Losses

__all__ = ["NAMES", "STATES", "TABLE", "Row", "identifier", "key_text", "namespace_text", "values"]

TABLE = "guardrails_record"
#: The columns that change.
NAMES = (
    "state",
    "fingerprint",
    "fence",
    "attempts",
    "crashes",
    "holder",
    "owner",
    "until_us",
    "claimed_us",
    "expires_us",
    "version",
    "task_id",
    "content_type",
    "content_encoding",
    "data",
    "steps",
)
#: By the number that stands in ``state``.
STATES = (RecordState.IDLE, RecordState.LEASED, RecordState.COMPLETED)


@dataclass(frozen=True)
class Row:
    """What was read.

    Args:
        record: as the policy knows it.
        version: at which it was read.
        expires: unix time in seconds.
    """

    record: Record
    version: int
    expires: float

    @classmethod
    def read(cls, values: Sequence[Any]) -> Row:
        """Take the columns :data:`NAMES`."""
        row = dict(zip(NAMES, values, strict=True))
        state = STATES[row["state"]]
        record = Record(
            state=state,
            fingerprint=row["fingerprint"] or None,
            fence=int(row["fence"]),
            attempts=row["attempts"],
            **Losses.unpack(int(row["crashes"]))._asdict(),
            holder=row["holder"],
            until=row["until_us"] / 1e6,
            claimed_at=row["claimed_us"] / 1e6,
            owner=row["owner"],
            result=_result(row) if state is RecordState.COMPLETED else None,
            steps=_read_steps(row["steps"]),
        )
        return cls(record, int(row["version"]), row["expires_us"] / 1e6)


def values(record: Record, *, expires: float, version: int) -> dict[str, Any]:
    """Return the columns of a record."""
    result = record.result or StoredResult()
    return {
        "state": STATES.index(record.state),
        "fingerprint": record.fingerprint or "",
        "fence": record.fence,
        "attempts": record.attempts,
        "crashes": record.losses.pack(),
        "holder": record.holder,
        "owner": _plain(record.owner)[:255],
        "until_us": int(record.until * 1e6),
        "claimed_us": int(record.claimed_at * 1e6),
        "expires_us": int(expires * 1e6),
        "version": version,
        **result_values(result),
        "steps": _written_steps(record.steps),
    }


def result_values(result: StoredResult) -> dict[str, Any]:
    """Return the columns of a result."""
    return {
        "task_id": _plain(result.task_id)[:255],
        "content_type": result.content_type or "",
        "content_encoding": result.content_encoding or "",
        "data": result.data,
    }


def identifier(namespace: str, key: str) -> str:
    """Return the primary key."""
    return blake2b(f"{namespace}\0{key}".encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def key_text(key: str) -> str:
    """Return a key as every database takes it."""
    return _plain(key)


def key_of(text: str) -> str:
    """Return the key that a row tells; one that begins with a NUL is the package's own."""
    return "\0" + text[2:] if text.startswith("\\0") else text


def namespace_text(namespace: str) -> str:
    """Return a namespace as it fits its column."""
    return _plain(namespace)[:200]


def _plain(text: str) -> str:
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _result(row: Mapping[str, Any]) -> StoredResult:
    return StoredResult(row["content_type"] or None, row["content_encoding"] or None, bytes(row["data"]), row["task_id"])


def _read_steps(text: str) -> dict[str, StoredResult]:
    if not text:
        return {}
    return {name: StoredResult(kind, encoding, base64.b64decode(data)) for name, (kind, encoding, data) in json.loads(text).items()}


def _written_steps(steps: Mapping[str, StoredResult]) -> str:
    if not steps:
        return ""
    return json.dumps(
        {name: (step.content_type, step.content_encoding, base64.b64encode(step.data).decode()) for name, step in steps.items()}
    )
