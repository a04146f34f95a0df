"""Messages as py-amqp puts them on the wire, within what RabbitMQ takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from amqp import Message

from ...policy.deadletter import DeathCertificate
from ...policy.delivery import DEAD_LETTER_HEADER, ORIGINAL_PREFIX, RawMessage
from .amqp_session import Session
from .base import body_bytes, without_history

__all__ = ["fitting", "live_wire", "make_wire", "set_aside"]

#: Properties of AMQP that travel with a copy; the content type and encoding and the headers are set apart.
_PROPERTIES = frozenset(name for name, _ in Message.PROPERTIES) - {"content_type", "content_encoding", "application_headers"}
#: Properties a waiting or dead copy cannot carry: an expiration would expire it, RabbitMQ refuses a user_id that is not the
#: connection's own, a transient message would not outlive a restart of the broker.
_UNSAFE_PROPERTIES = ("expiration", "user_id", "delivery_mode")
#: Traceback and message of a certificate are cut to so many characters until the headers fit a frame.
_CUTS = (4096, 512, 0)
#: Bytes of the headers' frame that a live message's history leaves free, for the certificate it may get one day.
_CERTIFICATE_ROOM = 24_576


def set_aside(properties: Mapping[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
    """Return the properties for a copy that waits or is dead; note what it cannot carry in ``guardrails-original-*`` headers."""
    kept = {name: value for name, value in properties.items() if name not in _UNSAFE_PROPERTIES}
    kept["delivery_mode"] = 2
    for name in _UNSAFE_PROPERTIES:
        value = properties.get(name)
        if value is not None and value != kept.get(name):
            headers[ORIGINAL_PREFIX + name.replace("_", "-")] = value
    return kept


def make_wire(message: RawMessage, headers: Mapping[str, Any], properties: Mapping[str, Any]) -> Any:
    """Return the message with these headers and properties."""
    return Message(
        body_bytes(message),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        application_headers=dict(headers),
        **{name: value for name, value in properties.items() if name in _PROPERTIES},
    )


def live_wire(message: RawMessage, headers: dict[str, Any], properties: Mapping[str, Any], session: Session) -> Any:
    """Return the message, without its history where its own headers leave no room for that."""
    wire = make_wire(message, headers, properties)
    short = without_history(headers)
    if short is headers or len(wire._serialize_properties()) <= session.header_limit() - _CERTIFICATE_ROOM:
        return wire
    return make_wire(message, short, properties)


def fitting(message: RawMessage, headers: dict[str, Any], properties: Mapping[str, Any], certificate: DeathCertificate, limit: int) -> Any:
    """Return the dead letter with as much as fits: the history goes first, then the certificate's text is cut.

    RabbitMQ closes the connection on more.
    """
    wire = make_wire(message, headers, properties)
    if len(wire._serialize_properties()) > limit:
        headers = without_history(headers)
        wire = make_wire(message, headers, properties)
    for cut in _CUTS:
        if len(wire._serialize_properties()) <= limit:
            break
        short = replace(certificate, traceback=certificate.traceback[-cut:] if cut else "", message=certificate.message[:cut])
        wire = make_wire(message, {**headers, DEAD_LETTER_HEADER: short.to_header()}, properties)
    return wire
