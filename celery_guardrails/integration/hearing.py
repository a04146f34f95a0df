"""Who listens to an app's events, and what of an event may be heard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..events import DeadLettered, Event, Listener, Retrying
from .logs import logger

if TYPE_CHECKING:
    from .app import Guardrails

__all__ = ["presentable", "tell_all"]


def tell_all(listeners: Iterable[Listener], event: Event) -> None:
    """Tell every listener; one that fails is logged and does not disturb the task."""
    for listener in listeners:
        try:
            listener(event)
        except Exception:  # noqa: BLE001 - a user's code may raise anything
            logger.exception("a guardrails listener failed on %r", event)


def presentable(event: Event, rails: Guardrails) -> Event:
    """Return an event whose texts are redacted; names hide arguments, and there are none in an event."""
    if not isinstance(event, (DeadLettered, Retrying)):
        return event
    wanted = rails.settings.redact
    if wanted is None or isinstance(wanted, (list, tuple)):
        return event
    if isinstance(event, Retrying):
        return replace(event, error=rails.redact(event.error))
    return replace(event, certificate=event.certificate.redacted(rails.redact))
