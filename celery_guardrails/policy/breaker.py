"""The circuit breaker of a resource (Michael Nygard, "Release It!", 2007): closed, open, half-open.

Closed, it counts calls and failures of the last seconds. Open, nothing calls the resource until a moment. From then on it is
half-open: one execution at a time may probe. So many probes that succeed one after the other close it; one that fails opens it
for twice as long, up to a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from .budget import check_numbers
from .window import Window

__all__ = ["BreakerState", "CircuitBreaker", "Condition", "Effect"]

#: Seconds after which one that found a probe under way asks again.
PROBE_WAIT = 1.0
#: Seconds for which a half-open breaker keeps its probes for first attempts: as a probe a retry is an extra call, they are not.
FIRSTS_FIRST = 2.0
#: A breaker stays open longer by up to this part, so that the breakers of many resources do not probe in step.
_JITTER = 0.25


class Condition(str, Enum):
    """Of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Effect(str, Enum):
    """What one execution says of its resource."""

    SUCCESS = "success"
    FAILURE = "failure"
    #: Nothing: a permanent error, a throttled call, a crash, a hand back.
    NEUTRAL = "neutral"


@dataclass(frozen=True)
class CircuitBreaker:
    """When a resource is left alone. Only retryable failures count against it.

    Args:
        failure_rate: part of the calls that must fail, above 0 and up to 1.
        min_calls: calls within the window before the rate means anything.
        window: seconds over which calls are counted; at least 1.
        open_seconds: how long it stays open the first time; doubled each time that a probe fails, up to a quarter longer by chance.
        max_open_seconds: the longest that it stays open before the next probe.
        probes: probes that must succeed one after the other to close it.

    Raises:
        GuardrailsConfigError: for a value outside its range.
    """

    failure_rate: float = 0.5
    min_calls: int = 10
    window: float = 10.0
    open_seconds: float = 5.0
    max_open_seconds: float = 30.0
    probes: int = 2

    def __post_init__(self) -> None:
        check_numbers(
            self,
            failure_rate=("a number above 0 and up to 1", lambda v: 0 < v <= 1),
            min_calls=("a whole number of at least 1", lambda v: isinstance(v, int) and v >= 1),
            window=("a number of seconds of at least 1", lambda v: v >= 1),
            open_seconds=("a number of seconds above 0", lambda v: v > 0),
            max_open_seconds=(f"a number of seconds of at least open_seconds={self.open_seconds!r}", lambda v: v >= self.open_seconds),
            probes=("a whole number of at least 1", lambda v: isinstance(v, int) and v >= 1),
        )

    def open_for(self, opened: int, fraction: float) -> float:
        """Return how many seconds the breaker stays open for the n-th time in a row."""
        step = min(self.max_open_seconds, self.open_seconds * 2.0 ** min(opened - 1, 30))
        return float(step * (1.0 + _JITTER * fraction))


@dataclass(frozen=True)
class BreakerState:
    """What is remembered of one breaker.

    Args:
        opened: times in a row that it has opened; 0 while it is closed.
        until: unix time in seconds from which on it is half-open.
        since: unix time in seconds at which it last opened or closed.
        passed: probes that succeeded since it was half-open.
        probe: holder of the execution that probes, or empty.
        probe_until: unix time in seconds at which that execution's lease ends.
        forced: what an operator has put it to, or None.
        forced_until: unix time in seconds.
        calls: of the window, while closed.
        failures: of the window, while closed.
    """

    opened: int = 0
    until: float = 0.0
    since: float = 0.0
    passed: int = 0
    probe: str = ""
    probe_until: float = 0.0
    forced: Condition | None = None
    forced_until: float = 0.0
    calls: Window = field(default_factory=Window)
    failures: Window = field(default_factory=Window)

    def override(self, now: float) -> Condition | None:
        """Return what an operator has put it to, while that holds."""
        return self.forced if self.forced is not None and now < self.forced_until else None

    def condition(self, now: float) -> Condition:
        """Return the condition at a moment."""
        override = self.override(now)
        if override is not None:
            return override
        if not self.opened:
            return Condition.CLOSED
        # a clock that was set back says nothing of how long it has been open: a probe does
        return Condition.OPEN if self.since <= now < self.until else Condition.HALF_OPEN

    def wait(self, holder: str, *, first: bool, now: float) -> float:
        """Return the seconds before an execution may ask again; 0 where it may call, in a half-open breaker as the probe."""
        condition = self.condition(now)
        if condition is Condition.CLOSED:
            return 0.0
        if condition is Condition.OPEN:
            return (self.until if self.override(now) is None else self.forced_until) - now
        if self.probe not in ("", holder) and now < self.probe_until:
            return PROBE_WAIT
        return 0.0 if first or now < self.since else max(0.0, self.until + FIRSTS_FIRST - now)

    def entered(self, holder: str, *, lease: float, now: float) -> BreakerState:
        """Return the state with an execution let through, as the probe where it is one."""
        if self.condition(now) is not Condition.HALF_OPEN:
            return self
        return replace(self, probe=holder, probe_until=now + lease)

    def renewed(self, holder: str, *, lease: float, now: float) -> BreakerState:
        """Return the state with the probe's lease extended, if it is this holder's."""
        return replace(self, probe_until=now + lease) if holder and self.probe == holder else self

    def told(
        self, breaker: CircuitBreaker, holder: str, effect: Effect, *, fraction: float, now: float, began: float | None = None
    ) -> BreakerState:
        """Return the state after an execution has ended.

        Args:
            breaker: the settings.
            holder: of the execution.
            effect: what it says of the resource.
            fraction: uniform random number in ``[0, 1)``.
            now: unix time in seconds.
            began: unix time in seconds at which it began, or None where nobody knows.
        """
        probing = bool(holder) and self.probe == holder
        state = replace(self, probe="", probe_until=0.0) if probing else self
        if effect is Effect.NEUTRAL or self.override(now) is not None:
            return state
        # who began before it opened, or before it closed again, says nothing new: a call may hang for a minute
        if not probing and began is not None and began < self.since <= now:
            return state
        if self.opened:
            return state._probed(breaker, effect, fraction, now) if probing else state
        calls = self.calls.add(1.0, now, breaker.window)
        failures = self.failures.add(1.0 if effect is Effect.FAILURE else 0.0, now, breaker.window)
        counted, failed = calls.count(now, breaker.window), failures.count(now, breaker.window)
        if effect is Effect.FAILURE and counted >= breaker.min_calls and failed >= breaker.failure_rate * counted:
            return BreakerState(opened=1, until=now + breaker.open_for(1, fraction), since=now)
        return replace(state, calls=calls, failures=failures)

    def _probed(self, breaker: CircuitBreaker, effect: Effect, fraction: float, now: float) -> BreakerState:
        if effect is Effect.FAILURE:
            opened = self.opened + 1
            return replace(self, opened=opened, until=now + breaker.open_for(opened, fraction), since=now, passed=0)
        if self.passed + 1 < breaker.probes:
            return replace(self, passed=self.passed + 1)
        return BreakerState(since=now)

    def put(self, condition: Condition | None, until: float) -> BreakerState:
        """Return the state as an operator wants it; with None it is left to itself again."""
        return replace(self, forced=condition, forced_until=until if condition is not None else 0.0)
