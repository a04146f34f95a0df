"""A clock that is told the time."""

from __future__ import annotations

from random import Random

__all__ = ["FakeClock"]


class FakeClock:
    """Time that passes only when somebody sleeps or advances it, and chance that repeats itself.

    Args:
        start: unix time in seconds.
        seed: of the random numbers.
    """

    def __init__(self, start: float = 1_900_000_000.0, *, seed: int = 0) -> None:
        self._now = start
        self._random = Random(seed)  # noqa: S311 - chance that repeats itself is the point
        #: Every sleep so far, in seconds.
        self.slept: list[float] = []

    def now(self) -> float:
        """Return unix time in seconds."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let that much time pass at once."""
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: time does not run backwards.
        """
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds!r}")
        self._now += seconds

    def fraction(self) -> float:
        """Return a uniform random number in ``[0, 1)``, the same sequence for the same seed."""
        return self._random.random()
