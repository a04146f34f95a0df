"""Spreads work evenly over time."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import GuardrailsConfigError
from ..ports import Clock

__all__ = ["Pace", "parse_rate"]

_SPANS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
#: Seconds of delay that are caught up on: enough to even out what sleeping adds, too little to make a burst of.
_CATCH_UP = 0.05
#: Seconds of longer delays that are made good little by little, and how much quicker than its span a step may come for that.
_DEBT = 2.0
_HASTE = 0.05
#: Seconds between two questions whether to stop.
_SLICE = 0.25


class Pace:
    """Lets so many steps pass a second, evenly spaced.

    What a delay has cost is made good, up to two seconds of it, by steps that come a twentieth sooner: no burst, but the
    rate is held also where something takes long now and then.

    Args:
        clock: time.
        rate: steps a second; None for as fast as it goes.

    Raises:
        GuardrailsConfigError: a rate that is not above 0.
    """

    def __init__(self, clock: Clock, rate: float | None) -> None:
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0):
            raise GuardrailsConfigError(f"--rate {rate!r}: a number a second above 0 is allowed, such as 10 or 10/s")
        self._clock = clock
        self._step = 1.0 / rate if rate else 0.0
        self._due: float | None = None
        self._debt = 0.0

    def ready(self) -> bool:
        """Whether the next step may be made without a wait."""
        return self._due is None or self._due <= self._clock.now()

    def wait(self, stop: Callable[[], None] | None = None) -> None:
        """Return when the next step may be made.

        Args:
            stop: called every so often meanwhile; what it raises ends the wait.
        """
        if not self._step:
            return
        now = self._clock.now()
        due = now if self._due is None else max(self._due, now - _CATCH_UP)
        if self._due is not None:
            self._debt = min(self._debt + due - self._due, _DEBT)
        while due > now:
            if stop is not None:
                stop()
            self._clock.sleep(due - now if stop is None else min(due - now, _SLICE))
            now = due if stop is None else self._clock.now()
        sooner = min(self._debt, _HASTE * self._step)
        self._debt -= sooner
        self._due = due + self._step - sooner


def parse_rate(text: str | None) -> float | None:
    """Return steps a second of ``"10"``, ``"10/s"``, ``"600/m"`` or ``"2000/h"``.

    Raises:
        GuardrailsConfigError: it is none of these.
    """
    if text is None:
        return None
    number, _, span = text.strip().partition("/")
    try:
        rate = float(number) / _SPANS[span.strip().lower() or "s"]
    except (KeyError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise GuardrailsConfigError(f"--rate {text!r}: a number above 0 is allowed, a second or with its span: 10, 10/s, 600/m, 2000/h")
    return rate
