"""HTTP statuses and ``Retry-After``; shared by every HTTP library."""

from __future__ import annotations

import re
from typing import Any

from ..classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from .table import LONGEST, attribute, seconds

__all__ = ["answer", "header", "http_date", "of_response", "retry_after", "status_kind"]

_RETRYABLE = frozenset({408, 425, 500, 502, 503, 504, 507})
_THROTTLED = frozenset({429, 529})
#: Registered 5xx that say "never": not implemented, version, misconfiguration, loop, extension, captive portal.
_PERMANENT = frozenset({501, 505, 506, 508, 510, 511})


def status_kind(status: int) -> str | None:
    """Return the kind for a status, or None for one that is no error (below 400, above 599).

    408, 425, 500, 502, 503, 504 and 507 ("temporary", RFC 4918) are retryable, 429 throttled, other 4xx and the other
    registered 5xx permanent. A 5xx that nobody registered (Cloudflare's 520 to 527, a proxy's 598) is treated as 500,
    as RFC 9110, section 15 demands; the 529 of overloaded APIs counts as throttled.
    """
    if not 400 <= status <= 599:
        return None
    if status in _THROTTLED:
        return THROTTLED
    if status in _RETRYABLE:
        return RETRYABLE
    return PERMANENT if status < 500 or status in _PERMANENT else RETRYABLE


def answer(status: object, headers: object, now: float | None) -> Classification | None:
    """Return the classification of a response, or None where the status is not that of an error."""
    if isinstance(status, bool) or not isinstance(status, int):
        return None
    kind = status_kind(int(status))
    if kind is None:
        return None
    wait = None if kind == PERMANENT else retry_after(headers, now)
    return Classification(kind, wait, f"http.{int(status)}")


def of_response(error: object, now: float | None) -> Classification | None:
    """Return the classification by the ``response`` an exception carries: what most API clients' errors have."""
    response = attribute(error, "response")
    if response is None:
        return None
    return answer(attribute(response, "status_code", "status"), attribute(response, "headers"), now)


def header(headers: Any, name: str) -> str | None:
    """Return a header by its lower-case name from a mapping, a message or a list of pairs."""
    if headers is None:
        return None
    pairs = headers.items() if hasattr(headers, "items") else headers
    for key, value in pairs:
        if isinstance(key, str) and key.lower() == name:
            return value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return None


def retry_after(headers: Any, now: float | None) -> float | None:
    """Return the seconds that a response asks to be left alone, from 0 to one year, or None.

    Reads ``Retry-After`` in seconds or as an HTTP-date (RFC 9110, section 10.2.3) and ``retry-after-ms`` (OpenAI, Azure).
    A date is compared with ``now`` in unix seconds, or without it with the response's own ``Date``; with neither it
    is ignored.
    """
    milliseconds = header(headers, "retry-after-ms")
    if milliseconds is not None and _NUMBER.match(milliseconds.strip()):
        return seconds(float(milliseconds) / 1000)
    text = header(headers, "retry-after")
    if text is None:
        return None
    text = text.strip()
    if _NUMBER.match(text):
        return min(float(text), LONGEST)
    moment = http_date(text)
    if moment is None:
        return None
    if now is None:
        now = http_date(header(headers, "date") or "")
    return None if now is None else seconds(max(0.0, moment - now))


_NUMBER = re.compile(r"^[0-9]{1,300}(?:\.[0-9]{0,300})?$", re.ASCII)
_MONTHS = {name: number for number, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = (
    re.compile(rf"^[A-Za-z]{{3}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} (?:GMT|UTC)$"),  # IMF-fixdate
    re.compile(rf"^[A-Za-z]{{6,9}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_CLOCK} GMT$"),  # RFC 850
    re.compile(rf"^[A-Za-z]{{3}} {_MONTH} (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})$"),  # asctime
)


def http_date(text: str) -> float | None:
    """Return the unix time in seconds of an HTTP-date in any of its three forms (RFC 9110, section 5.6.7), or None."""
    for form in _DATES:
        match = form.match(text.strip())
        if match:
            break
    else:
        return None
    year, day = int(match["year"]), int(match["day"])
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    if len(match["year"]) == 2:
        year += 2000 if year < 70 else 1900
    if not (1 <= day <= 31 and hour <= 23 and minute <= 59 and second <= 60):
        return None
    return float(_days(year, _MONTHS[match["month"]], day) * 86400 + hour * 3600 + minute * 60 + second)


def _days(year: int, month: int, day: int) -> int:
    """Return days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil)."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
