"""Dead letters as rows of the archive, and back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from django.conf import settings
from django.utils.timezone import get_default_timezone, make_aware, make_naive

from celery_guardrails.dead_letters.decoder import Decoder
from celery_guardrails.dead_letters.letter import DeadLetter, read_letter
from celery_guardrails.dead_letters.redaction import Redactor, hide_secrets
from celery_guardrails.dead_letters.tagged import dumps, loads
from celery_guardrails.policy.delivery import RawMessage

from .models import ArchivedLetter

__all__ = ["letter_of", "moment_of", "row_of", "unix_of"]

_INT_LIMIT = 2**31 - 1


def row_of(letter: DeadLetter, *, now: float) -> ArchivedLetter:
    """Return a letter as a row that is not saved yet.

    Args:
        letter: found in a dead letter queue.
        now: unix time in seconds.

    Raises:
        DeadLetterError: a header is of a type that cannot be kept.
    """
    certificate, message = letter.certificate, letter.message
    return ArchivedLetter(
        letter_id=letter.id,
        dead_letter_queue=letter.dead_letter_queue,
        queue=_cut(letter.queue),
        task=_cut(letter.task),
        task_id=_cut(letter.task_id),
        key=_clean(letter.key),
        reason=_cut(letter.reason, 32),
        error=_cut(certificate.error),
        message=_clean(certificate.message),
        fingerprint=_cut(certificate.fingerprint, 32),
        worker=_cut(certificate.worker),
        attempts=_count(certificate.attempts),
        crashes=_count(certificate.crashes),
        replays=_count(letter.replays),
        first_seen=moment_of(certificate.first_seen),
        died_at=moment_of(letter.died_at),
        archived_at=moment_of(now),
        changed_at=moment_of(now),
        body=bytes(message.body),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        exchange=message.exchange or "",
        routing_key=message.routing_key or "",
        headers=dumps(message.headers),
        properties=dumps(message.properties),
        certificate=dumps(certificate.to_header()),
    )


def letter_of(row: ArchivedLetter, *, decoder: Decoder, redact: Redactor = hide_secrets) -> DeadLetter:
    """Return the dead letter that a row was made of."""
    message = RawMessage(
        body=bytes(row.body),
        content_type=row.content_type,
        content_encoding=row.content_encoding,
        headers=loads(row.headers),
        properties=loads(row.properties),
        exchange=row.exchange,
        routing_key=row.routing_key,
    )
    letter = read_letter(message, queue=row.queue, dead_letter_queue=row.dead_letter_queue, decoder=decoder, redact=redact)
    return replace(letter, id=row.letter_id)


def moment_of(seconds: float | None) -> datetime | None:
    """Return unix time in seconds as this project's databases take it; None where it is no time that a database can hold."""
    if seconds is None or seconds < 0:
        return None
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return None
    return moment if settings.USE_TZ else _naive(moment)


def unix_of(moment: datetime | None) -> float | None:
    """Return unix time in seconds of what a database gave."""
    if moment is None:
        return None
    aware: datetime = moment if moment.tzinfo else make_aware(moment, get_default_timezone())
    return aware.timestamp()


def _naive(moment: datetime) -> datetime:
    naive: datetime = make_naive(moment, get_default_timezone())
    return naive


def _clean(value: Any) -> str:
    """Return a text that every database takes: PostgreSQL knows no zero bytes, none knows half surrogates."""
    return str(value or "").replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _cut(value: Any, limit: int = 255) -> str:
    return _clean(value)[:limit]


def _count(value: int) -> int:
    return max(0, min(value, _INT_LIMIT))
