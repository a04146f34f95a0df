"""A count over the last so many seconds, in three numbers.

Two buckets of a window's length each: the count of the last ``length`` seconds is all of the present bucket and that part of the
one before which the window still covers (Julien Desgats, "How we built rate limiting capable of scaling to millions of
domains", Cloudflare, 2017). It takes no memory that grows with the traffic, and Redis' Lua does it in the same three steps.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """What was counted.

    Args:
        start: unix time in seconds at which the present bucket began.
        current: counted in the present bucket.
        previous: counted in the one before.
    """

    start: float = 0.0
    current: float = 0.0
    previous: float = 0.0

    def at(self, now: float, length: float) -> Window:
        """Return the buckets as they stand at a moment, for a window of ``length`` seconds."""
        passed = int((now - self.start) // length)
        if -1 <= passed <= 0:  # a clock that went back a little moves nothing
            return self
        if passed == 1:
            return Window(self.start + length, 0.0, self.current)
        # by more than a window: what was counted would stand until the clock is there again, with no end to its growth
        return Window(now, 0.0, 0.0)

    def count(self, now: float, length: float) -> float:
        """Return what was counted in the last ``length`` seconds."""
        window = self.at(now, length)
        return window.current + window.previous * (1.0 - min(1.0, max(0.0, now - window.start) / length))

    def add(self, amount: float, now: float, length: float) -> Window:
        """Return the buckets with an amount counted now."""
        window = self.at(now, length)
        return Window(window.start, window.current + amount, window.previous)
