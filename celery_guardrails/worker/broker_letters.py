"""Tells of dead letters that the broker itself has made: see :mod:`celery_guardrails.integration.broker_letters`."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.consumer import Tasks

from ..errors import GuardrailsError
from ..integration.app import ensure_guardrails
from ..integration.broker_letters import Notices
from .background import Background

__all__ = ["BrokerLetters"]

logger = get_logger(__name__)

#: Seconds between two attempts while broker or store are away: the first, and the longest.
_AWAY, _AWAY_LONGEST = 1.0, 30.0


class BrokerLetters(bootsteps.StartStopStep):
    """A thread of the main process that looks every ``guardrails_broker_letters_seconds``: one question to the broker."""

    label = "guardrails broker letters"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._background = Background("guardrails-broker-letters", self._round)
        self._notices: Notices | None = None
        self._away = 0.0

    def include_if(self, c: Any) -> bool:
        """Redis lets nothing die by itself."""
        return getattr(self._rails.broker, "notices", None) is not None

    def start(self, c: Any) -> None:
        """Start with the consumer; does nothing after a reconnect."""
        self._background.start()

    def stop(self, c: Any) -> None:
        """Nothing: see :meth:`shutdown`."""

    def shutdown(self, c: Any) -> None:
        """End the thread."""
        self._background.stop()

    def _round(self) -> float:
        if self._notices is None:
            self._notices = Notices(self._rails)
        try:
            wait = self._notices.round()
        except GuardrailsError as exc:
            if not self._away:  # one line an outage
                logger.warning("dead letters that the broker made are told of later: %s", exc)
            self._away = min(_AWAY_LONGEST, 2 * self._away or _AWAY)
            return self._away
        self._away = 0.0
        return wait
