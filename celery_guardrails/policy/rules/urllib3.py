"""urllib3."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .table import Look, Rules, always, attribute, certificate_refused

__all__ = ["RULES"]

_MODULE = "urllib3.exceptions"


def _exhausted(error: Any, look: Look) -> Classification:
    """By the reason; urllib3's own retries are over, so without one it is still a failure that it thought would pass."""
    return look.known(attribute(error, "reason")) or Classification(RETRYABLE, rule="urllib3.MaxRetryError")


def _tls(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="urllib3.SSLError")


RULES: Rules = {
    f"{_MODULE}.MaxRetryError": _exhausted,
    f"{_MODULE}.SSLError": _tls,
    **always(
        RETRYABLE,
        _MODULE,
        "TimeoutError",
        "ProtocolError",
        "ProxyError",
        "DecodeError",
        "ResponseError",
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
