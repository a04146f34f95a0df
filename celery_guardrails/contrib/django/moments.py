"""Unix time as this project's databases take it, and back."""

from __future__ import annotations

from datetime import datetime, timezone

from django.conf import settings
from django.utils.timezone import get_default_timezone, make_aware, make_naive

__all__ = ["moment_of", "unix_of"]


def moment_of(seconds: float | None) -> datetime | None:
    """Return unix time in seconds as this project's databases take it; None where it is no time that a database can hold."""
    if seconds is None or seconds < 0:
        return None
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return None
    return moment if settings.USE_TZ else _naive(moment)


def unix_of(moment: datetime | None) -> float | None:
    """Return unix time in seconds of what a database gave."""
    if moment is None:
        return None
    aware: datetime = moment if moment.tzinfo else make_aware(moment, get_default_timezone())
    return aware.timestamp()


def _naive(moment: datetime) -> datetime:
    naive: datetime = make_naive(moment, get_default_timezone())
    return naive
