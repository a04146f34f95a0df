"""aiohttp's client."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .http import answer
from .table import Look, Rules, always

__all__ = ["RULES"]

_MODULE = "aiohttp.client_exceptions"


def _response(error: Any, look: Look) -> Classification:
    """A response error with a good status is one that is not what it should be: a proxy's page, a cut handshake.

    One that is no HTTP at all comes with a status of 400 that nobody sent, and the parser's error as its cause.
    """
    unreadable = type(error.__cause__).__module__ == "aiohttp.http_exceptions"
    found = None if unreadable else answer(error.status, error.headers, look.now)
    return Classification(RETRYABLE, rule="aiohttp.ClientResponseError") if found is None else found


RULES: Rules = {
    f"{_MODULE}.ClientResponseError": _response,
    **always(RETRYABLE, _MODULE, "ClientConnectionError", "ClientPayloadError"),
    **always(
        PERMANENT,
        _MODULE,
        "TooManyRedirects",
        "InvalidURL",
        "NonHttpUrlClientError",
        "ClientConnectorCertificateError",
        "ServerFingerprintMismatch",
        "WSMessageTypeError",
    ),
}
