"""requests."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from .http import of_response
from .table import Look, Rules, always, certificate_refused

__all__ = ["RULES"]

_MODULE = "requests.exceptions"


def _status(error: Any, look: Look) -> Classification | None:
    return of_response(error, look.now)


def _exhausted(error: Any, look: Look) -> Classification:
    """urllib3's ``MaxRetryError`` is inside, where the adapter was given retries of its own."""
    found = look.known(error.args[0]) if error.args else None
    throttled = found is not None and found.kind == THROTTLED
    return Classification(THROTTLED if throttled else RETRYABLE, rule="requests.RetryError")


def _tls(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="requests.SSLError")


RULES: Rules = {
    f"{_MODULE}.HTTPError": _status,
    f"{_MODULE}.RetryError": _exhausted,
    f"{_MODULE}.SSLError": _tls,
    # JSONDecodeError: a response that is no JSON, most often the error page of something in between
    **always(RETRYABLE, _MODULE, "ConnectionError", "Timeout", "ChunkedEncodingError", "ContentDecodingError", "JSONDecodeError"),
    **always(
        PERMANENT,
        _MODULE,
        "TooManyRedirects",
        "MissingSchema",
        "InvalidSchema",
        "InvalidURL",
        "InvalidHeader",
        "InvalidJSONError",
        "URLRequired",
        "StreamConsumedError",
        "UnrewindableBodyError",
    ),
}
