"""The header that says why a message is dead."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .delivery import Delivery
from .history import PastAttempt

__all__ = ["REASONS", "DeathCertificate", "ErrorReport", "certify", "error_fingerprint", "past_attempt"]

#: Every reason a message is dead for.
REASONS = (
    "permanent",
    "exhausted",
    "deadline",
    "poison",
    "undecodable",
    "unknown_task",
    "invalid",
    "conflict",
    "rejected",
    "broker",
)

#: Characters of a traceback that travel in the header: the tail, which names the cause. RabbitMQ refuses
#: headers beyond its frame_max (131,072 bytes by default).
TRACEBACK_LIMIT = 16_384
MESSAGE_LIMIT = 2_048


@dataclass(frozen=True)
class ErrorReport:
    """An exception as text: it may not be picklable, and the main process has none at all."""

    error: str = ""
    message: str = ""
    traceback: str = ""
    rule: str = ""


@dataclass(frozen=True)
class DeathCertificate:
    """The content of the ``guardrails`` header of a dead letter.

    Args:
        reason: one of :data:`REASONS`.
        task: registered name, or "" where unknown.
        task_id: Celery's id, or "" where unknown.
        key: idempotency key, or None.
        error: qualified class name of the exception.
        message: of the exception, at most 2,048 characters.
        traceback: text, its last 16,384 characters.
        fingerprint: of the error: class and frames, no line numbers and no literals.
        attempts: charged.
        crashes: workers lost.
        first_seen: unix time in seconds of the first publish.
        last_seen: unix time in seconds of the death.
        worker: node name.
        exchange: the original was published to.
        routing_key: the original was published with.
        queue: the original was consumed from.
        replays: times replayed before.
        history: the attempts before the last one. Not written here again: they stand in the letter's ``x-guardrails``, which
            came with the original, and are read from there.
    """

    reason: str
    task: str = ""
    task_id: str = ""
    key: str | None = None
    error: str = ""
    message: str = ""
    traceback: str = ""
    fingerprint: str = ""
    attempts: int = 0
    crashes: int = 0
    first_seen: float | None = None
    last_seen: float | None = None
    worker: str = ""
    exchange: str = ""
    routing_key: str = ""
    queue: str = ""
    replays: int = 0
    history: tuple[PastAttempt, ...] = ()

    def to_header(self) -> dict[str, Any]:
        """Return the header's value: plain strings and numbers, None left out."""
        values = dict(self.__dict__)
        values["message"] = self.message[:MESSAGE_LIMIT]
        values["traceback"] = self.traceback[-TRACEBACK_LIMIT:]
        del values["history"]
        return {name: value for name, value in values.items() if value is not None}

    def redacted(self, redact: Callable[[Any], Any]) -> DeathCertificate:
        """Return it with its texts as they may be shown: messages and tracebacks, of earlier attempts as well.

        Args:
            redact: takes a text and returns what may be shown of it.
        """
        history = tuple(replace(past, message=redact(past.message), traceback=redact(past.traceback)) for past in self.history)
        return replace(self, message=redact(self.message), traceback=redact(self.traceback), history=history)

    @classmethod
    def from_header(cls, header: Any) -> DeathCertificate | None:
        """Read a header, or None where there is none of ours (another program, or the broker itself, put it there)."""
        if not isinstance(header, Mapping) or not isinstance(header.get("reason"), str):
            return None
        known: dict[str, Any] = {}
        for name, default in _DEFAULTS.items():
            value = header.get(name, default)
            known[name] = _read(name, value, default)
        return cls(reason=header["reason"], **known)


_DEFAULTS: dict[str, Any] = {
    name: definition.default for name, definition in DeathCertificate.__dataclass_fields__.items() if name not in ("reason", "history")
}


def _read(name: str, value: Any, default: Any) -> Any:
    if value is None:
        return default
    if isinstance(default, int):
        return value if isinstance(value, int) and not isinstance(value, bool) else default
    if name in ("first_seen", "last_seen"):
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**62 else None
    return value if isinstance(value, str) else str(value)


# in an exception group's traceback a frame stands behind bars
_FRAME = re.compile(r'^[\s|+]*File "(?P<file>[^"]+)", line \d+, in (?P<name>.+)$', re.MULTILINE)


def error_fingerprint(error: str, traceback: str) -> str:
    """Return 16 hex digits that are the same for the same failure in the same place.

    Class of the error and the file and function of each frame; no line numbers, no messages, no literals.
    """
    frames = [f"{match['file'].rsplit('/', 1)[-1]}:{match['name']}" for match in _FRAME.finditer(traceback)]
    return hashlib.blake2b("\n".join([error, *frames]).encode("utf-8", "replace"), digest_size=8).hexdigest()


def past_attempt(report: ErrorReport, *, attempt: int, now: float) -> PastAttempt:
    """Return an attempt that failed, for the history of the message.

    Args:
        report: of its error.
        attempt: which one it was, 1 for the first.
        now: unix time in seconds.
    """
    fingerprint = error_fingerprint(report.error, report.traceback) if report.error else ""
    return PastAttempt(attempt, now, report.error, report.message, fingerprint, report.traceback)


def certify(
    delivery: Delivery, report: ErrorReport, *, reason: str, attempts: int, crashes: int, now: float, worker: str
) -> DeathCertificate:
    """Return the certificate of a delivery that is given up.

    Args:
        delivery: the message.
        report: the last error, if there was one.
        reason: one of :data:`REASONS`.
        attempts: charged.
        crashes: workers lost.
        now: unix time in seconds.
        worker: node name.
    """
    exchange, routing_key = delivery.origin
    return DeathCertificate(
        reason=reason,
        task=delivery.task_name,
        task_id=delivery.task_id,
        key=delivery.key,
        error=report.error,
        message=report.message,
        traceback=report.traceback,
        fingerprint=error_fingerprint(report.error or reason, report.traceback),
        attempts=attempts,
        crashes=crashes,
        first_seen=delivery.travel.first,
        last_seen=now,
        worker=worker,
        exchange=exchange,
        routing_key=routing_key,
        queue=delivery.queue,
        replays=delivery.travel.replays,
        history=delivery.travel.history,
    )
