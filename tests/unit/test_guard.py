"""The guard carries verdicts out in the order that loses nothing."""

from __future__ import annotations

from typing import Any

import pytest

from celery_guardrails import events
from celery_guardrails.errors import PublishFailed, StoreUnavailable
from celery_guardrails.guard import ErrorReport, Guard, Patience
from celery_guardrails.policy.classification import PERMANENT, RETRYABLE, Classification
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER, TRAVEL_HEADER, Delivery, RawMessage, Travel
from celery_guardrails.policy.lease import ClaimState, RecordState
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import (
    Cancelled,
    Complete,
    DeadLetterNow,
    Fail,
    HandBack,
    Limits,
    PassThrough,
    Raised,
    Rejected,
    Replay,
    Resubmitted,
    RetryIn,
    Returned,
    Run,
    Skip,
)
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.clock import FakeClock
from celery_guardrails.testing.memory_broker import MemoryBroker
from tests.simulation.fleet import JsonCodec

LIMITS = Limits(retry=RetryPolicy(max_attempts=3, base=2.0, cap=60.0, jitter="none"))
BROKEN = Raised(Classification(RETRYABLE, rule="test"))
HOPELESS = Raised(Classification(PERMANENT, rule="test"))


class Bench:
    """A guard on memory, and everything it does in order."""

    def __init__(self, **patience: float) -> None:
        self.log: list[str] = []
        self.events: list[Any] = []
        self.clock = FakeClock()
        self.store = MemoryStore(now=self.clock.now)
        self.broker = MemoryBroker(["q"], clock=self.clock, on_operation=self._broker)
        self.down: set[str] = set()
        bench = self

        class Watched:
            def __getattr__(self, name: str) -> Any:
                def call(*args: Any, **kwargs: Any) -> Any:
                    bench.log.append(name)
                    if "store" in bench.down or name in bench.down:
                        raise StoreUnavailable("down")
                    return getattr(bench.store, name)(*args, **kwargs)

                return call

        self.guard = Guard(
            store=Watched(),  # type: ignore[arg-type]
            broker=self.broker,
            codec=JsonCodec(),
            clock=self.clock,
            emit=self.events.append,
            lease=60.0,
            node="here/1",
            patience=Patience(**{"complete": 30.0, "release": 5.0, "publish": 5.0, **patience}),
        )

    def _broker(self, point: str) -> None:
        moment, operation = point.split(" ", 1)
        if moment == "before":
            self.log.append(operation)
            if "broker" in self.down:
                raise PublishFailed("down")

    def delivery(self, holder: str = "a", task_id: str = "t", travel: Travel | None = None, **headers: Any) -> Delivery:
        travel = travel or Travel(first=self.clock.now())
        raw = RawMessage(b"body", "application/json", "utf-8", {"id": task_id, **headers}, {"correlation_id": "c"}, "", "q")
        return Delivery(task_id, "tasks.t", "key", "f", holder, "q", travel, raw=raw)

    def seen(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def waiting(bench: Bench, seconds: float = 1e6) -> RawMessage:
    """The one message that waits, after its delay."""
    bench.clock.advance(seconds)
    (letter,) = list(bench.broker.browse("q"))
    return letter.message


def dead(bench: Bench) -> tuple[RawMessage, DeathCertificate]:
    (letter,) = list(bench.broker.browse("q.dead"))
    certificate = DeathCertificate.from_header(letter.message.headers[DEAD_LETTER_HEADER])
    assert certificate is not None
    return letter.message, certificate


def test_a_success_costs_two_calls_of_the_store_and_none_of_the_broker(bench: Bench) -> None:
    delivery = bench.delivery()
    verdict, claim = bench.guard.admit(delivery, LIMITS)
    assert verdict == Run(1, None)
    assert bench.guard.settle(delivery, claim, Returned(42), LIMITS, retention=10.0) == Complete()
    assert bench.log == ["claim", "complete"]


def test_a_duplicate_of_a_completed_key_costs_one_call(bench: Bench) -> None:
    first = bench.delivery()
    _, claim = bench.guard.admit(first, LIMITS)
    bench.guard.settle(first, claim, Returned(42), LIMITS)
    bench.log.clear()
    verdict, _ = bench.guard.admit(bench.delivery("b", "other"), LIMITS)
    assert isinstance(verdict, Replay)
    assert bench.guard.codec.decode(verdict.result) == 42
    assert bench.log == ["claim"]


def test_a_held_key_is_handed_back_without_a_charge(bench: Bench) -> None:
    bench.guard.admit(bench.delivery("a"), LIMITS)
    verdict, _ = bench.guard.admit(bench.delivery("b"), LIMITS)
    assert isinstance(verdict, HandBack)
    travel = Travel.from_headers(waiting(bench).headers)
    assert (travel.attempts, travel.deferrals, travel.deliveries, travel.key) == (0, 1, 1, "key")


def test_a_failure_is_charged_before_its_copy_is_published(bench: Bench) -> None:
    delivery = bench.delivery(retries=0)
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.log.clear()
    assert bench.guard.settle(delivery, claim, BROKEN, LIMITS) == RetryIn(2.0, 1)
    assert bench.log == ["release", "delay"]
    copy = waiting(bench, 2.0)
    travel = Travel.from_headers(copy.headers)
    assert (travel.attempts, travel.deferrals, travel.waited) == (1, 0, 2.0)
    assert copy.headers["retries"] == 1
    assert (copy.body, copy.properties) == (b"body", {"correlation_id": "c"})


def test_a_copy_that_waits_again_carries_no_history_of_the_broker(bench: Bench) -> None:
    delivery = bench.delivery(**{"x-death": [{}], "x-first-death-queue": "d", "x-delivery-count": 3, "mine": 1})
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.guard.settle(delivery, claim, BROKEN, LIMITS)
    assert set(waiting(bench).headers) == {"id", "mine", "retries", TRAVEL_HEADER}


def test_a_dead_letter_is_written_before_the_lease_is_dropped(bench: Bench) -> None:
    delivery = bench.delivery(mine=1)
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.log.clear()
    report = ErrorReport("app.Declined", "no", 'Traceback\n  File "/x/app.py", line 3, in charge\n', "own")
    assert bench.guard.settle(delivery, claim, HOPELESS, LIMITS, error=report) == DeadLetterNow("permanent", 1)
    assert bench.log == ["renew", "dead_letter", "reset"]
    message, certificate = dead(bench)
    assert (message.body, message.headers["mine"], message.content_type) == (b"body", 1, "application/json")
    assert (certificate.reason, certificate.error, certificate.message) == ("permanent", "app.Declined", "no")
    assert (certificate.key, certificate.task, certificate.task_id, certificate.queue) == ("key", "tasks.t", "t", "q")
    assert (certificate.attempts, certificate.worker) == (1, "here/1")
    assert bench.store.lookup("key") is None


def test_the_last_attempt_ends_in_the_dead_letter_queue(bench: Bench) -> None:
    delivery = bench.delivery(travel=Travel(attempts=2))
    _, claim = bench.guard.admit(delivery, LIMITS)
    assert bench.guard.settle(delivery, claim, BROKEN, LIMITS) == DeadLetterNow("exhausted", 3)


def test_two_copies_of_one_message_share_their_attempts(bench: Bench) -> None:
    for expected in (RetryIn(2.0, 1), RetryIn(4.0, 2), DeadLetterNow("exhausted", 3)):
        stale = bench.delivery(holder=str(expected))  # this copy never hears of the others' attempts
        _, claim = bench.guard.admit(stale, LIMITS)
        assert bench.guard.settle(stale, claim, BROKEN, LIMITS) == expected


def test_a_broker_that_does_not_confirm_leaves_the_message_where_it_is(bench: Bench) -> None:
    delivery = bench.delivery()
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.down.add("broker")
    with pytest.raises(PublishFailed):
        bench.guard.settle(delivery, claim, HOPELESS, LIMITS)
    assert bench.store.lookup("key").state is RecordState.LEASED  # type: ignore[union-attr]
    assert 1.0 < sum(bench.clock.slept) <= 5.0, "it tries as long as its patience lasts"
    assert not bench.seen(events.DeadLettered)


def test_a_broker_that_comes_back_in_time_gets_the_letter(bench: Bench) -> None:
    delivery = bench.delivery()
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.down.add("broker")
    sleep = bench.clock.sleep

    def mended(seconds: float) -> None:
        sleep(seconds)
        if len(bench.clock.slept) == 2:
            bench.down.clear()

    bench.clock.sleep = mended  # type: ignore[method-assign]
    bench.guard.settle(delivery, claim, HOPELESS, LIMITS)
    assert dead(bench)[1].reason == "permanent"


def test_a_store_that_is_away_defers_the_message(bench: Bench) -> None:
    bench.down.add("store")
    verdict, claim = bench.guard.admit(bench.delivery(), LIMITS)
    assert claim.state is ClaimState.UNAVAILABLE
    assert isinstance(verdict, HandBack)
    assert Travel.from_headers(waiting(bench).headers).attempts == 0
    assert bench.seen(events.StoreFailed)


def test_a_store_that_is_away_lets_the_message_run_where_the_setting_says_open(bench: Bench) -> None:
    bench.down.add("store")
    verdict, _ = bench.guard.admit(bench.delivery(), Limits(store_failure="open"))
    assert isinstance(verdict, Run)
    assert not verdict.guarded


def test_a_failure_of_an_unguarded_run_is_dead_lettered_all_the_same(bench: Bench) -> None:
    limits = Limits(store_failure="open")
    delivery = bench.delivery()
    bench.down.add("claim")
    _, claim = bench.guard.admit(delivery, limits)
    bench.down.clear()
    assert bench.guard.settle(delivery, claim, HOPELESS, limits) == DeadLetterNow("permanent", 1)


def test_a_completion_waits_for_a_store_that_is_away(bench: Bench) -> None:
    delivery = bench.delivery()
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.down.add("complete")
    sleep = bench.clock.sleep

    def mended(seconds: float) -> None:
        sleep(seconds)
        if sum(bench.clock.slept) > 10:
            bench.down.clear()

    bench.clock.sleep = mended  # type: ignore[method-assign]
    assert bench.guard.settle(delivery, claim, Returned(1), LIMITS) == Complete()
    assert bench.store.lookup("key").state is RecordState.COMPLETED  # type: ignore[union-attr]


def test_a_completion_that_can_never_be_recorded_is_acknowledged_all_the_same(bench: Bench) -> None:
    delivery = bench.delivery()
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.down.add("complete")
    assert bench.guard.settle(delivery, claim, Returned(1), LIMITS) == Complete()
    assert not bench.seen(events.Completed)


def test_a_holder_that_lost_its_lease_leaves_the_others_result(bench: Bench) -> None:
    slow, quick = bench.delivery("slow"), bench.delivery("quick")
    _, old = bench.guard.admit(slow, LIMITS)
    bench.clock.advance(61)
    _, new = bench.guard.admit(quick, LIMITS)
    assert new.takeover
    assert new.fence > old.fence
    bench.guard.settle(quick, new, Returned("theirs"), LIMITS)
    assert isinstance(bench.guard.settle(slow, old, Returned("mine"), LIMITS), HandBack)
    assert bench.seen(events.LeaseTaken)
    verdict, _ = bench.guard.admit(bench.delivery("third"), LIMITS)
    assert isinstance(verdict, Replay)
    assert bench.guard.codec.decode(verdict.result) == "theirs"


def test_a_holder_that_lost_its_lease_does_not_bury_what_another_runs(bench: Bench) -> None:
    slow, quick = bench.delivery("slow"), bench.delivery("quick")
    _, old = bench.guard.admit(slow, LIMITS)
    bench.clock.advance(61)
    _, new = bench.guard.admit(quick, LIMITS)
    assert isinstance(bench.guard.settle(slow, old, HOPELESS, LIMITS), HandBack)
    assert not list(bench.broker.browse("q.dead"))
    assert bench.guard.settle(quick, new, Returned("theirs"), LIMITS) == Complete()


def test_a_conflict_is_dead_lettered_and_the_holder_is_left_alone(bench: Bench) -> None:
    bench.guard.admit(bench.delivery("a"), LIMITS)
    other = bench.delivery("b")
    other = Delivery(other.task_id, other.task_name, "key", "different", "b", "q", other.travel, raw=other.raw)
    verdict, _ = bench.guard.admit(other, LIMITS)
    assert verdict == DeadLetterNow("conflict", 0)
    assert dead(bench)[1].error.endswith("IdempotencyConflict")
    assert bench.store.lookup("key").holder == "a"  # type: ignore[union-attr]


@pytest.mark.parametrize(("mode", "kind"), [("return", Replay), ("ignore", Skip), ("raise", Fail)])
def test_what_a_duplicate_gets_is_the_tasks_choice(bench: Bench, mode: str, kind: type) -> None:
    first = bench.delivery()
    _, claim = bench.guard.admit(first, LIMITS)
    bench.guard.settle(first, claim, Returned(1), LIMITS)
    verdict, _ = bench.guard.admit(bench.delivery("b", task_id="another"), Limits(on_duplicate=mode))
    assert isinstance(verdict, kind)
    again, _ = bench.guard.admit(bench.delivery("c", task_id="t"), Limits(on_duplicate=mode))
    assert isinstance(again, Replay), "a redelivery of the very task that completed is no duplicate"


def test_a_lost_process_is_charged_a_crash_and_no_attempt(bench: Bench) -> None:
    delivery = bench.delivery()
    bench.guard.admit(delivery, LIMITS)
    assert bench.guard.lost(delivery, LIMITS, ErrorReport()) == HandBack(0.0, "crashed")
    record = bench.store.lookup("key")
    assert record is not None
    assert (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 0, 1)


def test_the_third_lost_process_makes_a_message_poison(bench: Bench) -> None:
    verdicts = []
    for holder in "abc":
        delivery = bench.delivery(holder)
        bench.guard.admit(delivery, LIMITS)
        verdicts.append(bench.guard.lost(delivery, LIMITS, ErrorReport("WorkerLostError")))
    assert verdicts[2] == DeadLetterNow("poison", 0, crashes=3)
    assert dead(bench)[1].crashes == 3
    assert bench.store.lookup("key") is None, "a replay starts afresh"


def test_a_process_lost_after_its_completion_is_charged_nothing(bench: Bench) -> None:
    delivery = bench.delivery()
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.guard.settle(delivery, claim, Returned(1), LIMITS)
    assert bench.guard.lost(delivery, LIMITS, ErrorReport()) == HandBack(0.0, "crashed")
    assert bench.store.lookup("key").state is RecordState.COMPLETED  # type: ignore[union-attr]
    assert not bench.seen(events.Crashed)


def test_a_hard_time_limit_is_a_failed_attempt(bench: Bench) -> None:
    delivery = bench.delivery()
    bench.guard.admit(delivery, LIMITS)
    assert bench.guard.overran(delivery, LIMITS, BROKEN, ErrorReport()) == RetryIn(2.0, 1)
    assert Travel.from_headers(waiting(bench).headers).attempts == 1


def test_a_task_killed_at_its_deadline_is_dead_of_it(bench: Bench) -> None:
    limits = Limits(retry=RetryPolicy(deadline=10.0))
    delivery = bench.delivery()
    bench.guard.admit(delivery, limits)
    bench.clock.advance(10)
    cut_off = Raised(Classification(PERMANENT), reason="deadline")
    assert bench.guard.overran(delivery, limits, cut_off, ErrorReport("tests.Late")) == DeadLetterNow("deadline", 1)
    assert (dead(bench)[1].reason, dead(bench)[1].attempts) == ("deadline", 1)
    assert bench.store.lookup("key") is None, "a replay starts afresh"


def test_a_time_limit_that_strikes_when_the_task_has_just_completed_undoes_nothing(bench: Bench) -> None:
    delivery = bench.delivery()
    _, claim = bench.guard.admit(delivery, LIMITS)
    bench.guard.settle(delivery, claim, Returned(1), LIMITS)
    assert bench.guard.overran(delivery, LIMITS, HOPELESS, ErrorReport()) == HandBack(0.0, "lease lost")
    assert bench.store.lookup("key").state is RecordState.COMPLETED  # type: ignore[union-attr]
    assert not list(bench.broker.browse("q.dead"))


def test_a_time_limit_that_strikes_an_overtaken_task_leaves_the_other_execution_alone(bench: Bench) -> None:
    delivery = bench.delivery("a")
    bench.guard.admit(delivery, LIMITS)
    bench.clock.advance(61)
    bench.guard.admit(bench.delivery("b"), LIMITS)
    assert bench.guard.overran(delivery, LIMITS, HOPELESS, ErrorReport()) == HandBack(0.0, "lease lost")
    assert bench.store.lookup("key").holder == "b"  # type: ignore[union-attr]
    assert not list(bench.broker.browse("q.dead"))


def test_a_time_limit_that_strikes_before_the_claim_is_settled_all_the_same(bench: Bench) -> None:
    assert bench.guard.overran(bench.delivery(), LIMITS, HOPELESS, ErrorReport()) == DeadLetterNow("permanent", 1)
    assert dead(bench)[1].reason == "permanent"


def test_past_its_deadline_a_message_is_dead_when_nobody_else_can_complete_it(bench: Bench) -> None:
    limits = Limits(retry=RetryPolicy(deadline=10.0))
    running = bench.delivery("a")
    bench.guard.admit(running, LIMITS)
    late = bench.delivery("b", travel=Travel(first=bench.clock.now() - 10.0, deferrals=20))
    for down in ({"store"}, set()):
        bench.down |= down
        verdict, _ = bench.guard.admit(late, limits)
        assert isinstance(verdict, HandBack)
        assert verdict.delay > 1.0
        bench.down.clear()
    assert not list(bench.broker.browse("q.dead"))
    bench.guard.surrender(running, LIMITS)
    assert bench.guard.admit(late, limits)[0] == DeadLetterNow("deadline", 0)
    assert [letter.message.headers[DEAD_LETTER_HEADER]["reason"] for letter in bench.broker.browse("q.dead")] == ["deadline"]


def test_a_message_is_dead_when_its_deadline_has_passed_before_it_starts(bench: Bench) -> None:
    limits = Limits(retry=RetryPolicy(deadline=10.0))
    delivery = bench.delivery(travel=Travel(first=bench.clock.now() - 11))
    verdict, _ = bench.guard.admit(delivery, limits)
    assert verdict == DeadLetterNow("deadline", 0)
    assert bench.store.lookup("key") is None


def test_without_dead_letters_a_failure_is_celerys_own(bench: Bench) -> None:
    delivery = bench.delivery()
    limits = Limits(dead_letter=False)
    _, claim = bench.guard.admit(delivery, limits)
    assert bench.guard.settle(delivery, claim, HOPELESS, limits) == Fail("permanent")
    assert not list(bench.broker.browse("q.dead"))
    assert bench.store.lookup("key") is None


def test_celerys_own_exceptions_give_the_lease_back(bench: Bench) -> None:
    for outcome, verdict, attempts in (
        (Resubmitted(), PassThrough(charge=1), 1),
        (Rejected(requeue=True), PassThrough(), 1),
        (Cancelled(), PassThrough(forget=True), None),
    ):
        delivery = bench.delivery(str(outcome))
        _, claim = bench.guard.admit(delivery, LIMITS)
        assert bench.guard.settle(delivery, claim, outcome, LIMITS) == verdict
        record = bench.store.lookup("key")
        assert (record.attempts if record else None) == attempts


def test_surrendering_lets_another_start_at_once(bench: Bench) -> None:
    delivery = bench.delivery("a")
    bench.guard.admit(delivery, LIMITS)
    bench.guard.surrender(delivery, LIMITS)
    verdict, claim = bench.guard.admit(bench.delivery("b"), LIMITS)
    assert isinstance(verdict, Run)
    assert (claim.crashes, claim.attempts, claim.takeover) == (0, 0, False)


def test_a_message_that_is_not_due_waits_in_the_broker(bench: Bench) -> None:
    bench.guard.postpone(bench.delivery(), 30.0)
    bench.clock.advance(29)
    assert bench.broker.depth("q") == 0
    assert Travel.from_headers(waiting(bench, 1).headers).deferrals == 0
