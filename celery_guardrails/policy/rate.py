"""A rate by the generic cell rate algorithm (ITU-T I.371): one moment is remembered, the theoretical arrival time of the next call."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import GuardrailsConfigError
from .budget import is_number

__all__ = ["Rate"]

_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*([smh]))?\s*")
#: Seconds that nobody need wait for: sums of unix times in double precision are off by a part of it.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Rate:
    """So many calls a second, by the whole fleet.

    Args:
        per_second: calls a second in the long run.
        burst: calls that may come at once after a pause; by default those of one second, and at least one. Within any ``t``
            seconds there are at most ``burst + per_second * t`` calls.

    Raises:
        GuardrailsConfigError: for a value outside its range.
    """

    per_second: float
    burst: float = 0.0

    def __post_init__(self) -> None:
        if not (is_number(self.per_second) and self.per_second > 0):
            raise GuardrailsConfigError(f"Rate(per_second={self.per_second!r}): a number above 0 is allowed")
        if not self.burst:
            object.__setattr__(self, "burst", max(1.0, float(self.per_second)))
        if not (is_number(self.burst) and self.burst >= 1):
            raise GuardrailsConfigError(f"Rate(burst={self.burst!r}): a number of at least 1 is allowed")

    @classmethod
    def parse(cls, value: object) -> Rate | None:
        """Read what ``rate=`` of a resource may be: None, a :class:`Rate`, calls a second, or ``"100/s"``, ``"10/m"``, ``"5/h"``.

        Raises:
            GuardrailsConfigError: for anything else.
        """
        if value is None or isinstance(value, Rate):
            return value
        if isinstance(value, str):
            match = _TEXT.fullmatch(value)
            if match is not None and float(match[1]) > 0:
                return cls(float(match[1]) / _PERIODS[match[2] or "s"])
        elif is_number(value) and value:
            return cls(float(value))  # type: ignore[arg-type]
        allowed = 'None, a number of calls a second, or a text such as "100/s", "10/m" or "5/h"'
        raise GuardrailsConfigError(f"rate={value!r}: {allowed} is allowed")

    def wait(self, arrival: float, now: float) -> float:
        """Return the seconds before a call conforms; 0 where it does now."""
        wait = self._standing(arrival, now) - (self.burst - 1.0) / self.per_second - now
        return wait if wait > _ROUNDING else 0.0

    def called(self, arrival: float, now: float) -> float:
        """Return the theoretical arrival time after a call."""
        return max(self._standing(arrival, now), now) + 1.0 / self.per_second

    def free(self, arrival: float, now: float) -> float:
        """Return the calls that may come at once."""
        return max(0.0, self.burst - max(0.0, self._standing(arrival, now) - now) * self.per_second)

    def _standing(self, arrival: float, now: float) -> float:
        """Return an arrival time, unless it is one that this rate cannot have led to: a clock was set back, or a deploy has raised it."""
        return arrival if arrival - now <= 2.0 * self.burst / self.per_second + 1.0 else now
