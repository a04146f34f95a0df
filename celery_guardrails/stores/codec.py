"""Results through the app's own result serializer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kombu import serialization

from ..events import Event, ResultNotKept
from ..policy.lease import StoredResult
from ..policy.progress import PROGRESS, Progress

__all__ = ["KombuCodec", "progress_of"]

_JSON = "application/json"


class KombuCodec:
    """Serialise with kombu, as Celery's result backends do.

    Args:
        serializer: name of the serializer (``result_serializer``).
        accept: content types that may be restored (``accept_content`` or ``result_accept_content``).
        limit: bytes; a larger result is remembered as completed without its value.
        emit: hears of values that were not kept.
    """

    def __init__(self, serializer: str, accept: list[str], limit: int, emit: Callable[[Event], None]) -> None:
        self._serializer = serializer
        self._accept = serialization.prepare_accept_content(accept)
        self._limit = limit
        self._emit = emit

    def encode(self, value: Any, task_id: str) -> StoredResult:
        """See :class:`~celery_guardrails.ports.ResultCodec`."""
        try:
            content_type, encoding, data = serialization.dumps(value, serializer=self._serializer)
        except Exception as exc:  # noqa: BLE001 - whatever a value's own methods raise: the effect is done, the result must not undo it
            self._emit(ResultNotKept(task_id, f"not serialisable as {self._serializer}: {exc!r}"))
            return StoredResult(task_id=task_id)
        raw = data.encode("utf-8") if isinstance(data, str) else bytes(data)
        if len(raw) > self._limit:
            self._emit(ResultNotKept(task_id, f"{len(raw)} bytes, guardrails_max_result_bytes is {self._limit}"))
            return StoredResult(task_id=task_id)
        return StoredResult(content_type, encoding, raw, task_id)

    def decode(self, result: StoredResult | None) -> Any:
        """See :class:`~celery_guardrails.ports.ResultCodec`."""
        if result is None or result.content_type is None:
            return None
        return serialization.loads(result.data, result.content_type, result.content_encoding or "utf-8", accept=self._accept)

    def pack(self, value: Any) -> StoredResult:
        """See :class:`~celery_guardrails.ports.ResultCodec`."""
        content_type, encoding, data = serialization.dumps(value, serializer="json")
        return StoredResult(content_type, encoding, data.encode("utf-8") if isinstance(data, str) else bytes(data))

    def unpack(self, kept: StoredResult) -> Any:
        """See :class:`~celery_guardrails.ports.ResultCodec`."""
        return _unpacked(kept)


def _unpacked(kept: StoredResult) -> Any:
    return serialization.loads(kept.data, kept.content_type, kept.content_encoding or "utf-8", accept={_JSON})


def progress_of(steps: Mapping[str, StoredResult]) -> Progress | None:
    """Return how far the loops of a key have come, as its recovery points say, or None where it has none."""
    kept = steps.get(PROGRESS)
    return None if kept is None else Progress.from_value(_unpacked(kept))
