"""httpx, and httpcore below it."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .http import of_response
from .table import Look, Rules, always, certificate_refused

__all__ = ["RULES"]


def _status(error: Any, look: Look) -> Classification | None:
    return of_response(error, look.now)


def _connect(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="httpx.ConnectError")


RULES: Rules = {
    "httpx.HTTPStatusError": _status,
    "httpx.ConnectError": _connect,
    "httpcore.ConnectError": _connect,
    **always(RETRYABLE, "httpx", "TransportError", "DecodingError"),
    **always(
        PERMANENT, "httpx", "UnsupportedProtocol", "LocalProtocolError", "TooManyRedirects", "InvalidURL", "CookieConflict", "StreamError"
    ),
    **always(RETRYABLE, "httpcore", "TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError", "ConnectionNotAvailable"),
    **always(PERMANENT, "httpcore", "UnsupportedProtocol", "LocalProtocolError"),
}
