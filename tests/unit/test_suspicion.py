"""Who killed a worker: what is charged, what is only noted, and who must be alone the next time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.lease import ClaimState, Record, RecordState, claim, release
from celery_guardrails.policy.suspicion import Losses, is_suspect

NOW = 1_800_000_000.0

VANISHED = [
    # before                      after the whole worker has vanished
    (Losses(), Losses(1)),
    (Losses(2), Losses(3)),
    (Losses(beside=True), Losses(0, 1)),
    (Losses(1, 1, beside=True), Losses(1, 2)),
    # alone: what was suspicion is proven with it
    (Losses(0, 2), Losses(3)),
    (Losses(1, 1), Losses(3)),
]
CHARGED = [
    # before                      crashes   after
    (Losses(), 1, Losses(1)),
    (Losses(1, 1, beside=True), 1, Losses(2, 1)),
    (Losses(0, 2), 1, Losses(3)),
    (Losses(0, 2), 0, Losses(0, 2)),
    (Losses(0, 2, beside=True), 0, Losses(0, 2)),
]
SUSPECTS = [
    # crashes  suspicions  max_crashes  must be alone
    (0, 0, 3, False),
    (2, 0, 3, False),  # its crashes are its own: one more needs no proof
    (0, 1, 3, False),
    (0, 2, 3, True),
    (1, 1, 3, True),
    (0, 7, 3, True),
    (0, 0, 1, False),
    (0, 1, 1, True),
    (0, 1, 2, True),
]


@pytest.mark.parametrize(("before", "after"), VANISHED)
def test_a_worker_that_vanishes_is_a_crash_of_who_was_alone_and_a_suspicion_of_who_was_not(before: Losses, after: Losses) -> None:
    assert before.vanished() == after


@pytest.mark.parametrize(("before", "crashes", "after"), CHARGED)
def test_a_crash_that_is_known_to_be_its_own_proves_suspicions_only_if_it_was_alone(before: Losses, crashes: int, after: Losses) -> None:
    assert before.charged(crashes) == after


@pytest.mark.parametrize(("crashes", "suspicions", "max_crashes", "alone"), SUSPECTS)
def test_a_suspect_is_who_lacks_one_loss_to_being_poison_and_not_all_of_them_are_its_own(
    crashes: int, suspicions: int, max_crashes: int, alone: bool
) -> None:
    assert is_suspect(crashes, suspicions, max_crashes) is alone


@given(crashes=st.integers(0, 999), suspicions=st.integers(0, 999), beside=st.booleans())
def test_losses_are_one_number_and_come_back_from_it(crashes: int, suspicions: int, beside: bool) -> None:
    losses = Losses(crashes, suspicions, beside)
    assert Losses.unpack(losses.pack()) == losses


def test_the_number_is_the_one_that_stores_and_scripts_have_written() -> None:
    assert (Losses().pack(), Losses(1, 2).pack(), Losses(1, 2, beside=True).pack()) == (0, 2001, 1002001)
    assert Losses.unpack(1002001) == (1, 2, True)
    assert Losses() == (0, 0, False)


def test_counts_that_leave_the_number_no_room_stop_at_its_end() -> None:
    assert Losses.unpack(Losses(5000, 5000, beside=True).pack()) == Losses(999, 999, beside=True)


def _lost(record: Record | None, now: float, *, beside: bool) -> Record:
    """Let somebody claim a key whose last holder has vanished."""
    record, answer = claim(record, holder=str(now), fingerprint=None, lease=60.0, now=now, beside=beside)
    assert answer.state is ClaimState.CLAIMED
    return record


def test_a_crash_loop_in_crowded_workers_is_proven_alone_and_dead_at_the_third() -> None:
    record = None
    for number in range(3):
        record = _lost(record, NOW + 100 * number, beside=True)
    assert (record.crashes, record.suspicions) == (0, 2)
    alone, answer = claim(record, holder=record.holder, fingerprint=None, lease=60.0, now=NOW + 201)
    assert (answer.fence, answer.suspicions, alone.beside) == (record.fence, 2, False)
    _, answer = claim(alone, holder="next", fingerprint=None, lease=60.0, now=NOW + 300)
    assert (answer.crashes, answer.suspicions) == (3, 0)


def test_an_attempt_that_ended_clears_suspicion_and_a_hand_back_does_not() -> None:
    held = Record(RecordState.LEASED, holder="a", crashes=1, suspicions=1, beside=True)
    failed, _ = release(held, holder="a", attempts=1)
    assert failed is not None
    assert (failed.attempts, failed.crashes, failed.suspicions, failed.beside) == (1, 1, 0, False)
    handed_back, _ = release(held, holder="a")
    assert handed_back is not None
    assert (handed_back.crashes, handed_back.suspicions, handed_back.beside) == (1, 1, False)


def test_a_message_that_had_settled_its_attempt_is_not_suspected_either() -> None:
    held = Record(RecordState.LEASED, holder="a", attempts=1, beside=True)
    _, answer = claim(held, holder="b", fingerprint=None, lease=60.0, now=NOW, attempts=2)
    assert (answer.takeover, answer.crashes, answer.suspicions) == (True, 0, 0)
