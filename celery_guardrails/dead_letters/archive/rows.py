"""Dead letters as rows of the archive, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...policy.delivery import RawMessage
from ..decoder import Decoder
from ..letter import DeadLetter, read_letter
from ..redaction import Redactor, hide_secrets
from ..tagged import dumps, loads
from ..tasks import Names, no_names
from .table import Row, State

__all__ = ["letter_of", "message_of", "values_of"]

_INT_LIMIT = 2**31 - 1


def values_of(letter: DeadLetter, *, now: float, state: str = State.WAITING) -> dict[str, Any]:
    """Return a letter as values by column, not yet in any table; times are unix time in seconds.

    The message is kept byte for byte; the other columns are read from it, cut to their length, to find it by.

    Args:
        letter: found in a dead letter queue.
        now: unix time in seconds.
        state: of the row.

    Raises:
        DeadLetterError: a header is of a type that cannot be kept.
    """
    certificate, message = letter.certificate, letter.message
    return {
        "letter_id": letter.id,
        "dead_letter_queue": letter.dead_letter_queue,
        "queue": _cut(letter.queue),
        "task": _cut(letter.task),
        "task_id": _cut(letter.task_id),
        "key": _clean(letter.key),
        "reason": _cut(letter.reason, 32),
        "error": _cut(certificate.error),
        "message": _clean(certificate.message),
        "fingerprint": _cut(certificate.fingerprint, 32),
        "worker": _cut(certificate.worker),
        "attempts": _count(certificate.attempts),
        "crashes": _count(certificate.crashes),
        "replays": _count(letter.replays),
        "first_seen": certificate.first_seen,
        "died_at": letter.died_at,
        "archived_at": now,
        "state": state,
        "changed_at": now,
        "note": "",
        "body": bytes(message.body),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "exchange": message.exchange or "",
        "routing_key": message.routing_key or "",
        "headers": dumps(message.headers),
        "properties": dumps(message.properties),
        "certificate": dumps(certificate.to_header()),
    }


def message_of(row: Row) -> RawMessage:
    """Return the message that a row keeps."""
    return RawMessage(
        body=bytes(row.body),
        content_type=row.content_type,
        content_encoding=row.content_encoding,
        headers=loads(row.headers),
        properties=loads(row.properties),
        exchange=row.exchange,
        routing_key=row.routing_key,
    )


def letter_of(row: Row, *, decoder: Decoder, redact: Redactor = hide_secrets, names: Names = no_names) -> DeadLetter:
    """Return the dead letter that a row was made of."""
    letter = read_letter(
        message_of(row), queue=row.queue, dead_letter_queue=row.dead_letter_queue, decoder=decoder, redact=redact, names=names
    )
    return replace(letter, id=row.letter_id, place="archive", state=row.state)


def _clean(value: Any) -> str:
    """Return a text that every database takes: PostgreSQL knows no zero bytes, none knows half surrogates."""
    return str(value or "").replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _cut(value: Any, limit: int = 255) -> str:
    return _clean(value)[:limit]


def _count(value: int) -> int:
    return max(0, min(value, _INT_LIMIT))
