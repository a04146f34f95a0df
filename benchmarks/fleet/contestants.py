"""Three ways to retry."""

from __future__ import annotations

import random

from celery_guardrails.policy.classification import RETRYABLE, Classification
from celery_guardrails.policy.delivery import Delivery, Travel
from celery_guardrails.policy.lease import Claim, ClaimState
from celery_guardrails.policy.occupancy import refused
from celery_guardrails.policy.resource import Ask, Resource, ResourceState, ResourceView, Tell, ask, tell, view
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import (
    HandBack,
    Limits,
    NotStarted,
    Outcome,
    Raised,
    RetryIn,
    Returned,
    Run,
    Verdict,
    decide,
    effect_of,
)
from celery_guardrails.worker.pausing import must_pause

from .simulation import Message

__all__ = ["FixedDelay", "Guarded", "PlainCelery"]

#: Seconds between two looks of a process at the resource, as in celery_guardrails.worker.pausing.
CALM, ALERT = 1.0, 0.5
#: The lease of ``guardrails_lease_seconds``; no call here takes as long.
_LEASE = 60.0
#: Simulated seconds begin at nothing; the policy's clock is a unix time, where nothing means never.
_EPOCH = 1_700_000_000.0


class _Plain:
    """What plain Celery and its like have in common: a worker takes a message and calls."""

    looks = False
    max_retries: int

    def delay(self, message: Message) -> float:
        """Return the seconds before the next attempt."""
        raise NotImplementedError

    def admit(self, message: Message, holder: str, process: int, now: float) -> float | None:
        """Everyone may call."""
        return None

    def ended(self, message: Message, holder: str, succeeded: bool, now: float) -> float | None:
        """Try again so many times."""
        return None if succeeded or message.attempts >= self.max_retries else self.delay(message)

    def pauses(self, process: int) -> bool:
        """Nobody waits."""
        return False

    def look(self, process: int, now: float) -> float:
        """Nobody looks."""
        raise NotImplementedError


class PlainCelery(_Plain):
    """``autoretry_for`` with ``retry_backoff=True``, ``retry_backoff_max=600``, ``retry_jitter=True`` and ``max_retries=12``.

    The formula is that of ``celery.utils.time.get_exponential_backoff_interval``.
    """

    name = "plain Celery, backoff and jitter"
    max_retries = 12

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def delay(self, message: Message) -> float:
        """Back off exponentially, in whole seconds."""
        return float(self.rng.randrange(min(600, 2**message.attempts) + 1))


class FixedDelay(_Plain):
    """``self.retry(countdown=5, max_retries=5)``: what is written when nobody thinks of it."""

    name = "fixed delay of 5 s, 5 retries"
    max_retries = 5

    def __init__(self, seed: int) -> None:
        """Take no seed: nothing is left to chance."""

    def delay(self, message: Message) -> float:
        """Wait as long as always."""
        return 5.0


class Guarded:
    """The policy of this project, as it is: verdict, retry policy and resource, each with its defaults.

    The resource's state is what a store would hold, and every ask is one atomic step of it. Processes look at it as the worker's
    main process does: every second, twice a second while something is wrong; meanwhile they take nothing from the queue.

    Args:
        seed: of the jitter.
        resource: with its settings.
        retry: policy of the task.
    """

    name = "guardrails"
    looks = True

    def __init__(self, seed: int, *, resource: Resource | None = None, retry: RetryPolicy | None = None) -> None:
        self.rng = random.Random(seed)
        self.resource = Resource("dependency") if resource is None else resource
        self.limits = Limits(retry=RetryPolicy() if retry is None else retry, resource=self.resource)
        self.asked = Ask(self.resource)
        self.state = ResourceState()
        self.running = 0
        #: When the breaker opened, closed or opened again, and how many times in a row it has.
        self.moves: list[tuple[float, int]] = []
        self.views: dict[int, ResourceView] = {}
        self.paused: set[int] = set()

    def admit(self, message: Message, holder: str, process: int, now: float) -> float | None:
        """Ask the resource, in the step that claims the key."""
        first = not message.attempts
        self.state, refusal = ask(
            self.state, self.asked, holder=holder, first=first, lease=_LEASE, running=self.running, now=_EPOCH + now
        )
        verdict = self.decide(message, holder, _CLAIMED if refusal is None else refused(_CLAIMED, refusal), NotStarted(), now)
        if isinstance(verdict, HandBack):
            return verdict.delay
        assert isinstance(verdict, Run)
        self.running += 1
        return None

    def ended(self, message: Message, holder: str, succeeded: bool, now: float) -> float | None:
        """Tell the resource, and ask for the verdict."""
        outcome: Outcome = Returned() if succeeded else _FAILED
        self.running -= 1
        before = self.state.breaker
        told = Tell(self.resource, effect_of(outcome), self.rng.random(), self.asked.cost if message.attempts else 0.0)
        self.state = tell(self.state, told, holder=holder, now=_EPOCH + now)
        if self.state.breaker.opened != before.opened:
            self.moves.append((now, self.state.breaker.opened))
        if succeeded:
            return None
        verdict = self.decide(message, holder, _CLAIMED, outcome, now)
        return verdict.delay if isinstance(verdict, RetryIn) else None

    def decide(self, message: Message, holder: str, claim: Claim, outcome: Outcome, now: float) -> Verdict:
        """Return the verdict of the one function that decides in a worker too."""
        travel = Travel(
            key=message.task_id,
            attempts=message.attempts,
            deferrals=message.deferrals,
            first=_EPOCH + message.born,
            waited=message.waited,
        )
        delivery = Delivery(message.task_id, "call", message.task_id, None, holder, "dependency", travel)
        return decide(delivery, claim, outcome, self.limits, now=_EPOCH + now, fraction=self.rng.random())

    def pauses(self, process: int) -> bool:
        """Whether the process saw a resource that lets nobody in."""
        return process in self.paused

    def look(self, process: int, now: float) -> float:
        """Take messages from the queue or not."""
        seen = view(self.resource, self.state, running=self.running, now=_EPOCH + now)
        if must_pause(seen, self.views.get(process)):
            self.paused.add(process)
        else:
            self.paused.discard(process)
        self.views[process] = seen
        return ALERT if seen.why else CALM


_CLAIMED = Claim(ClaimState.CLAIMED)
_FAILED = Raised(Classification(RETRYABLE))
