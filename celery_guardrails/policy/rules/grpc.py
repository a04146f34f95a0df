"""gRPC: status codes, and the wait that a server sends in its trailing metadata.

Kinds follow https://grpc.io/docs/guides/status-codes/ ; ``grpc-retry-pushback-ms`` is gRFC A6, ``RetryInfo`` is
google/rpc/error_details.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from .table import Look, Rules, always, attribute, seconds

__all__ = ["RULES", "STATUS", "metadata_wait"]

STATUS = {
    **dict.fromkeys(("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNKNOWN", "CANCELLED"), RETRYABLE),
    "RESOURCE_EXHAUSTED": THROTTLED,
    **dict.fromkeys(
        (
            "INVALID_ARGUMENT",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "UNAUTHENTICATED",
            "FAILED_PRECONDITION",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "DATA_LOSS",
        ),
        PERMANENT,
    ),
}


def metadata_wait(call: Any) -> float | None:
    """Return the seconds that a server's trailing metadata asks for, or None."""
    trailing = getattr(call, "trailing_metadata", None)
    pairs = trailing() if callable(trailing) else None
    for key, value in pairs or ():
        if key == "grpc-retry-pushback-ms":
            text = value.decode("ascii") if isinstance(value, bytes) else str(value)
            if text.isdecimal() and len(text) < 16:
                return seconds(int(text) / 1000)
        elif key == "google.rpc.retryinfo-bin":
            return _retry_info(value)
        elif key == "grpc-status-details-bin":
            for detail in _messages(value, 3):  # google.rpc.Status.details, each a google.protobuf.Any
                if b"google.rpc.RetryInfo" in b"".join(_messages(detail, 1)):
                    return _retry_info(b"".join(_messages(detail, 2)))
    return None


def _retry_info(data: bytes) -> float | None:
    """Read ``RetryInfo { Duration retry_delay = 1; }`` with ``Duration { int64 seconds = 1; int32 nanos = 2; }``."""
    duration = b"".join(_messages(data, 1))
    if not duration:
        return None
    numbers = {number: value for number, value in _fields(duration) if isinstance(value, int)}
    whole = numbers.get(1, 0)
    return None if whole >= 1 << 63 else seconds(whole + numbers.get(2, 0) / 1e9)


def _messages(data: bytes, number: int) -> Iterator[bytes]:
    return (value for found, value in _fields(data) if found == number and isinstance(value, bytes))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message (https://protobuf.dev/programming-guides/encoding/); stops at what it cannot read."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _varint(data, at)
            yield tag >> 3, bytes(data[at : at + size])
            at += size
        else:
            return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return value, len(data)  # cut off, or no varint: nothing after it can be read


def _rpc_error(error: Any, _look: Look) -> Classification | None:
    """``grpc.RpcError`` itself is bare; what a call raises has ``code()``."""
    code = error.code() if callable(getattr(error, "code", None)) else None
    name = attribute(code, "name")
    kind = STATUS.get(name) if isinstance(name, str) else None
    if kind is None:
        return None
    return Classification(kind, None if kind == PERMANENT else metadata_wait(error), f"grpc.{name}")


RULES: Rules = {
    "grpc.RpcError": _rpc_error,
    **always(RETRYABLE, "grpc", "FutureTimeoutError", "FutureCancelledError"),
}
