"""What a deadline leaves of a task's time limits."""

from __future__ import annotations

__all__ = ["FLOOR", "SOFT_SHARE", "cut_time_limits"]

#: Seconds; a hard limit is not cut below it: the process that a shorter one kills costs more than the second.
FLOOR = 1.0
#: Of a hard limit that was cut, after which a soft one strikes: what is left is the time to clean up in.
SOFT_SHARE = 0.9


def cut_time_limits(hard: float | None, soft: float | None, remaining: float | None) -> tuple[float | None, float | None, bool]:
    """Return hard and soft limit, and whether the hard one is the deadline now.

    Where the deadline comes before the hard limit, or there is no hard limit, the deadline is the hard limit. A soft limit
    is cut only where there is one, so that it still comes before the hard one.

    Args:
        hard: seconds, or None where the task has none.
        soft: seconds, or None where the task has none.
        remaining: seconds until the deadline, or None where there is none. A task whose deadline has passed keeps its
            limits: its body is not run, and what dead-letters it shall not be killed.
    """
    if remaining is None or remaining <= 0:
        return hard, soft, False
    cut = max(FLOOR, round(remaining, 3))
    if hard and hard <= cut:
        return hard, soft, False
    return cut, min(soft, cut * SOFT_SHARE) if soft else soft, True
