"""One dead letter, as an operator meets it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

from ..policy.deadletter import DeathCertificate, error_fingerprint
from ..policy.delivery import DEAD_LETTER_HEADER, TRAVEL_HEADER, RawMessage, Travel
from .decoder import Decoder, Payload
from .redaction import HIDDEN, Redactor, hide_secrets
from .tasks import Names, no_names

__all__ = ["DeadLetter", "digest_of", "read_letter"]

#: Replaying these only makes them die again, until somebody has mended what reads them: they want to be asked for by name.
HOPELESS = ("undecodable", "invalid")
#: Headers that an identifier is made of, besides the body; no others, since a browser's own visits change some (``x-delivery-count``).
_IDENTIFYING = ("id", "task", "retries", DEAD_LETTER_HEADER, TRAVEL_HEADER, "x-death")


@dataclass(frozen=True)
class DeadLetter:
    """A message found in a dead letter queue.

    Args:
        id: short name, the same each time the queue is looked through and no other letter's in that queue.
        certificate: ours, or one put together from the broker's ``x-death`` header (reason ``"broker"``).
        message: byte for byte.
        dead_letter_queue: it lies in.
        decoder: reads the arguments when somebody asks for them.
        place: it lies in: ``"queue"`` or ``"archive"``.
        state: ``"waiting"``; in the archive also ``"replayed"`` and ``"discarded"``.
        redact: what of the arguments and of the error may be shown.
        names: finds the names of positional arguments, by which they are redacted as well.
    """

    id: str
    certificate: DeathCertificate
    message: RawMessage
    dead_letter_queue: str
    decoder: Decoder = field(repr=False, compare=False)
    redact: Redactor = field(default=hide_secrets, repr=False, compare=False)
    place: str = field(default="queue", compare=False)
    state: str = field(default="waiting", compare=False)
    names: Names = field(default=no_names, repr=False, compare=False)

    @property
    def task(self) -> str:
        """Registered name of the task, or ""."""
        return self.certificate.task

    @property
    def task_id(self) -> str:
        """Celery's id, or ""."""
        return self.certificate.task_id

    @property
    def key(self) -> str | None:
        """The idempotency key; the task id where the task has none."""
        return self.certificate.key or self.travel.key or self.task_id or None

    @property
    def reason(self) -> str:
        """Why it is dead."""
        return self.certificate.reason

    @property
    def queue(self) -> str:
        """The task queue it comes from."""
        return self.certificate.queue

    @property
    def died_at(self) -> float | None:
        """Unix time in seconds of its death, or None where nobody wrote it down."""
        return self.certificate.last_seen

    @property
    def replays(self) -> int:
        """Times it has been replayed before."""
        return max(self.certificate.replays, self.travel.replays)

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.message.body)

    @cached_property
    def travel(self) -> Travel:
        """Counters that came with the message."""
        return Travel.from_headers(self.message.headers)

    @cached_property
    def payload(self) -> Payload:
        """The arguments as they are, not redacted; decoded on first use."""
        return self.decoder(self.message)

    @property
    def hopeless(self) -> bool:
        """Whether a replay can only fail again: nobody could read it, or it is no task message at all."""
        return self.reason in HOPELESS or not (self.task and self.task_id)

    def shown_payload(self) -> Payload:
        """Return the arguments as they may be shown; positional ones by their names, where the app knows these."""
        payload = self.payload
        named = dict(zip(self.names(self.task), payload.args, strict=False))
        shown = self.redact(named)
        args = [*(shown.get(name, HIDDEN) for name in named), *self.redact(list(payload.args[len(named) :]))]
        return replace(payload, args=tuple(args), kwargs=dict(self.redact(dict(payload.kwargs))))

    @property
    def shown_message(self) -> str:
        """The error's message as it may be shown."""
        return str(self.redact(self.certificate.message))


def read_letter(
    message: RawMessage,
    *,
    queue: str,
    dead_letter_queue: str,
    decoder: Decoder,
    redact: Redactor = hide_secrets,
    names: Names = no_names,
) -> DeadLetter:
    """Return what is known of a message in a dead letter queue, whoever put it there.

    Args:
        message: as found.
        queue: the task queue that this dead letter queue belongs to: the origin where nothing else says it.
        dead_letter_queue: it was found in.
        decoder: reads its arguments, asked now only where no header names the task.
        redact: what of the arguments and of the error may be shown.
        names: finds the names of positional arguments.
    """
    certificate = DeathCertificate.from_header(message.headers.get(DEAD_LETTER_HEADER))
    certificate = _from_headers(message, queue) if certificate is None else _trusted(certificate, queue)
    history = Travel.from_headers(message.headers).history
    if history:
        certificate = replace(certificate, history=history)
    if not certificate.task and not certificate.task_id and certificate.reason not in HOPELESS:
        payload = decoder(message)
        certificate = replace(certificate, task=payload.task, task_id=payload.task_id)
    return DeadLetter(
        id=_identifier(message, certificate.task_id, dead_letter_queue),
        certificate=certificate,
        message=message,
        dead_letter_queue=dead_letter_queue,
        decoder=decoder,
        redact=redact,
        names=names,
    )


def _trusted(certificate: DeathCertificate, queue: str) -> DeathCertificate:
    """Mend fields that another program may have spoiled."""
    key = certificate.key
    return replace(
        certificate,
        key=key if isinstance(key, str) and key else None,
        first_seen=_unix(certificate.first_seen),
        last_seen=_unix(certificate.last_seen),
        queue=certificate.queue or queue,
        replays=max(0, int(certificate.replays)),
    )


def _from_headers(message: RawMessage, queue: str) -> DeathCertificate:
    headers = message.headers
    travel = Travel.from_headers(headers)
    exchange, routing_key = travel.origin or ("", "")
    known = DeathCertificate(
        reason="broker",
        task=_text(headers.get("task")),
        task_id=_text(headers.get("id")),
        key=travel.key,
        message="another program put it here: it has no header of ours and none of the broker's",
        attempts=travel.attempts,
        first_seen=travel.first,
        exchange=exchange,
        routing_key=routing_key,
        queue=queue,
        replays=travel.replays,
    )
    death = _death(headers.get("x-death"), queue)
    if death is None:
        return known
    cause, died_in = _text(death.get("reason")) or "unknown", _text(death.get("queue"))
    keys = death.get("routing-keys")
    return replace(
        known,
        error=f"broker.{cause}",
        message=f"the broker took it out of {died_in or 'a queue without a name'}: {cause}",
        # a queue whose messages expire is another matter than the next one's
        fingerprint=error_fingerprint(f"broker.{cause}:{died_in or queue}", ""),
        last_seen=_unix(death.get("time")),
        exchange=exchange or _text(death.get("exchange")),
        routing_key=routing_key or (_text(keys[0]) if isinstance(keys, (list, tuple)) and keys else ""),
    )


def _death(header: object, queue: str) -> Mapping[str, Any] | None:
    """Return the entry of ``x-death`` that tells of the death itself.

    The newest comes first, but a task that waited in a delay queue has an entry ("expired") for each wait as well:
    so the entry about the task queue counts before any other.
    """
    entries = [entry for entry in header if isinstance(entry, Mapping)] if isinstance(header, (list, tuple)) else []
    for entry in entries:
        if entry.get("queue") == queue:
            return entry
    return entries[0] if entries else None


def _identifier(message: RawMessage, task_id: str, dead_letter_queue: str) -> str:
    digest = digest_of(message, dead_letter_queue)
    head = re.sub(r"[^0-9A-Za-z]", "", task_id)[:8].lower()
    return f"{head}-{digest[:8]}" if head else digest


def digest_of(message: RawMessage, dead_letter_queue: str) -> str:
    """Return 16 hex digits that no other letter in its queue has, unless it is the same byte for byte."""
    digest = hashlib.blake2b(digest_size=8)
    parts = [dead_letter_queue, message.content_type, message.content_encoding, message.properties.get("correlation_id")]
    headers = {name: message.headers[name] for name in _IDENTIFYING if name in message.headers}
    digest.update(json.dumps([parts, headers], sort_keys=True, default=str).encode())
    digest.update(message.body)
    return digest.hexdigest()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _unix(value: object) -> float | None:
    if isinstance(value, datetime):  # amqp hands timestamps out as naive UTC
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 253402300800:
        return float(value)
    return None
