"""urllib3."""

from __future__ import annotations

import re
from typing import Any

from ..classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from .http import status_kind
from .table import Look, Rules, always, attribute, certificate_refused

__all__ = ["RULES"]

_MODULE = "urllib3.exceptions"
_STATUS = re.compile(r"^too many ([0-9]{3}) error responses$")


def _exhausted(error: Any, look: Look) -> Classification:
    """By the reason; urllib3's own retries are over, so without one it is still a failure that it thought would pass."""
    return look.known(attribute(error, "reason")) or Classification(RETRYABLE, rule="urllib3.MaxRetryError")


def _response(error: Any, _look: Look) -> Classification:
    """By the text, all there is: what urllib3 did not get beyond in its own retries.

    A status that it was told to try again stays worth it, whatever it is; 429 and the like stay throttled.
    """
    text = str(error)
    if text == "too many redirects":
        return Classification(PERMANENT, rule="urllib3.ResponseError")
    match = _STATUS.match(text)
    throttled = match is not None and status_kind(int(match[1])) == THROTTLED
    return Classification(THROTTLED if throttled else RETRYABLE, rule="urllib3.ResponseError")


def _tls(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="urllib3.SSLError")


RULES: Rules = {
    f"{_MODULE}.MaxRetryError": _exhausted,
    f"{_MODULE}.ResponseError": _response,
    f"{_MODULE}.SSLError": _tls,
    **always(
        RETRYABLE,
        _MODULE,
        "TimeoutError",
        "ProtocolError",
        "ProxyError",
        "DecodeError",
        "EmptyPoolError",
        "FullPoolError",
        "ClosedPoolError",
        "IncompleteRead",
        "InvalidChunkLength",
    ),
    **always(
        PERMANENT,
        _MODULE,
        "LocationValueError",
        "ProxySchemeUnknown",
        "ProxySchemeUnsupported",
        "HostChangedError",
        "InvalidHeader",
        "TimeoutStateError",
        "UnrewindableBodyError",
    ),
}
