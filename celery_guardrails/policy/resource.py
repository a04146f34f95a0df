"""What many tasks share and none may overrun: a resource, with its breaker, retry budget, slots and rate.

The transitions here are the specification of every store, as those of :mod:`.lease` are for keys: an execution *asks* its
resource in the same step in which it claims its key, and is *let in* or told why not; when it ends it *tells* the resource how
it went and gives its slot back. Who is refused has not begun: nothing of its key or its message changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..errors import GuardrailsConfigError
from .breaker import BreakerState, CircuitBreaker, Condition, Effect
from .budget import BudgetState, RetryBudget
from .rate import Rate

__all__ = ["Ask", "Refusal", "Resource", "ResourceState", "ResourceView", "Tell", "ask", "tell", "view"]

#: Why an execution must wait, in the order in which it is looked at.
BREAKER, BUDGET, SLOTS, RATE = "breaker", "budget", "slots", "rate"
#: Seconds after which one that found no token, or no slot, may ask again; the caller doubles it from time to time.
_ASK_AGAIN = 0.5


@dataclass(frozen=True)
class Resource:
    """Something that tasks call and that has limits of its own: a payment gateway, a database, an API.

    Args:
        name: as in ``@guarded_task(resource=name)``.
        retry_budget: of the whole fleet, or None for none.
        breaker: of the whole fleet, or None for none.
        max_concurrency: executions at one time, fleet-wide, or None for no limit.
        rate: calls a second, fleet-wide, or None for no limit.

    Raises:
        GuardrailsConfigError: naming the option, its value and what is allowed.
    """

    name: str
    retry_budget: RetryBudget | None = field(default_factory=RetryBudget)
    breaker: CircuitBreaker | None = field(default_factory=CircuitBreaker)
    max_concurrency: int | None = None
    rate: Rate | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name and len(self.name) <= 200):
            self._refuse("name", self.name, "a text of 1 to 200 characters")
        if not (self.retry_budget is None or isinstance(self.retry_budget, RetryBudget)):
            self._refuse("retry_budget", self.retry_budget, "None or a RetryBudget(...)")
        if not (self.breaker is None or isinstance(self.breaker, CircuitBreaker)):
            self._refuse("breaker", self.breaker, "None or a CircuitBreaker(...)")
        most = self.max_concurrency
        if not (most is None or (isinstance(most, int) and not isinstance(most, bool) and most >= 1)):
            self._refuse("max_concurrency", most, "None or a whole number of at least 1")
        if not (self.rate is None or isinstance(self.rate, Rate)):
            self._refuse("rate", self.rate, "None or a Rate")

    def _refuse(self, option: str, value: object, allowed: str) -> None:
        raise GuardrailsConfigError(f"resource {self.name!r}: {option} = {value!r}: {allowed} is allowed")


@dataclass(frozen=True)
class ResourceState:
    """What a store remembers of a resource, besides who has a slot of it.

    Args:
        breaker: of the resource.
        budget: of its retries.
        arrival: unix time in seconds at which the next call is due by the rate.
        entered: executions that were let in since the state was first kept.
    """

    breaker: BreakerState = field(default_factory=BreakerState)
    budget: BudgetState = field(default_factory=BudgetState)
    arrival: float = 0.0
    entered: int = 0


@dataclass(frozen=True)
class Ask:
    """What an execution asks of its resource before it begins.

    Args:
        resource: its settings.
        throttled: the last attempt was throttled, so a retry costs more.
    """

    resource: Resource
    throttled: bool = False

    @property
    def cost(self) -> float:
        """Tokens that this execution takes of the budget if it is a retry."""
        budget = self.resource.retry_budget
        return budget.throttled_cost if budget is not None and self.throttled else 1.0


@dataclass(frozen=True)
class Tell:
    """What an execution tells its resource when it has ended.

    Args:
        resource: its settings.
        effect: what it says of the resource.
        fraction: uniform random number in ``[0, 1)``, for the breaker's jitter.
        cost: tokens that it took of the budget, 0 for a first attempt; a success gets them back.
        began: unix time in seconds at which it was let in, by the store's clock, or None where nobody knows.
    """

    resource: Resource
    effect: Effect = Effect.NEUTRAL
    fraction: float = 0.0
    cost: float = 0.0
    began: float | None = None


class Refusal(NamedTuple):
    """An execution must wait.

    Args:
        why: ``"breaker"``, ``"budget"``, ``"slots"`` or ``"rate"``.
        wait: seconds before asking again makes sense.
    """

    why: str
    wait: float


def ask(
    state: ResourceState, asked: Ask, *, holder: str, first: bool, lease: float, running: int, now: float
) -> tuple[ResourceState, Refusal | None]:
    """Let an execution in, or say why not; refused, it changes nothing.

    Args:
        state: of the resource.
        asked: what it asks.
        holder: of the execution, which has no slot yet.
        first: it is the first attempt of its key, and no crash went before it.
        lease: seconds for which it has its slot unless renewed.
        running: slots that are taken.
        now: unix time in seconds.
    """
    resource, breaker, budget, arrival = asked.resource, state.breaker, state.budget, state.arrival
    if resource.breaker is not None:
        wait = breaker.wait(holder, first=first, now=now)
        if wait > 0:
            return state, Refusal(BREAKER, wait)
        breaker = breaker.entered(holder, lease=lease, now=now)
    if resource.retry_budget is not None:
        if first:
            budget = budget.after_first(resource.retry_budget, now)
        elif budget.affords(resource.retry_budget, asked.cost, now):
            budget = budget.after_retry(resource.retry_budget, asked.cost, now)
        else:
            return state, Refusal(BUDGET, _ASK_AGAIN)
    if resource.max_concurrency is not None and running >= resource.max_concurrency:
        return state, Refusal(SLOTS, _ASK_AGAIN)
    if resource.rate is not None:
        wait = resource.rate.wait(arrival, now)
        if wait > 0:
            return state, Refusal(RATE, wait)
        arrival = resource.rate.called(arrival, now)
    return ResourceState(breaker, budget, arrival, state.entered + 1), None


def tell(state: ResourceState, told: Tell, *, holder: str, now: float) -> ResourceState:
    """Take in how an execution went; its slot is the store's to give back."""
    breaker, budget = told.resource.breaker, told.resource.retry_budget
    if budget is not None and told.cost and told.effect is Effect.SUCCESS:
        state = replace(state, budget=state.budget.after_success(budget, told.cost, now))
    if breaker is not None:
        state = replace(state, breaker=state.breaker.told(breaker, holder, told.effect, fraction=told.fraction, began=told.began, now=now))
    return state


@dataclass(frozen=True)
class ResourceView:
    """A resource as people see it.

    Args:
        name: of the resource.
        condition: of its breaker; ``"closed"`` where it has none.
        forced: an operator has put it there.
        since: unix time in seconds of the last change.
        until: unix time in seconds at which an open breaker lets probes through, or at which a forced one is left to itself.
        calls: counted in the breaker's window.
        failures: of these.
        budget: tokens that retries may take now; None without a budget.
        running: slots that are taken.
        max_concurrency: slots there are, or None.
        free: calls that the rate allows at once, or None.
        wait: seconds before a first attempt could begin; 0 where it could now.
        why: what it would wait for.
        entered: executions that were let in so far.
        probing: an execution probes a half-open breaker right now.
    """

    name: str
    condition: Condition
    forced: bool = False
    since: float = 0.0
    until: float = 0.0
    calls: float = 0.0
    failures: float = 0.0
    budget: float | None = None
    running: int = 0
    max_concurrency: int | None = None
    free: float | None = None
    wait: float = 0.0
    why: str = ""
    entered: int = 0
    probing: bool = False


def view(resource: Resource, state: ResourceState, *, running: int, now: float) -> ResourceView:
    """Return a resource as people see it."""
    breaker = state.breaker if resource.breaker is not None else BreakerState()
    condition, override = breaker.condition(now), breaker.override(now)
    window = resource.breaker.window if resource.breaker is not None else 1.0
    _, refusal = ask(state, Ask(resource), holder="", first=True, lease=0.0, running=running, now=now)
    return ResourceView(
        name=resource.name,
        condition=condition,
        forced=override is not None,
        since=breaker.since,
        until=breaker.forced_until if override is not None else breaker.until,
        calls=breaker.calls.count(now, window),
        failures=breaker.failures.count(now, window),
        budget=None if resource.retry_budget is None else state.budget.left(resource.retry_budget, now),
        running=running,
        max_concurrency=resource.max_concurrency,
        free=None if resource.rate is None else resource.rate.free(state.arrival, now),
        wait=refusal.wait if refusal is not None else 0.0,
        why=refusal.why if refusal is not None else "",
        entered=state.entered,
        probing=condition is Condition.HALF_OPEN and bool(breaker.probe) and now < breaker.probe_until,
    )
