"""The rest of the standard library: sockets, TLS, asyncio, futures, subprocesses, http.client, urllib, mail, FTP."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .http import answer
from .table import Look, Rules, always, attribute, certificate_refused

__all__ = ["RULES"]


def _tls(error: Any, _look: Look) -> Classification:
    """Its ``errno`` is OpenSSL's, not the system's: never let ``OSError`` read it."""
    if certificate_refused(error):
        return Classification(PERMANENT, rule="ssl.SSLCertVerificationError")
    return Classification(RETRYABLE, rule="ssl.SSLError")


def _http_error(error: Any, look: Look) -> Classification | None:
    """A redirect is an error here when it leads in a circle or to a scheme that is not followed."""
    if 300 <= error.code <= 399:
        return Classification(PERMANENT, rule=f"http.{error.code}")
    return answer(error.code, attribute(error, "headers", "hdrs"), look.now)


def _url_error(error: Any, look: Look) -> Classification:
    reason = attribute(error, "reason")
    found = look.known(reason)
    if found is not None:
        return found
    if isinstance(reason, str) and reason.startswith(("unknown url type", "no host given", "file not on local host")):
        return Classification(PERMANENT, rule="urllib.URLError")
    return Classification(RETRYABLE, rule="urllib.URLError")


def _smtp_kind(code: int) -> str:
    """4yz is transient, 5yz permanent (RFC 5321, section 4.2.1); -1 and 0 are smtplib's for a dead connection."""
    return PERMANENT if 500 <= code <= 599 else RETRYABLE


def _smtp_reply(error: Any, _look: Look) -> Classification:
    return Classification(_smtp_kind(error.smtp_code), rule=f"smtp.{error.smtp_code}")


def _smtp_refused(error: Any, _look: Look) -> Classification:
    """All recipients were refused; one that was refused for the moment is worth another attempt."""
    codes = [code for code, _ in error.recipients.values()]
    code = min(codes, key=lambda each: _smtp_kind(each) == PERMANENT)
    return Classification(_smtp_kind(code), rule=f"smtp.{code}")


RULES: Rules = {
    "ssl.SSLError": _tls,
    "urllib.error.HTTPError": _http_error,
    "urllib.error.URLError": _url_error,
    "smtplib.SMTPResponseException": _smtp_reply,
    "smtplib.SMTPRecipientsRefused": _smtp_refused,
    **always(PERMANENT, "ssl", "SSLCertVerificationError"),
    # also EAI_NONAME: names of a service vanish for a moment while it is deployed and while a resolver starts
    **always(RETRYABLE, "socket", "gaierror", "herror"),
    **always(
        RETRYABLE, "asyncio.exceptions", "TimeoutError", "IncompleteReadError", "CancelledError", "BrokenBarrierError"
    ),  # TimeoutError: its own class up to 3.10
    **always(RETRYABLE, "asyncio.queues", "QueueFull", "QueueEmpty"),
    **always(RETRYABLE, "queue", "Full"),
    **always(RETRYABLE, "_queue", "Empty", prefix="queue"),
    **always(RETRYABLE, "concurrent.futures._base", "TimeoutError", "CancelledError", "BrokenExecutor", prefix="concurrent.futures"),
    **always(RETRYABLE, "multiprocessing.context", "TimeoutError"),
    **always(RETRYABLE, "subprocess", "TimeoutExpired"),
    **always(RETRYABLE, "http.client", "IncompleteRead", "BadStatusLine", "ImproperConnectionState", "NotConnected"),
    **always(PERMANENT, "http.client", "InvalidURL", "UnknownProtocol"),
    **always(RETRYABLE, "urllib.error", "ContentTooShortError"),
    **always(RETRYABLE, "smtplib", "SMTPServerDisconnected"),
    **always(PERMANENT, "smtplib", "SMTPNotSupportedError"),
    **always(RETRYABLE, "ftplib", "error_temp", "error_proto"),
    **always(PERMANENT, "ftplib", "error_perm"),
}
