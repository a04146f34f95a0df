"""google-api-core and google-auth, and so every Google Cloud client."""

from __future__ import annotations

import re
from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .grpc import STATUS, metadata_wait
from .http import answer, retry_after
from .table import Handler, Look, Rules, always, attribute, seconds

__all__ = ["RULES"]

_CORE = "google.api_core.exceptions"
_AUTH = "google.auth.exceptions"
_DELAY = re.compile(r"^([0-9]{1,12}(?:\.[0-9]{1,9})?)s$")


def _wait(error: Any, look: Look) -> float | None:
    """``RetryInfo`` among the details (a message, or JSON from a REST transport), else what the transport's answer says."""
    for detail in attribute(error, "details") or ():
        if isinstance(detail, dict):
            match = _DELAY.match(str(detail.get("retryDelay")))
            if match:
                return seconds(float(match[1]))
        else:
            delay = attribute(detail, "retry_delay")
            if delay is not None:
                return seconds(delay.seconds + delay.nanos / 1e9)
    response = attribute(error, "response")
    return retry_after(attribute(response, "headers"), look.now) if hasattr(response, "headers") else metadata_wait(response)


def _call_error(error: Any, look: Look) -> Classification | None:
    name = attribute(attribute(error, "grpc_status_code"), "name")
    return _by_status(name, error, look)


def _by_status(name: object, error: Any, look: Look) -> Classification | None:
    kind = STATUS.get(name) if isinstance(name, str) else None
    if kind is not None:
        return Classification(kind, None if kind == PERMANENT else _wait(error, look), f"grpc.{name}")
    found = answer(attribute(error, "code"), None, look.now)
    if found is None or found.kind == PERMANENT:
        return found
    return Classification(found.kind, _wait(error, look), found.rule)


def _named(status: str) -> Handler:
    """Classes whose HTTP code misleads, and which have no gRPC code where grpcio is not installed."""
    return lambda error, look: _by_status(status, error, look)


def _auth(error: Any, _look: Look) -> Classification | None:
    """google-auth says itself whether it is worth another attempt."""
    return Classification(RETRYABLE, rule="google.GoogleAuthError") if attribute(error, "retryable") is True else None


RULES: Rules = {
    f"{_CORE}.GoogleAPICallError": _call_error,
    f"{_CORE}.Aborted": _named("ABORTED"),  # 409
    f"{_CORE}.Cancelled": _named("CANCELLED"),  # 499
    f"{_CORE}.DataLoss": _named("DATA_LOSS"),  # 500
    f"{_AUTH}.GoogleAuthError": _auth,
    **always(RETRYABLE, _CORE, "RetryError", "TransferStalledError", "MissingStatusHeaderError"),
    **always(PERMANENT, _CORE, "DuplicateCredentialArgs"),
    **always(RETRYABLE, _AUTH, "TransportError", "TimeoutError"),
    **always(PERMANENT, _AUTH, "DefaultCredentialsError"),
}
