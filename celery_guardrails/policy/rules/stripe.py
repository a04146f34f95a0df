"""stripe: ``stripe._error`` from 8.0 on, ``stripe.error`` before."""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from .http import answer, header, retry_after
from .table import Handler, Look, Rules, attribute, certificate_refused, handled

__all__ = ["RULES"]

_MODULES = ("stripe._error", "stripe.error")


def _rated(error: Any, look: Look) -> Classification:
    return Classification(THROTTLED, retry_after(attribute(error, "headers"), look.now), "stripe.RateLimitError")


def _connection(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="stripe.APIConnectionError")


def _other(error: Any, look: Look) -> Classification | None:
    """By what the server says of a retry, else by status.

    409 is a request that ran at the same time, with the same idempotency key or for the same object
    (``Stripe-Should-Retry: true``, ``lock_timeout``; https://docs.stripe.com/error-low-level).
    """
    status, headers = attribute(error, "http_status"), attribute(error, "headers")
    told = (header(headers, "stripe-should-retry") or "").lower() == "true"
    if told or attribute(error, "code") in ("lock_timeout", "idempotency_key_in_use"):
        return Classification(THROTTLED if status == 429 else RETRYABLE, retry_after(headers, look.now), "stripe.should_retry")
    return answer(status, headers, look.now)


def _api(error: Any, look: Look) -> Classification:
    """The class of whatever has no class of its own, a 409 among it."""
    return _other(error, look) or Classification(RETRYABLE, rule="stripe.APIError")


def _refused(name: str) -> Handler:
    """Permanent whatever its status (402, 403, 409 come without one in tests and webhooks), unless a retry is asked for."""

    def handler(error: Any, look: Look) -> Classification:
        found = _other(error, look)
        return found if found is not None and found.kind != PERMANENT else Classification(PERMANENT, rule=f"stripe.{name}")

    return handler


RULES: Rules = {
    **handled(_rated, _MODULES, "RateLimitError"),
    **handled(_connection, _MODULES, "APIConnectionError"),
    **handled(_api, _MODULES, "APIError"),
    **handled(_other, _MODULES, "StripeError"),
}
for _name in (
    "CardError",
    "InvalidRequestError",
    "AuthenticationError",
    "PermissionError",
    "IdempotencyError",
    "SignatureVerificationError",
):
    RULES.update(handled(_refused(_name), _MODULES, _name))
