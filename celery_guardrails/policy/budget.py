"""How many retries a resource is spared: a budget that first attempts pay into.

The form is that of Finagle's ``RetryBudget`` (Twitter, 2016) and Linkerd's: every first attempt pays ``ratio`` of a token in, every
retry takes one out, tokens live for ``window`` seconds, and a floor keeps retries possible where traffic is low. There floor and
payments are added; here the larger of the two counts, so that above ``min_per_second / ratio`` first attempts a second the
calls stay at or below ``1 + ratio`` times the first attempts, whatever the retry settings of the tasks are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import GuardrailsConfigError
from .window import Window

__all__ = ["BudgetState", "RetryBudget", "check_numbers", "is_number"]


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
        window: seconds over which both are counted; at least 1.
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


@dataclass(frozen=True)
class BudgetState:
    """What was paid in and taken out.

    Both are counted in the same buckets: were what was spent to fade sooner than what paid for it, it would be spent again.

    Args:
        firsts: first attempts.
        spent: tokens that retries took.
    """

    firsts: Window = field(default_factory=Window)
    spent: Window = field(default_factory=Window)

    def allowance(self, budget: RetryBudget, now: float) -> float:
        """Return the tokens of the present window, taken ones included."""
        return max(budget.ratio * self.firsts.count(now, budget.window), budget.min_per_second * budget.window)

    def left(self, budget: RetryBudget, now: float) -> float:
        """Return the tokens that retries may still take."""
        return max(0.0, self.allowance(budget, now) - self.spent.count(now, budget.window))

    def affords(self, budget: RetryBudget, cost: float, now: float) -> bool:
        """Whether a retry may go; one that costs more than there ever is may when nothing was spent."""
        allowance = self.allowance(budget, now)
        return self.spent.count(now, budget.window) + min(cost, allowance) <= allowance

    def paid(self, budget: RetryBudget, now: float) -> BudgetState:
        """Return the state after a first attempt."""
        return self._counted(1.0, 0.0, budget.window, now)

    def taken(self, budget: RetryBudget, cost: float, now: float) -> BudgetState:
        """Return the state after a retry."""
        return self._counted(0.0, cost, budget.window, now)

    def _counted(self, firsts: float, spent: float, window: float, now: float) -> BudgetState:
        return BudgetState(self.firsts.add(firsts, now, window), self.spent.add(spent, now, window))
