"""The record of one key: a machine of holders that die, stall, come back late and do not hear their answers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from celery_guardrails.policy.lease import (
    Claim,
    ClaimState,
    Record,
    RecordState,
    StoredResult,
    claim,
    complete,
    release,
    renew,
)

LEASE = 60.0
HOLDERS = ["anna", "bela", "cora", "dora"]
holders = st.sampled_from(HOLDERS)
PRINT = "fp"


@dataclass
class Seen:
    """What a holder believes: the fence that it was told."""

    fence: int


class Leases(RuleBasedStateMachine):
    """One key in one store; every call takes a millisecond, and an answer may be lost on the way."""

    @initialize(start=st.floats(1e9, 2e9))
    def begin(self, start: float) -> None:
        self.now = start
        self.record: Record | None = None
        self.believes: dict[str, Seen] = {}
        self.effective: tuple[str, int] | None = None  # who completed the key, with which fence
        self.highest = 0

    def tick(self) -> None:
        self.now += 0.001

    def live(self) -> str | None:
        """Return who holds a lease that has not ended."""
        record = self.record
        return record.holder if record and record.state is RecordState.LEASED and record.until > self.now else None

    @rule(seconds=st.floats(0.1, 3 * LEASE))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(holder=holders, lost=st.booleans(), attempts=st.integers(0, 3))
    def claims(self, holder: str, lost: bool, attempts: int) -> None:
        self.tick()
        before, lived = self.record, self.live()
        self.record, answer = claim(before, holder=holder, fingerprint=PRINT, lease=LEASE, now=self.now, attempts=attempts)
        if self.effective is not None:
            assert answer.state is ClaimState.COMPLETED
            assert self.record == before
        elif lived not in (None, holder):
            assert answer.state is ClaimState.BUSY
            assert 0 < answer.wait <= LEASE
            assert self.record == before
        else:
            assert answer.state is ClaimState.CLAIMED
            assert self.live() == holder
            again = before is not None and before.state is RecordState.LEASED and before.holder == holder
            if again:
                assert before is not None
                assert answer.fence == before.fence
                assert self.record.crashes == before.crashes
            else:
                assert answer.fence > self.highest
                self.highest = answer.fence
                assert answer.takeover == (before is not None and before.state is RecordState.LEASED)
                assert answer.attempts >= attempts
            if answer.takeover:
                assert before is not None
                settled = attempts > before.attempts
                assert answer.crashes == before.crashes + (not settled)
            if not lost:
                self.believes[holder] = Seen(answer.fence)

    @precondition(lambda self: self.believes)
    @rule(data=st.data(), lost=st.booleans())
    def completes(self, data: st.DataObject, lost: bool) -> None:
        """Whoever believes that it has the lease completes, also long after it has lost it."""
        holder = data.draw(st.sampled_from(sorted(self.believes)))
        self.tick()
        fence = self.believes[holder].fence
        before = self.record
        self.record, done = complete(
            before, holder=holder, fingerprint=PRINT, fence=fence, result=StoredResult(data=holder.encode()), now=self.now
        )
        if self.effective is not None and before is not None:
            assert done == (self.effective == (holder, fence))
            assert self.record == before
        elif before is None:
            assert done
        else:
            assert done == (before.state is RecordState.LEASED and before.holder == holder)
        if done:
            self.effective = (holder, fence)
            if not lost:
                del self.believes[holder]
        else:
            assert self.record == before

    @rule(holder=holders, attempts=st.integers(0, 1), crashes=st.integers(0, 1), drop=st.booleans(), lost=st.booleans())
    def releases(self, holder: str, attempts: int, crashes: int, drop: bool, lost: bool) -> None:
        self.tick()
        before = self.record
        self.record, done = release(before, holder=holder, attempts=attempts, crashes=crashes, drop=drop)
        mine = before is not None and before.state is RecordState.LEASED and before.holder == holder
        assert done == mine
        if not done:
            assert self.record == before
        elif drop:
            assert self.record is None
        else:
            assert before is not None
            assert self.record is not None
            assert self.record.state is RecordState.IDLE
            assert self.record.attempts == before.attempts + attempts
            assert self.record.crashes == before.crashes + crashes
            assert self.record.fence == before.fence
            assert self.record.fingerprint == PRINT
        if done and not lost:
            self.believes.pop(holder, None)

    @rule(holder=holders)
    def renews(self, holder: str) -> None:
        self.tick()
        before = self.record
        self.record, done = renew(before, holder=holder, lease=LEASE, now=self.now)
        assert done == (before is not None and before.state is RecordState.LEASED and before.holder == holder)
        if done:
            assert self.live() == holder
        else:
            assert self.record == before

    @precondition(lambda self: self.record is not None)
    @rule()
    def an_operator_forgets_the_key_or_its_record_ends(self) -> None:
        """Its holders are gone by then: a key is not forgotten under a running task."""
        self.tick()
        self.record, self.effective = None, None
        self.believes.clear()

    @rule(holder=holders)
    def another_call_with_other_arguments_conflicts(self, holder: str) -> None:
        before = self.record
        after, answer = claim(before, holder=holder, fingerprint="other", lease=LEASE, now=self.now)
        if before is not None and before.fingerprint is not None:
            assert (answer, after) == (Claim(ClaimState.CONFLICT), before)

    @invariant()
    def a_completed_key_stays_completed_with_the_result_of_who_completed_it(self) -> None:
        if getattr(self, "effective", None) is not None:
            assert self.record is not None
            assert self.record.state is RecordState.COMPLETED
            assert self.record.fence == self.effective[1]  # type: ignore[index]
            assert self.record.result is not None
            assert self.record.result.data == self.effective[0].encode()  # type: ignore[index]

    @invariant()
    def an_idle_record_belongs_to_nobody(self) -> None:
        record = getattr(self, "record", None)
        if record is not None and record.state is RecordState.IDLE:
            assert (record.holder, record.until, record.result) == ("", 0.0, None)


Leases.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestLeases = Leases.TestCase


def test_a_fresh_key_is_claimed_with_the_time_as_its_fence() -> None:
    record, answer = claim(None, holder="a", fingerprint=PRINT, lease=LEASE, now=1_700_000_000.5, owner="host:1")
    assert answer == Claim(ClaimState.CLAIMED, fence=1_700_000_000_500_000)
    assert (record.owner, record.until, record.claimed_at) == ("host:1", 1_700_000_060.5, 1_700_000_000.5)


def test_the_fence_rises_also_while_the_clock_stands_or_goes_back() -> None:
    record, first = claim(None, holder="a", fingerprint=None, lease=LEASE, now=1000.0)
    idle, _ = release(record, holder="a")
    _, second = claim(idle, holder="b", fingerprint=None, lease=LEASE, now=900.0)
    assert second.fence == first.fence + 1


def test_a_claim_without_a_fingerprint_is_not_checked_and_keeps_the_one_that_is_known() -> None:
    record, _ = claim(None, holder="a", fingerprint=PRINT, lease=LEASE, now=1.0)
    record_again, answer = claim(record, holder="b", fingerprint=None, lease=LEASE, now=100.0)
    assert answer.state is ClaimState.CLAIMED
    assert record_again.fingerprint == PRINT


def test_a_zombie_can_neither_complete_nor_release_nor_renew_what_was_taken_from_it() -> None:
    record, old = claim(None, holder="zombie", fingerprint=PRINT, lease=LEASE, now=0.0)
    record, new = claim(record, holder="heir", fingerprint=PRINT, lease=LEASE, now=100.0)
    assert (new.takeover, new.crashes) == (True, 1)
    assert complete(record, holder="zombie", fingerprint=PRINT, fence=old.fence, result=StoredResult(), now=101.0) == (record, False)
    assert release(record, holder="zombie", attempts=1) == (record, False)
    assert renew(record, holder="zombie", lease=LEASE, now=101.0) == (record, False)


def test_a_zombie_cannot_complete_a_key_that_its_heir_has_completed_but_the_heir_may_say_it_twice() -> None:
    record, old = claim(None, holder="zombie", fingerprint=PRINT, lease=LEASE, now=0.0)
    record, new = claim(record, holder="heir", fingerprint=PRINT, lease=LEASE, now=100.0)
    result = StoredResult(data=b"heir")
    done, first = complete(record, holder="heir", fingerprint=PRINT, fence=new.fence, result=result, now=101.0)
    assert first
    assert complete(done, holder="zombie", fingerprint=PRINT, fence=old.fence, result=StoredResult(), now=102.0) == (done, False)
    assert complete(done, holder="heir", fingerprint=PRINT, fence=new.fence, result=StoredResult(), now=102.0) == (done, True)
    assert release(done, holder="heir", drop=True) == (done, False)


def test_a_holder_that_is_late_but_not_replaced_still_has_its_lease() -> None:
    record, mine = claim(None, holder="a", fingerprint=PRINT, lease=LEASE, now=0.0)
    renewed, kept = renew(record, holder="a", lease=LEASE, now=500.0)
    assert kept
    assert renewed is not None
    assert renewed.until == 560.0
    done = complete(record, holder="a", fingerprint=PRINT, fence=mine.fence, result=StoredResult(), now=500.0)
    assert done[1]


def test_a_store_that_lost_its_memory_is_told_of_the_completion() -> None:
    record, done = complete(None, holder="a", fingerprint=PRINT, fence=5, result=StoredResult(task_id="t"), now=1.0)
    assert done
    assert record is not None
    assert (record.state, record.fingerprint, record.fence) == (RecordState.COMPLETED, PRINT, 5)


@pytest.mark.parametrize(("known_to_the_message", "crashes"), [(0, 1), (1, 0), (5, 0)])
def test_a_takeover_charges_no_crash_where_the_message_knows_of_an_attempt_that_the_store_did_not_hear_of(
    known_to_the_message: int, crashes: int
) -> None:
    record, _ = claim(None, holder="a", fingerprint=PRINT, lease=LEASE, now=0.0)
    _, answer = claim(record, holder="b", fingerprint=PRINT, lease=LEASE, now=100.0, attempts=known_to_the_message)
    assert (answer.takeover, answer.crashes, answer.attempts) == (True, crashes, known_to_the_message)


def test_a_result_without_a_content_type_has_no_value() -> None:
    assert not StoredResult(task_id="t").has_value
    assert StoredResult("application/json", "utf-8", b"1").has_value
