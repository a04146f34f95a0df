"""What a store should answer and hold, by the pure functions of :mod:`celery_guardrails.policy.lease`.

A judge is told the answer of a call and the *span* in which it was made, first and last unix time in seconds. It compares the answer
with the model's, moves the model on, and says whether the call may have changed anything. What only the store can know, the time,
is taken from its answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..policy import lease as transitions
from ..policy.lease import Claim, ClaimState, Record, RecordState, StoredResult
from ..stores import STEPS_SECONDS

__all__ = ["LONGEST_LEASE", "TOLERANCE", "Known", "Span", "StoreModel"]

#: First and last unix time in seconds at which something may have happened.
Span = tuple[float, float]

#: Seconds: the precision to which a store has to keep time.
TOLERANCE = 0.004
#: Seconds: nobody may claim for longer.
LONGEST_LEASE = 30.0


@dataclass
class Known:
    """What the model knows of one key.

    Args:
        record: as it should be.
        gone: when it may vanish by itself.
        fence: the highest that anybody was ever given.
        grants: holder → unix time in seconds until which it was told that the key is its own.
        fences: holder → fence of its last claim.
    """

    record: Record | None = None
    gone: Span = (float("inf"), float("inf"))
    fence: int = 0
    grants: dict[str, float] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)

    @property
    def state(self) -> RecordState | None:
        """Of the record; None where there is none."""
        return self.record.state if self.record is not None else None

    def vanish(self) -> None:
        """Be without a record."""
        self.record, self.grants = None, {}

    def may_be_gone(self, now: float) -> bool:
        """Whether it may have vanished by itself."""
        return self.record is not None and self.gone[0] - TOLERANCE <= now


class StoreModel:
    """The keys of one history.

    Args:
        memory: seconds that the store keeps a record while its key is not completed.
    """

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.known: dict[str, Known] = {}

    # -- judges of what holders do ----------------------------------------------------------------------------

    def claimed(self, key: str, answer: Claim, span: Span, **call: Any) -> bool:
        """Judge a claim."""
        known, holder = self.known[key], call["holder"]
        before = known.record
        moments = span if answer.now is None else (answer.now,)
        assert span[0] - TOLERANCE <= moments[0] <= span[1] + TOLERANCE, f"{answer.now} is not now, which is {span}"
        attempts = [transitions.claim(before, now=moment, **call) for moment in moments]
        record, expected = next((pair for pair in attempts if pair[1].state is answer.state), attempts[0])
        mine = before is not None and before.state is RecordState.LEASED and before.holder == holder
        if expected.state is ClaimState.CLAIMED and not mine:
            assert answer.fence > known.fence, f"the fence fell from {known.fence} to {answer.fence}"
            living = {other: until for other, until in known.grants.items() if until > moments[-1] + TOLERANCE}
            assert not living, f"{holder} was given what others hold: {living}"
            expected, record = replace(expected, fence=answer.fence), replace(record, fence=answer.fence)
        assert abs(answer.wait - expected.wait) <= TOLERANCE + span[1] - span[0], f"wait {answer.wait}, not {expected.wait}"
        assert replace(answer, wait=0, steps={}) == replace(expected, wait=0, steps={})
        if answer.state is not ClaimState.CLAIMED:
            return False
        assert _without_task(answer.steps) == _without_task(expected.steps)
        known.record, known.fence = record, max(known.fence, answer.fence)
        known.grants, known.fences[holder] = {holder: moments[0] + call["lease"]}, answer.fence
        return True

    def completed(self, key: str, answer: bool, span: Span, *, retention: float, **call: Any) -> bool:
        """Judge a completion."""
        known = self.known[key]
        before = known.record
        record, done = transitions.complete(before, now=span[0], **call)
        assert answer is done
        if record is not before:
            known.record, known.grants, known.gone = record, {}, (span[0] + retention, span[1] + retention)
        return done

    def released(self, key: str, answer: Record | None, span: Span, **call: Any) -> bool:
        """Judge a release."""
        known = self.known[key]
        record, done = transitions.release(known.record, **call)
        if done and record is not None:
            assert answer is not None
            told = ("state", "attempts", "crashes", "suspicions", "beside", "fence", "fingerprint")
            assert [getattr(answer, name) for name in told] == [getattr(record, name) for name in told]
            assert _without_task(answer.steps) == _without_task(record.steps)
        else:
            assert answer is None
        if done:
            known.record = record
            known.grants.pop(call["holder"], None)
        return done

    def reset(self, key: str, answer: bool, span: Span, *, holder: str | None) -> bool:
        """Judge a reset."""
        known = self.known[key]
        record, done = transitions.reset(known.record, holder=holder)
        assert answer is done
        if done:
            known.record = record
            known.grants.pop(holder or "", None)
        return done

    def renewed(self, leases: list[tuple[str, str]], answer: list[bool], span: Span, *, lease: float) -> bool:
        """Judge the renewal of several leases."""
        expected = []
        for key, holder in leases:
            known = self.known[key]
            known.record, done = transitions.renew(known.record, holder=holder, lease=lease, now=span[0])
            if done:
                known.grants[holder] = span[0] + lease
            expected.append(done)
        assert answer == expected
        return any(answer)

    def step_saved(self, key: str, answer: bool, span: Span, **call: Any) -> bool:
        """Judge a recovery point."""
        known = self.known[key]
        known.record, done = transitions.save_step(known.record, **call)
        assert answer is done
        return done

    # -- judges of what operators do --------------------------------------------------------------------------

    def pruned(self, answer: int, span: Span) -> bool:
        """Judge a pruning of ten at most."""
        assert 0 <= answer <= 10
        return False  # no record that is to be found has changed

    def forgotten(self, key: str, answer: bool, span: Span) -> bool:
        """Judge that a key is forgotten."""
        known = self.known[key]
        assert answer is (known.record is not None)
        known.vanish()
        return answer

    def broken(self, key: str, answer: Record | None, span: Span) -> bool:
        """Judge that a lease is broken."""
        known = self.known[key]
        before = known.record
        known.record, done = transitions.break_lease(before)
        if done:
            _same(before, answer, TOLERANCE)
            known.grants = {}
        else:
            assert answer is None
        return done

    def listed(self, answer: list[tuple[str, Record]], span: Span) -> bool:
        """Judge a list of all leases, of other keys too."""
        ours = [(key, record) for key, record in answer if key in self.known]
        leased = {key for key, known in self.known.items() if known.state is RecordState.LEASED}
        assert sorted(key for key, _ in ours) == sorted(leased)
        for key, record in ours:
            _same(self.known[key].record, record, TOLERANCE)
        return False

    # -- records ----------------------------------------------------------------------------------------------

    def compare(self, key: str, before: Record | None, found: Record | None, span: Span, touched: bool) -> None:
        """Compare a record with the model's behind a call, and take the times from it.

        Args:
            key: whose it is.
            before: the record before the call.
            found: the record behind it.
            span: of the call.
            touched: whether the call has written this record.
        """
        known = self.known[key]
        expected = known.record
        _same(expected, found, TOLERANCE + span[1] - span[0])
        if expected is None or found is None:
            return
        if before is not None and before.state is RecordState.COMPLETED:
            assert found == before, "a completed key has changed"
        known.fence = max(known.fence, found.fence)
        known.record = replace(expected, until=found.until, claimed_at=found.claimed_at)
        if found.state is RecordState.COMPLETED:
            return
        kept = max(self.memory, STEPS_SECONDS) if found.steps else self.memory
        if found.state is RecordState.LEASED:
            known.gone = (found.until + kept - LONGEST_LEASE, found.until + kept)
        elif touched:
            known.gone = (span[0] + kept, span[1] + kept)

    def forget(self, key: str, *seen: Record | None) -> None:
        """Begin a key anew, behind the fences of all records of it that were seen."""
        known = self.known[key]
        fences = [record.fence for record in (*seen, known.record) if record is not None]
        known.fence = max(known.fence, *fences, 0)
        known.vanish()


def _same(expected: Record | None, found: Record | None, tolerance: float) -> None:
    """Compare two records: everything exactly but the times."""
    if expected is None or found is None:
        assert found is expected, f"found {found}, not {expected}"
        return
    told: tuple[str, ...] = ("state", "fingerprint", "fence", "attempts", "crashes", "suspicions", "beside", "owner", "result")
    if expected.state is not RecordState.COMPLETED:  # who completed it need not be kept
        told = (*told, "holder")
    differ = {name: (getattr(found, name), getattr(expected, name)) for name in told if getattr(found, name) != getattr(expected, name)}
    assert not differ, f"found and expected: {differ}"
    assert _without_task(found.steps) == _without_task(expected.steps)
    for name in ("until", "claimed_at"):
        assert abs(getattr(found, name) - getattr(expected, name)) <= tolerance, f"{name}: {found} is not {expected}"


def _without_task(steps: Any) -> dict[str, StoredResult]:
    """Return steps without the task that kept them: a store need not remember it."""
    return {name: replace(value, task_id="") for name, value in steps.items()}
