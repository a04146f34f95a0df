"""How long to wait before the next attempt.

The jitters are those of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015:

* ``full``: uniform in ``[0, min(cap, base * 2**n)]``
* ``equal``: half of the exponential step, plus a uniform half
* ``decorrelated``: uniform in ``[base, 3 * previous]``, capped
* ``none``: the exponential step itself
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import GuardrailsConfigError

__all__ = ["JITTERS", "RetryPolicy"]

JITTERS = ("full", "equal", "decorrelated", "none")


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


@dataclass(frozen=True)
class RetryPolicy:
    """When a retryable failure is tried again, and when it is given up.

    Args:
        max_attempts: attempts in all, the first included; at least 1.
        base: seconds, the first step of the exponential.
        cap: seconds, the longest single wait, also for ``Retry-After``.
        jitter: ``"full"``, ``"equal"``, ``"decorrelated"`` or ``"none"``.
        deadline: seconds of wall-clock from the first publish, or None for no deadline of its own.
        inherit_deadline: whether the deadline of the task that published this one holds as well (docs/deadlines.md); False
            for what has to be done however late it is.

    The defaults wait out about a quarter of an hour of a dependency's absence: the expected sum of
    eleven full-jitter waits from 1 s is ``sum(min(600, 2**n) for n in range(11)) / 2`` = 811.5 s.

    Raises:
        GuardrailsConfigError: for a value outside its range.
    """

    max_attempts: int = 12
    base: float = 1.0
    cap: float = 600.0
    jitter: str = "full"
    deadline: float | None = None
    inherit_deadline: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise GuardrailsConfigError(f"RetryPolicy(max_attempts={self.max_attempts!r}): a whole number of at least 1 is allowed")
        if not _seconds(self.base):
            raise GuardrailsConfigError(f"RetryPolicy(base={self.base!r}): a number of seconds above 0 is allowed")
        if not (_seconds(self.cap) and self.cap >= self.base):
            raise GuardrailsConfigError(f"RetryPolicy(cap={self.cap!r}): a number of seconds of at least base={self.base!r} is allowed")
        if self.jitter not in JITTERS:
            raise GuardrailsConfigError(f"RetryPolicy(jitter={self.jitter!r}): one of {', '.join(map(repr, JITTERS))} is allowed")
        if self.deadline is not None and not _seconds(self.deadline):
            raise GuardrailsConfigError(f"RetryPolicy(deadline={self.deadline!r}): None or a number of seconds above 0 is allowed")
        if not isinstance(self.inherit_deadline, bool):
            raise GuardrailsConfigError(f"RetryPolicy(inherit_deadline={self.inherit_deadline!r}): True or False is allowed")

    def step(self, attempt: int) -> float:
        """Return the exponential step in seconds after the given 1-based attempt, capped and without jitter."""
        # 2.0 ** 1024 overflows: nobody's cap is beyond 2**62 seconds
        return float(min(self.cap, self.base * 2.0 ** min(attempt - 1, 62)))

    def delay(self, attempt: int, fraction: float, *, previous: float | None = None, retry_after: float | None = None) -> float:
        """Return the seconds to wait after the given failed attempt.

        Args:
            attempt: the attempt that failed, 1-based.
            fraction: a uniform random number in ``[0, 1)``.
            previous: the wait before this attempt in seconds, for ``decorrelated``.
            retry_after: seconds that the dependency asked for: a floor, itself capped; the jitter is put on top of it
                (at most as much again, within the cap), so that those who were told the same time do not come back together.
        """
        step = longest = self.step(attempt)
        if self.jitter == "full":
            wait = step * fraction
        elif self.jitter == "equal":
            wait = step / 2 + step / 2 * fraction
        elif self.jitter == "decorrelated":
            low = self.base
            high = max(low, 3 * (previous if previous is not None else self.base))
            longest = min(self.cap, high)
            wait = min(self.cap, low + (high - low) * fraction)
        else:
            wait = step
        if retry_after is not None and retry_after > 0:
            # scaled, not cut off: a cut would bring back together those whose own waits are longer than what was asked
            wait = min(self.cap, retry_after + wait * min(1.0, retry_after / longest))
        return wait
