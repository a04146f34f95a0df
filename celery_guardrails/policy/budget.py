"""How many retries a resource is spared: a bucket of tokens that first attempts pay into.

As in Finagle's ``RetryBudget`` (Twitter, 2016) and Linkerd's, every first attempt pays ``ratio`` of a token in, every retry takes
one out, and a floor keeps retries possible where traffic is low. Two things are other than there. Floor and payments are not added:
the larger of the two counts, so that above ``min_per_second / ratio`` first attempts a second the calls stay at or below
``1 + ratio`` times the first attempts, whatever the retry settings of the tasks are. And first attempts pay for
retries at their own time: what is not used is not kept for a window, or a fleet that has done well for ten seconds at a thousand
calls a second would have a thousand retries to spare, and spend them at the very moment that the resource dies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import GuardrailsConfigError

__all__ = ["BudgetState", "RetryBudget", "check_numbers", "is_number"]

#: Tokens: what sums of tenths, and of unix times, are off by at most.
_ROUNDING = 1e-4


def is_number(value: object) -> bool:
    """Whether a value is a finite number that is not negative."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def check_numbers(options: object, **rules: tuple[str, Callable[[Any], bool]]) -> None:
    """Refuse options that are no numbers in their ranges; each rule is what is allowed, in words and as a test.

    Raises:
        GuardrailsConfigError: naming the option, its value and what is allowed.
    """
    for name, (allowed, test) in rules.items():
        value = getattr(options, name)
        if not (is_number(value) and test(value)):
            raise GuardrailsConfigError(f"{type(options).__name__}({name}={value!r}): {allowed} is allowed")


@dataclass(frozen=True)
class RetryBudget:
    """How many retries may go to a resource, by the whole fleet.

    Args:
        ratio: retries for each first attempt, from 0 to 1.
        min_per_second: retries a second that are allowed however few first attempts there are; above 0.
        window: seconds for which the floor's tokens are saved up; at least 1. The bucket holds ``min_per_second * window`` tokens.
        throttled_cost: what a retry costs whose last attempt was throttled (429 and its like), at least 1; others cost 1. The
            AWS SDKs charge kinds of errors differently as well (retry mode ``standard``: 5 of 500, and 10 after a timeout).

    Raises:
        GuardrailsConfigError: for a value outside its range.
    """

    ratio: float = 0.1
    min_per_second: float = 1.0
    window: float = 10.0
    throttled_cost: float = 2.0

    def __post_init__(self) -> None:
        check_numbers(
            self,
            ratio=("a number from 0 to 1", lambda v: v <= 1),
            min_per_second=("a number above 0", lambda v: v > 0),
            window=("a number of seconds of at least 1", lambda v: v >= 1),
            throttled_cost=("a number of at least 1", lambda v: v >= 1),
        )

    @property
    def size(self) -> float:
        """Tokens that the bucket holds."""
        return self.min_per_second * self.window


@dataclass(frozen=True)
class BudgetState:
    """How full the bucket is.

    Args:
        missing: tokens that it is short of being full; more than it holds where a retry cost more than that.
        paid: unix time in seconds up to which the floor has paid, or first attempts in its place.
    """

    missing: float = 0.0
    paid: float = 0.0

    def at(self, budget: RetryBudget, now: float) -> BudgetState:
        """Return the bucket as it stands at a moment."""
        if self.paid - now > budget.window + 1.0:  # a clock was set back
            return BudgetState(self.missing, now)
        if self.paid >= now:
            return self
        return BudgetState(max(0.0, self.missing - budget.min_per_second * (now - self.paid)), now)

    def left(self, budget: RetryBudget, now: float) -> float:
        """Return the tokens that retries may take."""
        return max(0.0, budget.size - self.at(budget, now).missing)

    def affords(self, budget: RetryBudget, cost: float, now: float) -> bool:
        """Whether a retry may go; one that costs more than the bucket holds may when it is full."""
        return self.at(budget, now).missing + min(cost, budget.size) <= budget.size + _ROUNDING

    def _lapsed(self, budget: RetryBudget, paid: float, now: float) -> float:
        """Return what the floor had saved up for time that first attempts have paid for; the dearest retry stays possible."""
        return min(budget.min_per_second * max(0.0, paid - now), max(0.0, budget.size - budget.throttled_cost))

    def after_first(self, budget: RetryBudget, now: float) -> BudgetState:
        """Return the state after a first attempt, which pays in the floor's place for as long as the floor would take for it.

        What the floor has saved up lapses by that: where there are many first attempts, a token or two are enough to draw on.
        """
        state = self.at(budget, now)
        paid = max(state.paid, min(now + budget.window, state.paid + budget.ratio / budget.min_per_second))
        return BudgetState(max(self._lapsed(budget, paid, now), state.missing - budget.ratio), paid)

    def after_retry(self, budget: RetryBudget, cost: float, now: float) -> BudgetState:
        """Return the state after a retry."""
        state = self.at(budget, now)
        return BudgetState(state.missing + cost, state.paid)

    def after_success(self, budget: RetryBudget, cost: float, now: float) -> BudgetState:
        """Return the state after a retry that has succeeded: it gets back what it had cost.

        A resource that answers needs no protection from those who were refused before: they come back as fast as it serves
        them, and the budget bounds only how many of them are on the way at once. While it is down none succeeds, and none
        is paid back. The AWS SDKs do the same (retry mode ``standard``, ``release_retry_quota`` of botocore/retries/standard.py).
        """
        state = self.at(budget, now)
        return BudgetState(min(state.missing, max(self._lapsed(budget, state.paid, now), state.missing - cost)), state.paid)
