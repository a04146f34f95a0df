"""The real clock."""

from __future__ import annotations

import random
import time

__all__ = ["SystemClock"]


class SystemClock:
    """Wall-clock time and the process's random generator (which Python seeds anew after a fork)."""

    def now(self) -> float:
        """See :class:`~celery_guardrails.ports.Clock`."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """See :class:`~celery_guardrails.ports.Clock`."""
        time.sleep(seconds)

    def fraction(self) -> float:
        """See :class:`~celery_guardrails.ports.Clock`."""
        return random.random()  # noqa: S311 - jitter, not a secret
