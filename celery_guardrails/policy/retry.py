"""How long to wait before the next attempt.

The jitters are those of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), with ``n`` from 0 for the first failure:

* ``full``: uniform in ``[0, min(cap, base * 2**n)]``
* ``equal``: half of the exponential step, plus a uniform half of it
* ``decorrelated``: uniform in ``[base, min(cap, 3 * previous)]``, ``previous`` beginning with ``base``
* ``none``: the exponential step itself

One thing is different: the article draws the decorrelated wait from ``[base, 3 * previous]`` and cuts it at the cap, so that in
the end two thirds of all wait exactly the cap, together. Here the range ends at the cap and the draw stays even.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import GuardrailsConfigError

__all__ = ["JITTERS", "RetryPolicy"]

JITTERS = ("full", "equal", "decorrelated", "none")
#: Where the last tenth of the cap begins: room to spread those who were told to wait as long as the cap, or longer.
_LAST_TENTH = 0.9


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
            retry_after: seconds that the dependency asked for: a floor. Those who were told the same time are spread over
                the seconds after it: as many as this attempt's own longest wait, or as were asked for where that is more, but
                never beyond the cap. A wish of the cap or more cannot be granted and spread at once; of these waits the last
                tenth of the cap is used. Without jitter it is the longer of the two waits, up to the cap.
        """
        low, longest = 0.0, self.step(attempt)
        if self.jitter == "none":
            return min(self.cap, max(longest, retry_after or 0.0))
        if self.jitter == "equal":
            low = longest / 2
        elif self.jitter == "decorrelated":
            low = self.base
            longest = min(self.cap, max(low, 3 * (low if previous is None else previous)))
        if retry_after is not None and retry_after > 0:
            low, longest = self._after(retry_after, longest)
        return min(self.cap, low + (longest - low) * fraction)

    def _after(self, asked: float, longest: float) -> tuple[float, float]:
        """Return the range of the waits of those who were asked for ``asked`` seconds.

        It is a range of its own and no ``max()`` or ``min()`` of two waits: a cut brings together all whose waits lie beyond it.
        """
        low = asked if asked < self.cap else _LAST_TENTH * self.cap
        return low, min(self.cap, low + max(asked, longest))
