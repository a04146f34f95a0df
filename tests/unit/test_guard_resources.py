"""What the guard asks of a task's resource, and what it tells it, in each of the ways in which an execution may end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from celery_guardrails.config import Settings
from celery_guardrails.guard import ErrorReport
from celery_guardrails.integration.running import GuardedRun
from celery_guardrails.policy.breaker import CircuitBreaker, Condition
from celery_guardrails.policy.budget import RetryBudget
from celery_guardrails.policy.classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from celery_guardrails.policy.delivery import Travel
from celery_guardrails.policy.lease import ClaimState, RecordState
from celery_guardrails.policy.resource import Resource, ResourceView
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import (
    Cancelled,
    Complete,
    DeadLetterNow,
    HandBack,
    Limits,
    NotStarted,
    Outcome,
    Raised,
    Rejected,
    Resubmitted,
    RetryIn,
    Returned,
    Run,
    Stopped,
)
from celery_guardrails.stores.memory import MemoryStore
from tests.unit.test_guard import Bench, dead, waiting

RESOURCE = Resource("api", breaker=CircuitBreaker(min_calls=100, window=3600.0), max_concurrency=1)
RETRY = RetryPolicy(max_attempts=3, base=2.0, cap=60.0, jitter="none", deadline=3600.0)
LIMITS = Limits(retry=RETRY, resource=RESOURCE)
BUSY = Raised(Classification(THROTTLED, rule="test"))
BROKEN = Raised(Classification(RETRYABLE, rule="test"))
HOPELESS = Raised(Classification(PERMANENT, rule="test"))


def _watched(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.log.append(name)
        return getattr(MemoryStore, name)(self, *args, **kwargs)

    return call


_NAMES = ("claim", "complete", "release", "reset", "renew", "tell")
Watched = type("Watched", (MemoryStore,), {name: _watched(name) for name in _NAMES})


class ResourceBench(Bench):
    """A guard on memory that has a resource; the store's clock may be ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0
        self.store = self.guard.store = Watched(now=lambda: self.clock.now() + self.ahead)  # type: ignore[assignment]
        self.store.log = self.log  # type: ignore[attr-defined]

    def begin(self, holder: str = "a", **options: Any) -> Any:
        """Admit a delivery that may run; return it and its claim."""
        delivery = self.delivery(holder, **options)
        verdict, claim = self.guard.admit(delivery, LIMITS)
        assert isinstance(verdict, Run)
        assert self.view().running == 1
        self.log.clear()
        return delivery, claim

    def view(self) -> ResourceView:
        (view,) = self.store.view([RESOURCE])
        return view

    def told(self) -> tuple[float, float]:
        """Calls and failures that were counted; the slot is free again."""
        view = self.view()
        assert view.running == 0
        return view.calls, view.failures


@pytest.fixture
def bench() -> ResourceBench:
    return ResourceBench()


def test_a_task_with_a_resource_costs_as_many_calls_of_the_store_as_one_without(bench: ResourceBench) -> None:
    delivery = bench.delivery()
    _, claim = bench.guard.admit(delivery, LIMITS)
    assert bench.guard.settle(delivery, claim, Returned(42), LIMITS) == Complete()
    assert bench.log == ["claim", "complete"]


def test_who_is_refused_is_handed_back_and_charged_with_nothing(bench: ResourceBench) -> None:
    bench.store.force("api", Condition.OPEN, 20.0)
    verdict, claim = bench.guard.admit(bench.delivery(travel=Travel(attempts=1, first=bench.clock.now(), throttled=True)), LIMITS)
    assert isinstance(verdict, HandBack)
    assert (claim.state, verdict.why, 20.0 <= verdict.delay <= 30.0) == (ClaimState.REFUSED, "breaker", True)
    assert bench.log == ["claim", "delay"]
    assert bench.store.lookup("key") is None, "it has no lease"
    travel = Travel.from_headers(waiting(bench).headers)
    assert (travel.attempts, travel.deferrals, travel.throttled) == (1, 1, True)


def test_who_finds_no_slot_waits_and_then_runs(bench: ResourceBench) -> None:
    delivery, claim = bench.begin()
    other = bench.delivery("b", "u")
    object.__setattr__(other, "key", "other")
    verdict, _ = bench.guard.admit(other, LIMITS)
    assert isinstance(verdict, HandBack)
    assert verdict.why == "slots"
    bench.guard.settle(delivery, claim, Returned(1), LIMITS)
    assert isinstance(bench.guard.admit(other, LIMITS)[0], Run)


def test_who_is_too_late_is_dead_lettered_whatever_the_resource_says(bench: ResourceBench) -> None:
    bench.store.force("api", Condition.OPEN, 20.0)
    verdict, _ = bench.guard.admit(bench.delivery(travel=Travel(first=bench.clock.now() - 4000)), LIMITS)
    assert verdict == DeadLetterNow("deadline", 0)
    assert bench.log == ["claim", "dead_letter", "reset"]


def test_who_is_too_late_by_the_stores_clock_is_dead_lettered_under_a_lease(bench: ResourceBench) -> None:
    bench.ahead = 100_000.0
    bench.store.force("api", Condition.OPEN, 20.0)
    delivery = bench.delivery(travel=Travel(first=bench.clock.now() + bench.ahead - 4000))
    leased: list[Any] = []
    bury = bench.broker.dead_letter
    bench.broker.dead_letter = lambda *args: (leased.append(bench.store.lookup("key")), bury(*args))  # type: ignore[assignment,func-returns-value]
    verdict, claim = bench.guard.admit(delivery, LIMITS)
    assert (verdict, claim.state) == (DeadLetterNow("deadline", 0), ClaimState.CLAIMED)
    assert bench.log == ["claim", "claim", "dead_letter", "reset"]
    assert [record.state for record in leased] == [RecordState.LEASED]
    assert dead(bench)[1].reason == "deadline"
    assert bench.store.lookup("key") is None
    assert bench.view().running == 0


@pytest.mark.parametrize(
    ("outcome", "calls", "failures"),
    [
        (Returned(1), 1, 0),
        (BROKEN, 1, 1),
        (BUSY, 0, 0),
        (HOPELESS, 0, 0),
        (Resubmitted(RETRYABLE), 1, 1),
        (Resubmitted(THROTTLED), 0, 0),
        (Resubmitted(), 0, 0),
        (Cancelled(), 0, 0),
        (Rejected(requeue=True), 0, 0),
        (Rejected(requeue=False), 0, 0),
        (Stopped(), 0, 0),
        (NotStarted(), 0, 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_only_what_says_something_of_the_resource_counts_and_every_end_gives_the_slot_back(
    bench: ResourceBench, outcome: Outcome, calls: int, failures: int
) -> None:
    delivery, claim = bench.begin()
    if isinstance(outcome, NotStarted):
        bench.guard.surrender(delivery, LIMITS)
    else:
        bench.guard.settle(delivery, claim, outcome, LIMITS)
    assert bench.told() == (calls, failures)
    assert "tell" not in bench.log, "it goes with what settles the key"


def test_the_last_attempt_counts_as_the_others_do(bench: ResourceBench) -> None:
    delivery, claim = bench.begin(travel=Travel(attempts=2, first=bench.clock.now()))
    assert bench.guard.settle(delivery, claim, BROKEN, LIMITS) == DeadLetterNow("exhausted", 3)
    assert bench.told() == (1, 1)


def test_a_crash_gives_the_slot_back_and_says_nothing(bench: ResourceBench) -> None:
    for crashes in range(1, 4):
        delivery, _ = bench.begin(holder=f"h{crashes}")
        verdict = bench.guard.lost(delivery, LIMITS, ErrorReport("WorkerLostError"))
        assert isinstance(verdict, DeadLetterNow if crashes == 3 else HandBack)
        assert bench.told() == (0, 0)


def test_a_hard_time_limit_counts_as_its_error_says(bench: ResourceBench) -> None:
    delivery, _ = bench.begin()
    assert isinstance(bench.guard.overran(delivery, LIMITS, BROKEN, ErrorReport()), RetryIn)
    assert bench.told() == (1, 1)


def test_a_task_that_another_goes_on_with_gives_its_slot_back(bench: ResourceBench) -> None:
    delivery, _ = bench.begin()
    bench.guard.hand_over(delivery, LIMITS)
    assert bench.told() == (0, 0)


@pytest.mark.parametrize("outcome", [Returned(1), HOPELESS, BROKEN])
def test_who_was_overtaken_gives_its_slot_back_all_the_same(bench: ResourceBench, outcome: Outcome) -> None:
    delivery, claim = bench.begin()
    bench.store.break_lease("key")
    bench.store.claim("key", holder="another", fingerprint="f", lease=60.0)
    bench.guard.settle(delivery, claim, outcome, LIMITS)
    assert bench.view().running == 0
    record = bench.store.lookup("key")
    assert record is not None
    assert record.holder == "another"


def test_a_retry_after_a_throttled_attempt_costs_more_and_the_next_does_not(bench: ResourceBench) -> None:
    left = bench.view().budget
    assert left == 10.0
    delivery, claim = bench.begin()
    assert bench.guard.settle(delivery, claim, BUSY, LIMITS) == RetryIn(2.0, 1, throttled=True)
    copy = Travel.from_headers(waiting(bench, 2.0).headers)
    assert copy.throttled
    delivery, claim = bench.begin("b", travel=copy)
    assert bench.view().budget == left - RetryBudget().throttled_cost
    assert bench.guard.settle(delivery, claim, BROKEN, LIMITS) == RetryIn(4.0, 2, throttled=False)
    letters = list(bench.broker.browse("q"))
    bench.clock.advance(4.0)
    copies = [Travel.from_headers(letter.message.headers) for letter in bench.broker.browse("q") if letter not in letters]
    assert [copy.throttled for copy in copies] == [False]
    assert bench.view().budget == left, "the floor has paid for it meanwhile"
    bench.begin("c", travel=copies[0])
    assert bench.view().budget == left - 1


@pytest.mark.parametrize("commits", [True, False])
def test_an_atomic_task_tells_when_it_has_committed_and_not_before(bench: ResourceBench, commits: bool) -> None:
    @contextmanager
    def transaction(database: str | None) -> Iterator[Any]:
        yield SimpleNamespace(complete=lambda *_, **__: bench.log.append("write") or True)
        assert bench.view().running == 1
        if not commits:
            raise ConnectionError
        bench.log.append("commit")

    delivery = bench.delivery()
    rails = SimpleNamespace(
        guard=bench.guard,
        settings=Settings(),
        classify=lambda exc, **_: Classification(PERMANENT),
        transactional=lambda _: SimpleNamespace(transaction=transaction),
        limits_of=lambda _: LIMITS,
        emit=bench.events.append,
    )
    options = SimpleNamespace(retention=None, retryable=(), permanent=(), atomic=True)
    task = SimpleNamespace(name="tasks.t", guardrails=rails, guard_options=options, _body=lambda args, kwargs: 42)
    run = GuardedRun(task, delivery)
    if commits:
        assert run.run((), {}) == 42
        assert bench.log == ["claim", "write", "commit", "tell"]
        assert bench.told() == (1, 0)
    else:
        with pytest.raises(ConnectionError):
            run.run((), {})
        assert "tell" not in bench.log
        assert bench.told() == (0, 0)
