"""A worker that vanishes with many inside: one of them did it, and only that one pays."""

from __future__ import annotations

from typing import Any

import pytest

from celery_guardrails import events
from celery_guardrails.guard import ErrorReport
from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.delivery import Delivery, RawMessage, Travel
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.policy.resource import Resource
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.suspicion import QUARANTINE
from celery_guardrails.policy.verdict import DeadLetterNow, HandBack, Limits, Raised, Returned, Run
from tests.unit.test_guard import Bench

LIMITS = Limits(max_crashes=3)
CROWD = [f"innocent{number}" for number in range(7)]


class FakeRoom:
    """A worker's room; what it was asked is written down."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.by_itself = self.asked = ""
        self.stubborn = False
        self.waited: list[float] = []
        self.several = True

    def shared(self) -> bool:
        return self.several

    def enter(self, holder: str) -> bool:
        if self.by_itself:
            return False
        self.inside.add(holder)
        return True

    def alone(self, holder: str, seconds: float) -> bool:
        self.waited.append(seconds)
        self.asked = holder
        if self.stubborn:
            return False
        self.inside, self.by_itself = set(), holder
        return True

    def leave(self, holder: str) -> bool:
        self.inside.discard(holder)
        mine = holder in (self.by_itself, self.asked)
        if mine:
            self.by_itself = self.asked = ""
        return mine


class Fleet:
    """One worker after another, each in a room of its own, on one store."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.guard, self.store = self.bench.guard, self.bench.store
        self.deliveries = 0
        self.restart()

    def restart(self) -> None:
        self.room = FakeRoom()
        self.guard.room = self.room

    def vanish(self) -> None:
        """The worker is gone with all that ran in it, and the leases end."""
        self.restart()
        self.bench.clock.advance(61.0)

    def begin(self, name: str, limits: Limits = LIMITS, **travelled: Any) -> tuple[Delivery, Any, Any]:
        self.deliveries += 1
        raw = RawMessage(b"", "application/json", "utf-8", {"id": name}, {}, "", "q")
        travel = Travel(first=self.bench.clock.now(), **travelled)
        delivery = Delivery(name, "tasks.t", name, None, f"h{self.deliveries}", "q", travel, raw=raw)
        return delivery, *self.guard.admit(delivery, limits)

    def end(self, delivery: Delivery, claim: Any) -> None:
        self.guard.settle(delivery, claim, Returned(1), LIMITS)
        self.guard.leave(delivery)

    def losses(self, name: str) -> tuple[int, int]:
        record = self.store.lookup(name)
        return (0, 0) if record is None else (record.crashes, record.suspicions)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def twice_vanished(fleet: Fleet, *names: str) -> None:
    """Let the names be in two workers that vanish."""
    for _ in range(2):
        for name in names:
            assert isinstance(fleet.begin(name)[1], Run)
        fleet.vanish()


def test_poison_among_seven_others_is_dead_after_three_workers_and_nobody_else_is_charged(fleet: Fleet) -> None:
    twice_vanished(fleet, "poison", *CROWD)
    lost, done = 2, set[str]()
    for name in [*CROWD[:3], "poison", *CROWD[3:], "poison"]:
        delivery, verdict, claim = fleet.begin(name)
        if isinstance(verdict, DeadLetterNow):
            assert (name, verdict.reason, verdict.crashes, lost) == ("poison", "poison", 3, 3)
            break
        assert isinstance(verdict, Run)
        assert claim.crashes == 0, "suspicion is no charge"
        if name == "poison":
            assert fleet.room.by_itself == delivery.holder
            fleet.vanish()
            lost += 1
        else:
            fleet.end(delivery, claim)
            done.add(name)
    else:
        pytest.fail("the poison lives")
    assert done == set(CROWD)
    for name in CROWD:
        record = fleet.store.lookup(name)
        assert record is not None
        assert (record.state, record.crashes, record.suspicions) == (RecordState.COMPLETED, 0, 0)


def test_a_suspect_runs_alone_and_what_comes_meanwhile_is_handed_back_without_a_claim(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    suspect, verdict, claim = fleet.begin("suspect")
    assert verdict == Run(1, None, alone=True)
    fleet.bench.log.clear()
    _, verdict, _ = fleet.begin("stranger")
    assert isinstance(verdict, HandBack)
    assert verdict.why == "quarantine"
    assert "claim" not in fleet.bench.log
    fleet.end(suspect, claim)
    assert isinstance(fleet.begin("stranger")[1], Run)
    assert fleet.store.lookup(QUARANTINE) is None


def test_of_two_suspects_one_is_in_quarantine_in_the_whole_fleet(fleet: Fleet) -> None:
    twice_vanished(fleet, "one", "two")
    first, _, claim = fleet.begin("one")
    fleet.restart()  # another worker
    second, verdict, _ = fleet.begin("two")
    assert isinstance(verdict, HandBack)
    assert verdict.why == "quarantine"
    record = fleet.store.lookup("two")
    assert record is not None
    assert (record.state, record.crashes, record.suspicions) == (RecordState.IDLE, 0, 2)
    fleet.guard.leave(second)
    assert fleet.store.lookup(QUARANTINE) is not None, "it is the first one's"
    fleet.room.by_itself = first.holder
    fleet.end(first, claim)
    assert fleet.begin("two")[1] == Run(1, None, alone=True)


def test_where_others_do_not_end_a_suspect_is_tried_elsewhere_uncharged_and_others_may_be_in_quarantine(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    fleet.room.stubborn = True
    delivery, verdict, _ = fleet.begin("suspect")
    assert isinstance(verdict, HandBack)
    assert verdict.why == "crowded"
    ((_, _, copy),) = fleet.bench.broker.delayed()
    assert Travel.from_headers(copy.headers).vain == 1
    record = fleet.store.lookup("suspect")
    assert record is not None
    assert (record.state, record.attempts, record.crashes, record.suspicions) == (RecordState.IDLE, 0, 0, 2)
    fleet.guard.leave(delivery)
    assert fleet.store.lookup(QUARANTINE) is None
    fleet.restart()
    assert fleet.begin("other")[1] == Run(1, None, alone=True)


def test_each_time_it_waits_longer_and_after_five_it_runs_beside_others_and_its_loss_proves_nothing(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    fleet.room.stubborn = True
    for vain in range(5):
        delivery, verdict, _ = fleet.begin("suspect", vain=vain)
        assert isinstance(verdict, HandBack)
        fleet.guard.leave(delivery)
    assert fleet.begin("suspect", vain=5)[1] == Run(1, None, alone=True)
    assert fleet.room.waited == [120.0, 180.0, 240.0, 300.0, 360.0, 420.0]
    seen = fleet.bench.seen(events.Quarantined)
    assert [(event.suspicions, event.alone) for event in seen] == [(2, False)]
    fleet.vanish()
    assert fleet.begin("suspect")[2].suspicions == 3
    assert fleet.losses("suspect") == (0, 3)


def test_a_suspect_whose_deadline_comes_while_it_waits_is_dead_of_it_and_its_charges_are_forgotten(fleet: Fleet) -> None:
    limits = Limits(retry=RetryPolicy(deadline=60.0))
    twice_vanished(fleet, "suspect", "other")
    wait, fleet.room.stubborn = fleet.room.alone, True

    def alone(holder: str, seconds: float) -> bool:
        fleet.bench.clock.advance(59.0)
        fleet.store.renew([("suspect", holder)], 60.0)
        fleet.bench.clock.advance(2.0)
        return wait(holder, seconds)

    fleet.room.alone = alone  # type: ignore[method-assign]
    delivery, verdict, _ = fleet.begin("suspect", limits)
    assert verdict == DeadLetterNow("deadline", attempts=0)
    assert fleet.store.lookup("suspect") is None
    fleet.guard.leave(delivery)
    assert fleet.store.lookup(QUARANTINE) is None


def test_a_suspect_that_ran_and_failed_has_all_its_tries_again(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    delivery, _, claim = fleet.begin("suspect", vain=4)
    fleet.guard.settle(delivery, claim, Raised(Classification("retryable")), LIMITS)
    ((_, _, copy),) = fleet.bench.broker.delayed()
    assert Travel.from_headers(copy.headers).vain == 0


def test_the_wait_to_be_alone_leaves_a_task_half_of_its_time_limit(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    fleet.begin("suspect", Limits(quarantine_cap=7.5))
    assert fleet.room.waited == [7.5]


def test_a_suspect_whose_lease_was_taken_while_it_waited_does_not_run(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    wait = fleet.room.alone

    def alone(holder: str, seconds: float) -> bool:
        fleet.bench.clock.advance(61.0)
        fleet.store.claim("suspect", holder="thief", fingerprint=None, lease=60.0)
        return wait(holder, seconds)

    fleet.room.alone = alone  # type: ignore[method-assign]
    verdict = fleet.begin("suspect")[1]
    assert isinstance(verdict, HandBack)
    assert verdict.why == "held"


def test_a_child_that_dies_in_quarantine_is_charged_for_it_and_the_quarantine_is_free_again(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    delivery, _, _ = fleet.begin("suspect")
    verdict = fleet.guard.lost(delivery, LIMITS, ErrorReport("WorkerLostError"))
    assert verdict == DeadLetterNow("poison", attempts=0, crashes=3)
    assert fleet.store.lookup(QUARANTINE) is None
    assert fleet.begin("other")[1] == Run(1, None, alone=True)


def test_a_child_that_dies_in_a_crowd_is_charged_one_crash_and_no_suspicion_of_others(fleet: Fleet) -> None:
    poison, *_ = fleet.begin("poison")
    fleet.begin("innocent0")
    fleet.guard.lost(poison, LIMITS, ErrorReport("WorkerLostError"))
    assert (fleet.losses("poison"), fleet.losses("innocent0")) == ((1, 0), (0, 0))


def test_a_worker_of_one_task_at_a_time_needs_no_quarantine_to_know_who_it_was(fleet: Fleet) -> None:
    fleet.room.several = False
    for _ in range(3):
        assert isinstance(fleet.begin("poison")[1], Run)
        fleet.bench.clock.advance(61.0)
    assert fleet.begin("poison")[1] == DeadLetterNow("poison", attempts=0, crashes=3)
    assert fleet.room.waited == []


def test_what_runs_while_a_pool_of_one_grows_is_not_charged_for_what_its_new_neighbours_may_do(fleet: Fleet) -> None:
    fleet.room.several = False
    running, *_ = fleet.begin("running")
    fleet.room.several = True
    fleet.guard.expose(running)
    fleet.vanish()
    fleet.begin("running")
    assert fleet.losses("running") == (0, 1)


def test_what_is_claimed_in_the_moment_in_which_a_pool_of_one_grows_is_not_charged_either(fleet: Fleet) -> None:
    fleet.room.several = False
    claim = fleet.store.claim

    def grows(*args: Any, **kwargs: Any) -> Any:
        answer = claim(*args, **kwargs)
        fleet.room.several = True
        return answer

    fleet.bench.store.claim = grows  # type: ignore[method-assign]
    fleet.begin("running")
    fleet.vanish()
    fleet.begin("running")
    assert fleet.losses("running") == (0, 1)


def test_what_has_ended_while_a_pool_of_one_grows_is_left_as_it_is(fleet: Fleet) -> None:
    fleet.room.several = False
    ended, _, claim = fleet.begin("ended")
    fleet.end(ended, claim)
    fleet.guard.expose(ended)
    record = fleet.store.lookup("ended")
    assert record is not None
    assert record.state is RecordState.COMPLETED
    waiting, *_ = fleet.begin("waiting")
    fleet.guard.surrender(waiting, LIMITS)
    fleet.guard.expose(waiting)
    record = fleet.store.lookup("waiting")
    assert record is not None
    assert record.state is RecordState.IDLE


def test_a_suspect_that_is_kept_waiting_gives_its_slot_of_the_resource_back(fleet: Fleet) -> None:
    resource = Resource("gateway", max_concurrency=1, retry_budget=None)
    limits = Limits(resource=resource)
    twice_vanished(fleet, "one", "two")
    fleet.begin("one")
    fleet.restart()
    assert isinstance(fleet.begin("two", limits)[1], HandBack)
    assert fleet.store.view([resource])[0].running == 0
