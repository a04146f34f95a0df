"""A dead letter turned back into a live message."""

from __future__ import annotations

from dataclasses import replace

from ..policy.delivery import DEAD_LETTER_HEADER, ORIGINAL_PREFIX, TRAVEL_HEADER, RawMessage, of_one_delivery
from ..policy.history import PastDeath, died_again
from .letter import DeadLetter

__all__ = ["restored"]

#: Of what stands in headers because a dead letter cannot carry it, what is put back. An expiration is cleared, like
#: ``expires``; CC and BCC would make copies for queues that had theirs.
_PUT_BACK = {f"{ORIGINAL_PREFIX}delivery-mode": "delivery_mode", f"{ORIGINAL_PREFIX}user-id": "user_id"}


def restored(letter: DeadLetter, *, now: float) -> RawMessage:
    """Return the original message, ready for a fresh life.

    Body, content type, content encoding and properties are byte for byte as they were; so are the headers, but for:

    - ``guardrails`` (the certificate) and what the broker wrote about the death are gone;
    - ``x-guardrails`` keeps key, fingerprint and origin, starts its counters and its deadline anew, forgets one
      that it had inherited, counts one replay more, and keeps of this life its death;
    - Celery's ``retries`` is 0; ``eta`` and ``expires``, and RabbitMQ's own expiration, are cleared where the message had
      them: a replay is wanted now, and an expired message would be discarded on arrival without a word.

    Args:
        letter: the dead letter.
        now: unix time in seconds, from which the deadline of the retry policy counts.
    """
    message, certificate = letter.message, letter.certificate
    headers = {
        name: value
        for name, value in message.headers.items()
        if name != DEAD_LETTER_HEADER and not of_one_delivery(name) and not name.startswith(ORIGINAL_PREFIX)
    }
    properties = {name: value for name, value in message.properties.items() if name != "expiration"}
    properties |= {name: message.headers[header] for header, name in _PUT_BACK.items() if header in message.headers}
    if "retries" in headers:
        headers["retries"] = 0
    for name in ("eta", "expires"):
        if name in headers:
            headers[name] = None
    travel = letter.travel
    known_origin = (certificate.exchange, certificate.routing_key) if certificate.exchange or certificate.routing_key else None
    headers[TRAVEL_HEADER] = travel.evolve(
        attempts=0,
        deferrals=0,
        vain=0,
        deliveries=0,
        waited=None,
        first=now,
        until=None,
        replays=letter.replays + 1,
        origin=travel.origin or known_origin,
        history=(),
        deaths=died_again(travel.deaths, PastDeath(certificate.reason, certificate.error, certificate.last_seen)),
    ).to_header()
    return replace(message, headers=headers, properties=properties)
