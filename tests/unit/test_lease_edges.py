"""The transitions of a record at their edges, which a made-up history seldom meets."""

from __future__ import annotations

import pytest

from celery_guardrails.policy.lease import (
    ClaimState,
    Record,
    RecordState,
    StoredResult,
    break_lease,
    claim,
    complete,
    release,
    renew,
    reset,
    save_step,
)

NOW = 1000.0
VALUE = StoredResult("application/json", "utf-8", b"1")
HELD = Record(RecordState.LEASED, "f", fence=7, attempts=2, crashes=1, holder="a", until=NOW, claimed_at=NOW - 60, owner="host/1")


@pytest.mark.parametrize(("now", "state"), [(NOW - 0.001, ClaimState.BUSY), (NOW, ClaimState.CLAIMED), (NOW + 0.001, ClaimState.CLAIMED)])
def test_a_lease_is_over_at_its_end(now: float, state: ClaimState) -> None:
    _, answer = claim(HELD, holder="b", fingerprint="f", lease=60.0, now=now)
    assert answer.state is state
    assert answer.takeover is (state is ClaimState.CLAIMED)


@pytest.mark.parametrize(("fence", "next_fence"), [(7, 1_000_000_000), (999_999_999, 1_000_000_000), (1_000_000_000, 1_000_000_001)])
def test_a_fence_is_the_time_in_microseconds_or_one_more_than_the_last(fence: int, next_fence: int) -> None:
    record = Record(fence=fence)
    taken, answer = claim(record, holder="b", fingerprint=None, lease=60.0, now=NOW)
    assert taken.fence == answer.fence == next_fence


@pytest.mark.parametrize(("known", "attempts", "crashes"), [(0, 2, 2), (2, 2, 2), (3, 3, 1)])
def test_a_takeover_charges_a_crash_where_the_message_knows_no_more_than_the_record(known: int, attempts: int, crashes: int) -> None:
    taken, answer = claim(HELD, holder="b", fingerprint="f", lease=60.0, now=NOW + 1, attempts=known)
    assert (taken.attempts, taken.crashes) == (answer.attempts, answer.crashes) == (attempts, crashes)


def test_a_claim_writes_who_since_when_and_until_when() -> None:
    taken, _ = claim(Record(fingerprint="f"), holder="b", fingerprint=None, lease=60.0, now=NOW, owner="host/2", attempts=3)
    assert (taken.holder, taken.owner, taken.claimed_at, taken.until, taken.fingerprint) == ("b", "host/2", NOW, NOW + 60, "f")
    assert (taken.attempts, taken.crashes, taken.result, taken.state) == (3, 0, None, RecordState.LEASED)


def test_busy_tells_the_charges_and_the_rest_of_the_lease() -> None:
    _, answer = claim(HELD, holder="b", fingerprint=None, lease=60.0, now=NOW - 20)
    assert (answer.wait, answer.attempts, answer.crashes, answer.takeover, answer.now) == (20.0, 2, 1, False, NOW - 20)


def test_a_repeated_claim_changes_nothing_but_the_end_of_the_lease() -> None:
    taken, answer = claim(HELD, holder="a", fingerprint="f", lease=60.0, now=NOW + 5, attempts=9)
    assert (taken.until, taken.fence, taken.attempts, taken.claimed_at) == (NOW + 65, 7, 2, NOW - 60)
    assert (answer.fence, answer.attempts, answer.crashes, answer.takeover, answer.now) == (7, 2, 1, False, NOW + 5)


def test_every_answer_tells_the_stores_time() -> None:
    done = Record(RecordState.COMPLETED, "f", fence=7, result=VALUE)
    for record, fingerprint in ((None, "f"), (HELD, "g"), (done, "f"), (HELD, "f")):
        assert claim(record, holder="b", fingerprint=fingerprint, lease=60.0, now=NOW - 1)[1].now == NOW - 1


def test_a_renewal_ends_a_lease_later() -> None:
    renewed, done = renew(HELD, holder="a", lease=60.0, now=NOW + 5)
    assert done
    assert renewed is not None
    assert renewed.until == NOW + 65


def test_a_completion_keeps_the_fingerprint_of_the_record_and_nothing_of_the_lease() -> None:
    completed, done = complete(HELD, holder="a", fingerprint="other", fence=7, result=VALUE, now=NOW)
    assert done
    assert completed == Record(RecordState.COMPLETED, "f", fence=7, holder="a", claimed_at=NOW, result=VALUE)
    assert complete(None, holder="a", fingerprint="mine", fence=7, result=VALUE, now=NOW) == (
        Record(RecordState.COMPLETED, "mine", fence=7, holder="a", claimed_at=NOW, result=VALUE),
        True,
    )


def test_what_is_given_back_has_no_holder_and_no_time_and_what_was_charged() -> None:
    released, done = release(HELD, holder="a", attempts=1, crashes=3)
    assert done
    assert released == Record(RecordState.IDLE, "f", fence=7, attempts=3, crashes=4, claimed_at=NOW - 60)


def test_a_broken_lease_is_one_fence_higher_and_charges_nothing() -> None:
    broken, done = break_lease(HELD)
    assert done
    assert broken == Record(RecordState.IDLE, "f", fence=8, attempts=2, crashes=1, claimed_at=NOW - 60)


@pytest.mark.parametrize("state", [RecordState.IDLE, RecordState.COMPLETED])
def test_what_is_not_leased_cannot_be_renewed_released_broken_or_stepped(state: RecordState) -> None:
    record = Record(state, holder="a", fence=7)
    assert renew(record, holder="a", lease=60.0, now=NOW) == (record, False)
    assert release(record, holder="a", attempts=1) == (record, False)
    assert save_step(record, holder="a", name="s", value=VALUE) == (record, False)
    assert break_lease(record) == (record, False)
    assert reset(record, holder="a") == (record, False)
    assert break_lease(None) == renew(None, holder="a", lease=1.0, now=NOW) == release(None, holder="a") == reset(None) == (None, False)


def test_an_idle_record_is_not_completed_by_name() -> None:
    record = Record(RecordState.IDLE, holder="a", fence=7)
    assert complete(record, holder="a", fingerprint=None, fence=7, result=VALUE, now=NOW) == (record, False)


def test_a_key_given_up_is_forgotten_but_for_its_recovery_points() -> None:
    assert reset(HELD, holder="a") == (None, True)
    stepped, _ = save_step(HELD, holder="a", name="s", value=VALUE)
    assert reset(stepped, holder="a") == (Record(RecordState.IDLE, "f", fence=7, claimed_at=NOW - 60, steps={"s": VALUE}), True)
    assert reset(stepped, holder="b") == reset(stepped) == (stepped, False)
    nobodys = Record(RecordState.LEASED, holder="")
    assert reset(nobodys) == (nobodys, False)
    done = Record(RecordState.COMPLETED)
    assert reset(done) == (done, False)
