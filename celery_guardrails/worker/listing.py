"""Celery's sets of requests, read while other threads change them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["listed"]


def listed(requests: Iterable[Any]) -> list[Any]:
    """Return what is in ``worker_state.active_requests`` or ``reserved_requests``.

    They are weak sets, walked through in Python: one that a thread of the pool adds to, or takes from, meanwhile raises ``RuntimeError``.
    """
    while True:
        try:
            return list(requests)
        except RuntimeError:
            continue
