"""A worker that vanishes with many inside: one of them did it, and only that one pays."""

from __future__ import annotations

from typing import Any

import pytest

from celery_guardrails import events
from celery_guardrails.guard import ErrorReport
from celery_guardrails.policy.delivery import Delivery, RawMessage, Travel
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.policy.resource import Resource
from celery_guardrails.policy.suspicion import QUARANTINE
from celery_guardrails.policy.verdict import DeadLetterNow, HandBack, Limits, Returned, Run
from tests.unit.test_guard import Bench

LIMITS = Limits(max_crashes=3)
CROWD = [f"innocent{number}" for number in range(7)]


class FakeRoom:
    """A worker's room; what it was asked is written down."""

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.by_itself = ""
        self.stubborn = False
        self.waited: list[float] = []

    def enter(self, holder: str) -> bool:
        if self.by_itself:
            return False
        self.inside.add(holder)
        return True

    def alone(self, holder: str, seconds: float) -> bool:
        self.waited.append(seconds)
        if self.stubborn:
            return False
        self.inside, self.by_itself = set(), holder
        return True

    def leave(self, holder: str) -> bool:
        self.inside.discard(holder)
        mine, self.by_itself = self.by_itself == holder, "" if self.by_itself == holder else self.by_itself
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

    def begin(self, name: str, limits: Limits = LIMITS) -> tuple[Delivery, Any, Any]:
        self.deliveries += 1
        raw = RawMessage(b"", "application/json", "utf-8", {"id": name}, {}, "", "q")
        travel = Travel(first=self.bench.clock.now())
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


def test_where_others_do_not_end_a_suspect_runs_beside_them_and_its_loss_proves_nothing(fleet: Fleet) -> None:
    twice_vanished(fleet, "suspect", "other")
    fleet.room.stubborn = True
    assert isinstance(fleet.begin("suspect")[1], Run)
    assert fleet.room.waited == [120.0]
    fleet.vanish()
    fleet.room.stubborn = True
    assert isinstance(fleet.begin("suspect")[1], Run)
    assert fleet.room.waited == [180.0], "each time it waits the length of a lease longer"
    assert fleet.losses("suspect") == (0, 3)
    seen = fleet.bench.seen(events.Quarantined)
    assert [(event.suspicions, event.alone) for event in seen] == [(2, False), (3, False)]


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
    fleet.guard.room = None
    for _ in range(3):
        assert isinstance(fleet.begin("poison")[1], Run)
        fleet.bench.clock.advance(61.0)
    assert fleet.begin("poison")[1] == DeadLetterNow("poison", attempts=0, crashes=3)


def test_a_suspect_that_is_kept_waiting_gives_its_slot_of_the_resource_back(fleet: Fleet) -> None:
    resource = Resource("gateway", max_concurrency=1, retry_budget=None)
    limits = Limits(resource=resource)
    twice_vanished(fleet, "one", "two")
    fleet.begin("one")
    fleet.restart()
    assert isinstance(fleet.begin("two", limits)[1], HandBack)
    assert fleet.store.view([resource])[0].running == 0
