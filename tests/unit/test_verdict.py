"""What happens to a task, as a table: claim, outcome, classification, options, limits → verdict.

Read it as the specification of :func:`celery_guardrails.policy.verdict.decide`. ``half`` is the uniform random number that
is handed in, 0.5; time stands at ``NOW``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.delivery import Delivery, Travel
from celery_guardrails.policy.lease import Claim, ClaimState, StoredResult
from celery_guardrails.policy.progress import Progress
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import (
    BUSY_STEP,
    STORE_BACKOFF,
    Cancelled,
    Complete,
    Crowded,
    DeadLetterNow,
    Fail,
    HandBack,
    LeaseGone,
    Limits,
    Lost,
    NotStarted,
    PassThrough,
    Raised,
    Rejected,
    Replay,
    Resubmitted,
    RetryIn,
    Returned,
    Run,
    Skip,
    Stopped,
    attempt_number,
    deadline_of,
    decide,
)

NOW = 1_000_000.0
MINE = StoredResult("application/json", "utf-8", b"1", task_id="task")
OTHERS = replace(MINE, task_id="another task")

RETRYABLE = Raised(Classification("retryable"))
THROTTLED = Raised(Classification("throttled", retry_after=100.0))
PERMANENT = Raised(Classification("permanent"))
POISON = Raised(Classification("poison"))
EXHAUSTED = Raised(Classification("permanent"), reason="exhausted")
OVERRAN = Raised(Classification("permanent"), reason="deadline")


def given_delivery(**travel: Any) -> Delivery:
    return Delivery("task", "shop.charge", "key", "fp", "holder", travel=Travel(first=NOW - 100, **travel))


def claimed(**fields: Any) -> Claim:
    return Claim(ClaimState.CLAIMED, fence=1, **fields)


def at(
    cursor: Any = 41, *, attempts: int = 0, crashes: int = 0, stalls: int = 0, begun: tuple[int, int] | None = None, saved_at: Any = NOW
) -> Progress:
    """A loop at a cursor: charges when it came there, runs since that got nowhere, charges when the last one began there."""
    return Progress({"": cursor}, items=41, saved_at=saved_at, attempts=attempts, crashes=crashes, stalls=stalls, begun=begun)


def refused(why: str, wait: float, **fields: Any) -> Claim:
    return Claim(ClaimState.REFUSED, why=why, wait=wait, **fields)


def limits(
    *, max_attempts: int = 4, deadline: float | None = None, jitter: str = "full", inherit_deadline: bool = True, **fields: Any
) -> Limits:
    retry = RetryPolicy(max_attempts=max_attempts, base=8.0, cap=600.0, jitter=jitter, deadline=deadline, inherit_deadline=inherit_deadline)
    return Limits(retry=retry, **fields)


def verdict(claim: Claim, outcome: Any, allowed: Limits | None = None, delivery: Delivery | None = None, fraction: float = 0.5) -> Any:
    return decide(delivery or given_delivery(), claim, outcome, allowed or limits(), now=NOW, fraction=fraction)


# -- may it run? ----------------------------------------------------------------------------------------------------

CLAIMED, BUSY, AWAY, CONFLICT = claimed(), Claim(ClaimState.BUSY, wait=40.0), Claim(ClaimState.UNAVAILABLE), Claim(ClaimState.CONFLICT)
DONE_BY_ME, DONE_BY_OTHER, DONE_BLANK = (Claim(ClaimState.COMPLETED, result=result) for result in (MINE, OTHERS, None))
FIRST, THIRD = given_delivery(), given_delivery(attempts=2)

STANDS = "a loop of it stands at the cursor 41"
STALLED = "its loop has left the cursor 41 5 times where it was (guardrails_max_stalls)"

ADMISSION: list[tuple[Claim, Delivery, dict[str, Any], Any]] = [
    # claim             message  options and limits                 verdict
    # -- the lease is ours
    (CLAIMED, FIRST, {}, Run(1, None)),
    (CLAIMED, THIRD, {}, Run(3, None)),
    (claimed(attempts=2), FIRST, {}, Run(3, None)),
    (claimed(attempts=1), THIRD, {}, Run(3, None)),
    (CLAIMED, FIRST, {"deadline": 200.0}, Run(1, NOW + 100)),
    (CLAIMED, FIRST, {"deadline": 100.0}, DeadLetterNow("deadline", attempts=0)),
    (CLAIMED, THIRD, {"deadline": 50.0}, DeadLetterNow("deadline", attempts=2)),
    (CLAIMED, FIRST, {"deadline": 50.0, "dead_letter": False}, Fail("deadline")),
    #    an inherited deadline: the earlier one counts
    (CLAIMED, given_delivery(until=NOW + 7), {}, Run(1, NOW + 7)),
    (CLAIMED, given_delivery(until=NOW + 7), {"deadline": 200.0}, Run(1, NOW + 7)),
    (CLAIMED, given_delivery(until=NOW + 7), {"deadline": 103.0}, Run(1, NOW + 3)),
    (CLAIMED, given_delivery(until=NOW), {}, DeadLetterNow("deadline", attempts=0)),
    (CLAIMED, given_delivery(until=NOW), {"deadline": 200.0}, DeadLetterNow("deadline", attempts=0)),
    (CLAIMED, given_delivery(until=NOW + 7), {"deadline": 50.0}, DeadLetterNow("deadline", attempts=0)),
    (CLAIMED, given_delivery(until=NOW), {"inherit_deadline": False}, Run(1, None)),
    (CLAIMED, given_delivery(until=NOW), {"inherit_deadline": False, "deadline": 200.0}, Run(1, NOW + 100)),
    (claimed(crashes=2, takeover=True), FIRST, {}, Run(1, None)),
    (claimed(crashes=3, takeover=True), FIRST, {}, DeadLetterNow("poison", attempts=0, crashes=3)),
    (claimed(crashes=3), THIRD, {}, DeadLetterNow("poison", attempts=2, crashes=3)),
    (claimed(crashes=3), FIRST, {"dead_letter": False}, Fail("poison")),
    (claimed(crashes=1), FIRST, {"max_crashes": 1}, DeadLetterNow("poison", attempts=0, crashes=1)),
    (claimed(crashes=3), FIRST, {"deadline": 50.0}, DeadLetterNow("poison", attempts=0, crashes=3)),
    #    what was charged before a loop of it moved on does not count
    (claimed(crashes=7, progress=at(crashes=5)), FIRST, {}, Run(1, None)),
    (claimed(crashes=8, progress=at(crashes=5)), FIRST, {}, DeadLetterNow("poison", attempts=0, crashes=8, why=STANDS)),
    (claimed(crashes=8, progress=at(crashes=5)), FIRST, {"dead_letter": False}, Fail("poison", why=STANDS)),
    (claimed(attempts=9, progress=at(attempts=9)), FIRST, {}, Run(10, None)),
    #    runs that left a loop where it was, and that nothing was charged for
    (claimed(progress=at(stalls=3, begun=(0, 0))), FIRST, {}, Run(1, None)),
    (claimed(progress=at(stalls=4, begun=(0, 0))), FIRST, {}, DeadLetterNow("exhausted", attempts=0, why=STALLED)),
    (claimed(progress=at(stalls=4, begun=(0, 0))), FIRST, {"max_stalls": 6}, Run(1, None)),
    (claimed(progress=at(stalls=4, begun=(0, 0))), FIRST, {"dead_letter": False}, Fail("exhausted", why=STALLED)),
    (claimed(progress=at(stalls=4, begun=(0, 0))), FIRST, {"deadline": 50.0}, DeadLetterNow("deadline", attempts=0)),
    #    the last of them was charged: it is no stall, and clears none
    (claimed(attempts=9, progress=at(attempts=8, stalls=4, begun=(8, 0))), FIRST, {}, Run(10, None)),
    (claimed(crashes=1, progress=at(stalls=4, begun=(0, 0))), FIRST, {}, Run(1, None)),
    (claimed(crashes=1, progress=at(stalls=5, begun=(0, 0))), FIRST, {}, DeadLetterNow("exhausted", attempts=0, crashes=1, why=STALLED)),
    (claimed(progress=at(stalls=4, begun=(2, 0))), THIRD, {}, DeadLetterNow("exhausted", attempts=2, why=STALLED)),
    # -- it was in workers that vanished with others: no charge, but alone where one loss more would be the last
    (claimed(suspicions=1, takeover=True), FIRST, {}, Run(1, None)),
    (claimed(suspicions=2, takeover=True), FIRST, {}, Run(1, None, alone=True)),
    (claimed(crashes=1, suspicions=1), THIRD, {}, Run(3, None, alone=True)),
    (claimed(suspicions=9), FIRST, {}, Run(1, None, alone=True)),
    (claimed(suspicions=1), FIRST, {"max_crashes": 1}, Run(1, None, alone=True)),
    (claimed(suspicions=2), FIRST, {"deadline": 50.0}, DeadLetterNow("deadline", attempts=0)),
    #    from where its loops moved on, losses of both kinds are counted; a run that ended so is no stall
    (claimed(suspicions=2, progress=at(crashes=2)), FIRST, {}, Run(1, None)),
    (claimed(suspicions=4, progress=at(crashes=2)), FIRST, {}, Run(1, None, alone=True)),
    (claimed(crashes=4, progress=at(crashes=2)), FIRST, {}, Run(1, None)),
    (claimed(crashes=5, progress=at(crashes=2)), FIRST, {}, DeadLetterNow("poison", attempts=0, crashes=5, why=STANDS)),
    (claimed(crashes=4, suspicions=1, progress=at(crashes=2)), FIRST, {}, Run(1, None, alone=True)),
    (claimed(suspicions=1, progress=at(stalls=4, begun=(0, 0))), FIRST, {}, Run(1, None)),
    # -- another execution has it: at most until its lease ends, nothing charged
    (BUSY, FIRST, {}, HandBack(0.5 + 0.125, "held")),
    (BUSY, given_delivery(deferrals=3), {}, HandBack(4.0 + 0.125, "held")),
    (BUSY, given_delivery(deferrals=10), {}, HandBack(40.0 + 0.125, "held")),
    (replace(BUSY, wait=500.0), given_delivery(deferrals=1000), {}, HandBack(60.0 + 0.125, "held")),
    #    whatever the deadline says: somebody holds the key who may yet complete it
    (BUSY, FIRST, {"deadline": 100.25}, HandBack(0.5 + 0.125, "held")),
    (BUSY, given_delivery(deferrals=10, until=NOW + 20), {}, HandBack(40.0 + 0.125, "held")),
    (BUSY, FIRST, {"deadline": 100.0}, HandBack(0.5 + 0.125, "held")),
    (replace(BUSY, crashes=3), THIRD, {"deadline": 50.0}, HandBack(0.5 + 0.125, "held")),
    (BUSY, FIRST, {"on_duplicate": "raise"}, HandBack(0.5 + 0.125, "held")),
    # -- the store is away
    (AWAY, FIRST, {}, HandBack(0.75, "store away")),
    (AWAY, given_delivery(deferrals=2), {}, HandBack(3.0, "store away")),
    (AWAY, given_delivery(deferrals=1000), {}, HandBack(22.5, "store away")),
    (AWAY, FIRST, {"dead_letter": False}, HandBack(0.75, "store away")),
    (AWAY, THIRD, {"store_failure": "open"}, Run(3, None, guarded=False)),
    (AWAY, given_delivery(deferrals=1000), {"deadline": 110.0}, HandBack(22.5, "store away")),
    (AWAY, FIRST, {"deadline": 100.0}, HandBack(0.75, "store away")),
    (AWAY, FIRST, {"deadline": 101.0, "store_failure": "open"}, Run(1, NOW + 1, guarded=False)),
    (AWAY, THIRD, {"deadline": 100.0, "store_failure": "open"}, DeadLetterNow("deadline", attempts=2)),
    # -- the resource lets nobody in: behind a breaker all know when, the others ask again after growing times
    (refused("breaker", 4.0), FIRST, {}, HandBack(4.0 + 2.0 * 0.5, "breaker")),
    (refused("breaker", 1.0), given_delivery(deferrals=1000), {}, HandBack(1.0 + 1.0 * 0.5, "breaker")),
    (refused("breaker", 600.0), FIRST, {}, HandBack(15.0 + 7.5 * 0.5, "breaker")),
    (refused("budget", 0.5), FIRST, {}, HandBack(0.5 + 0.375, "budget")),
    (refused("slots", 0.5), given_delivery(deferrals=2), {}, HandBack(0.5 + 1.5, "slots")),
    (refused("slots", 0.5), given_delivery(deferrals=1000), {}, HandBack(0.5 + 7.5, "slots")),
    (refused("rate", 6.0), FIRST, {}, HandBack(6.0 + 0.375, "rate")),
    (refused("slots", 0.5, crashes=3), FIRST, {}, HandBack(0.5 + 0.375, "slots")),
    #    but not beyond the deadline: 100 s are gone
    (refused("breaker", 4.0), FIRST, {"deadline": 102.0}, HandBack(2.0, "breaker")),
    (refused("breaker", 4.0), given_delivery(until=NOW + 0.1), {}, HandBack(0.3, "breaker")),
    # -- the key is used for other arguments
    (CONFLICT, FIRST, {}, DeadLetterNow("conflict", attempts=0)),
    (CONFLICT, THIRD, {}, DeadLetterNow("conflict", attempts=2)),
    (CONFLICT, FIRST, {"dead_letter": False}, Fail("conflict")),
    (CONFLICT, FIRST, {"deadline": 50.0}, DeadLetterNow("conflict", attempts=0)),
    # -- the key has completed
    (DONE_BY_OTHER, FIRST, {"on_duplicate": "return"}, Replay(OTHERS)),
    (DONE_BY_OTHER, FIRST, {"on_duplicate": "ignore"}, Skip("duplicate")),
    (DONE_BY_OTHER, FIRST, {"on_duplicate": "raise"}, Fail("duplicate")),
    (DONE_BY_OTHER, FIRST, {"on_duplicate": "raise", "dead_letter": False}, Fail("duplicate")),
    (DONE_BLANK, FIRST, {"on_duplicate": "return"}, Replay(None)),
    (DONE_BLANK, FIRST, {"on_duplicate": "ignore"}, Skip("duplicate")),
    (DONE_BY_OTHER, FIRST, {"deadline": 50.0}, Replay(OTHERS)),
    #    a redelivery of the very message that completed it is no duplicate
    (DONE_BY_ME, FIRST, {"on_duplicate": "return"}, Replay(MINE)),
    (DONE_BY_ME, FIRST, {"on_duplicate": "ignore"}, Replay(MINE)),
    (DONE_BY_ME, FIRST, {"on_duplicate": "raise"}, Replay(MINE)),
]


@pytest.mark.parametrize(("claim", "delivery", "options", "expected"), ADMISSION)
def test_whether_a_message_may_run(claim: Claim, delivery: Delivery, options: dict[str, Any], expected: Any) -> None:
    assert verdict(claim, NotStarted(), limits(**options), delivery) == expected


# -- what became of it? ---------------------------------------------------------------------------------------------

LAST = given_delivery(attempts=3)

OUTCOMES: list[tuple[Any, Claim, Delivery, dict[str, Any], Any]] = [
    # outcome           claim    message  options and limits        verdict
    (Returned(1), CLAIMED, FIRST, {}, Complete()),
    (Returned(None), CLAIMED, LAST, {"deadline": 50.0, "dead_letter": False}, Complete()),
    # -- retryable: half of the step of 8, 16, 32 s
    (RETRYABLE, CLAIMED, FIRST, {}, RetryIn(4.0, attempts=1)),
    (RETRYABLE, CLAIMED, given_delivery(attempts=1), {}, RetryIn(8.0, attempts=2)),
    (RETRYABLE, CLAIMED, THIRD, {}, RetryIn(16.0, attempts=3)),
    (RETRYABLE, CLAIMED, FIRST, {"jitter": "none"}, RetryIn(8.0, attempts=1)),
    (RETRYABLE, CLAIMED, FIRST, {"jitter": "equal"}, RetryIn(6.0, attempts=1)),
    (RETRYABLE, CLAIMED, given_delivery(waited=10.0), {"jitter": "decorrelated"}, RetryIn(19.0, attempts=1)),
    (RETRYABLE, claimed(attempts=2), FIRST, {}, RetryIn(16.0, attempts=3)),
    (RETRYABLE, CLAIMED, FIRST, {"dead_letter": False}, RetryIn(4.0, attempts=1)),
    (RETRYABLE, claimed(crashes=2), FIRST, {}, RetryIn(4.0, attempts=1)),
    # -- throttled: what was asked for, and the jitter on top
    (THROTTLED, CLAIMED, FIRST, {}, RetryIn(150.0, attempts=1, throttled=True)),
    (Raised(Classification("throttled", 9999.0)), CLAIMED, FIRST, {}, RetryIn(570.0, attempts=1, throttled=True)),
    (Raised(Classification("retryable", 100.0)), CLAIMED, FIRST, {}, RetryIn(150.0, attempts=1)),
    # -- the attempts are used up
    (RETRYABLE, CLAIMED, LAST, {}, DeadLetterNow("exhausted", attempts=4)),
    (THROTTLED, CLAIMED, LAST, {}, DeadLetterNow("exhausted", attempts=4)),
    (RETRYABLE, claimed(attempts=3), FIRST, {}, DeadLetterNow("exhausted", attempts=4)),
    (RETRYABLE, claimed(attempts=3, crashes=2), FIRST, {}, DeadLetterNow("exhausted", attempts=4, crashes=2)),
    (RETRYABLE, CLAIMED, FIRST, {"max_attempts": 1}, DeadLetterNow("exhausted", attempts=1)),
    (RETRYABLE, CLAIMED, given_delivery(attempts=9), {}, DeadLetterNow("exhausted", attempts=10)),
    (RETRYABLE, CLAIMED, LAST, {"dead_letter": False}, Fail("exhausted")),
    # -- but those before a loop of it moved on do not count, nor make the next one wait longer
    (RETRYABLE, claimed(attempts=9, progress=at(attempts=9)), FIRST, {}, RetryIn(4.0, attempts=10)),
    (RETRYABLE, claimed(attempts=11, progress=at(attempts=9)), FIRST, {}, RetryIn(16.0, attempts=12)),
    (RETRYABLE, claimed(attempts=12, progress=at(attempts=9)), FIRST, {}, DeadLetterNow("exhausted", attempts=13)),
    (RETRYABLE, CLAIMED, given_delivery(attempts=9), {"max_attempts": 1}, DeadLetterNow("exhausted", attempts=10)),
    # -- the deadline would pass before the next attempt: 100 s are gone, 4 s would be waited
    (RETRYABLE, CLAIMED, FIRST, {"deadline": 104.1}, RetryIn(4.0, attempts=1)),
    (RETRYABLE, CLAIMED, FIRST, {"deadline": 104.0}, DeadLetterNow("deadline", attempts=1)),
    (RETRYABLE, CLAIMED, FIRST, {"deadline": 50.0}, DeadLetterNow("deadline", attempts=1)),
    (THROTTLED, CLAIMED, FIRST, {"deadline": 150.0}, DeadLetterNow("deadline", attempts=1)),
    (RETRYABLE, CLAIMED, FIRST, {"deadline": 50.0, "dead_letter": False}, Fail("deadline")),
    (RETRYABLE, CLAIMED, LAST, {"deadline": 50.0}, DeadLetterNow("exhausted", attempts=4)),
    (RETRYABLE, CLAIMED, given_delivery(until=NOW + 4.1), {}, RetryIn(4.0, attempts=1)),
    (RETRYABLE, CLAIMED, given_delivery(until=NOW + 4), {}, DeadLetterNow("deadline", attempts=1)),
    # -- killed when the deadline came
    (OVERRAN, CLAIMED, FIRST, {"deadline": 100.0}, DeadLetterNow("deadline", attempts=1)),
    (OVERRAN, CLAIMED, LAST, {"deadline": 100.0}, DeadLetterNow("deadline", attempts=4)),
    (OVERRAN, CLAIMED, FIRST, {"deadline": 100.0, "dead_letter": False}, Fail("deadline")),
    # -- no retry can help
    (PERMANENT, CLAIMED, FIRST, {}, DeadLetterNow("permanent", attempts=1)),
    (PERMANENT, CLAIMED, LAST, {}, DeadLetterNow("permanent", attempts=4)),
    (PERMANENT, claimed(crashes=1), FIRST, {"deadline": 50.0}, DeadLetterNow("permanent", attempts=1, crashes=1)),
    (PERMANENT, CLAIMED, FIRST, {"dead_letter": False}, Fail("permanent")),
    (POISON, CLAIMED, FIRST, {}, DeadLetterNow("poison", attempts=1)),
    (POISON, CLAIMED, FIRST, {"dead_letter": False}, Fail("poison")),
    (EXHAUSTED, CLAIMED, FIRST, {}, DeadLetterNow("exhausted", attempts=1)),
    (EXHAUSTED, CLAIMED, FIRST, {"dead_letter": False}, Fail("exhausted")),
    # -- the task's own words to Celery
    (Resubmitted(), CLAIMED, FIRST, {}, PassThrough(charge=1)),
    (Cancelled(), CLAIMED, FIRST, {}, PassThrough(forget=True)),
    (Rejected(requeue=True), CLAIMED, FIRST, {}, PassThrough()),
    (Rejected(), CLAIMED, FIRST, {}, DeadLetterNow("rejected", attempts=1)),
    (Rejected(), CLAIMED, FIRST, {"dead_letter": False}, Fail("rejected")),
    # -- not its fault: a deploy, a lease that was taken
    (Stopped(), CLAIMED, LAST, {"deadline": 50.0, "dead_letter": False}, HandBack(0.0, "stopped")),
    (Stopped("time is up"), CLAIMED, FIRST, {}, HandBack(0.0, "time is up")),
    (LeaseGone(), CLAIMED, FIRST, {}, HandBack(BUSY_STEP, "lease lost")),
    # -- it should be alone and is not: elsewhere, uncharged, after growing times; after five tries beside others
    (Crowded(), claimed(suspicions=2), FIRST, {}, HandBack(1.5, "crowded")),
    (Crowded(), claimed(suspicions=2), given_delivery(vain=1, deferrals=1000), {}, HandBack(3.0, "crowded")),
    (Crowded(), claimed(suspicions=2), given_delivery(vain=4, attempts=1), {"deadline": 100.0}, DeadLetterNow("deadline", attempts=1)),
    (Crowded(), claimed(suspicions=2), given_delivery(vain=4), {}, HandBack(22.5, "crowded")),
    (Crowded(), claimed(suspicions=2), FIRST, {"deadline": 101.0}, HandBack(1.0, "crowded")),
    (Crowded(), claimed(suspicions=2), given_delivery(vain=5), {}, Run(1, None, alone=True)),
    (Crowded(), claimed(suspicions=2), given_delivery(vain=5), {"deadline": 50.0, "dead_letter": False}, Fail("deadline")),
    (Crowded(), claimed(suspicions=2), FIRST, {"deadline": 100.1}, HandBack(0.3, "crowded")),
    (Crowded(), claimed(suspicions=9), given_delivery(vain=7, attempts=1), {"deadline": 200.0}, Run(2, NOW + 100, alone=True)),
    # -- the process vanished: crashes are counted, attempts are not
    (Lost(crashes=1), CLAIMED, FIRST, {}, HandBack(0.0, "crashed")),
    (Lost(crashes=2), CLAIMED, LAST, {"dead_letter": False}, HandBack(0.0, "crashed")),
    (Lost(crashes=3), CLAIMED, FIRST, {}, DeadLetterNow("poison", attempts=0, crashes=3)),
    (Lost(crashes=3), CLAIMED, THIRD, {}, DeadLetterNow("poison", attempts=2, crashes=3)),
    (Lost(crashes=1), CLAIMED, FIRST, {"max_crashes": 1}, DeadLetterNow("poison", attempts=0, crashes=1)),
    (Lost(crashes=3), CLAIMED, FIRST, {"dead_letter": False}, Fail("poison")),
    #    and those before a loop of it moved on are forgiven
    (Lost(crashes=7), claimed(progress=at(crashes=5)), FIRST, {}, HandBack(0.0, "crashed")),
    (Lost(crashes=8), claimed(progress=at(crashes=5)), FIRST, {}, DeadLetterNow("poison", attempts=0, crashes=8, why=STANDS)),
]


@pytest.mark.parametrize(("outcome", "claim", "delivery", "options", "expected"), OUTCOMES)
def test_what_becomes_of_an_execution(outcome: Any, claim: Claim, delivery: Delivery, options: dict[str, Any], expected: Any) -> None:
    assert verdict(claim, outcome, limits(**options), delivery) == expected


# -- what holds for every row ---------------------------------------------------------------------------------------

claims = st.builds(
    Claim,
    state=st.sampled_from(ClaimState),
    attempts=st.integers(0, 20),
    crashes=st.integers(0, 5),
    wait=st.floats(0, 1000),
    result=st.sampled_from([None, MINE, OTHERS]),
    progress=st.builds(at, st.integers(), attempts=st.integers(0, 20), crashes=st.integers(0, 5), stalls=st.integers(0, 9)),
)
deliveries = st.builds(
    given_delivery,
    attempts=st.integers(0, 20),
    deferrals=st.integers(0, 10_000),
    waited=st.none() | st.floats(0, 1e6),
    vain=st.integers(0, 9),
    until=st.none() | st.floats(NOW - 100, NOW + 1000),
)
raised = st.builds(
    Raised,
    st.builds(Classification, st.sampled_from(["retryable", "throttled", "permanent", "poison"]), st.none() | st.floats(0, 1e9)),
)
outcomes = st.one_of(
    raised,
    st.sampled_from([NotStarted(), Crowded(), Returned(), Resubmitted(), Cancelled()]),
    st.sampled_from([Rejected(), Rejected(requeue=True), Stopped(), LeaseGone()]),
    st.builds(Lost, st.integers(1, 10)),
)
allowances = st.builds(
    limits,
    max_attempts=st.integers(1, 20),
    deadline=st.none() | st.floats(1, 1000),
    jitter=st.sampled_from(["full", "equal", "decorrelated", "none"]),
    max_crashes=st.integers(1, 5),
    on_duplicate=st.sampled_from(["return", "ignore", "raise"]),
    dead_letter=st.booleans(),
    store_failure=st.sampled_from(["defer", "open"]),
)
fractions = st.floats(0, 1, exclude_max=True)


@given(deliveries, claims, outcomes, allowances, fractions)
def test_every_row_has_a_verdict_and_its_numbers_are_sound(
    delivery: Delivery, claim: Claim, outcome: Any, allowed: Limits, fraction: float
) -> None:
    found = decide(delivery, claim, outcome, allowed, now=NOW, fraction=fraction)
    deadline = deadline_of(delivery, allowed)
    if isinstance(found, RetryIn):
        assert 0 <= found.delay <= allowed.retry.cap
        assert found.attempts == attempt_number(delivery, claim)
        assert claim.progress.failures(found.attempts) < allowed.retry.max_attempts
        assert deadline is None or NOW + found.delay < deadline
    if isinstance(found, Run):
        assert deadline is None or deadline > NOW
    if isinstance(found, HandBack) and isinstance(outcome, NotStarted):
        waits = (ClaimState.BUSY, ClaimState.UNAVAILABLE)
        assert deadline is None or claim.state in waits or NOW + found.delay <= max(deadline, NOW + 0.3) + 1e-6
    if isinstance(found, HandBack):
        assert 0 <= found.delay <= max(allowed.busy_cap, STORE_BACKOFF[1]) + 0.25
    if isinstance(found, DeadLetterNow):
        assert allowed.dead_letter
        assert attempt_number(delivery, claim) - 1 <= found.attempts <= attempt_number(delivery, claim)
    if isinstance(found, Fail):
        assert not allowed.dead_letter or found.reason == "duplicate"


@given(deliveries, claims, allowances, fractions)
def test_the_body_runs_under_a_claim_only_or_unguarded_where_that_is_set(
    delivery: Delivery, claim: Claim, allowed: Limits, fraction: float
) -> None:
    found = decide(delivery, claim, NotStarted(), allowed, now=NOW, fraction=fraction)
    if isinstance(found, Run):
        assert claim.state is (ClaimState.CLAIMED if found.guarded else ClaimState.UNAVAILABLE)
        assert found.guarded or allowed.store_failure == "open"


@given(deliveries, claims, raised, allowances, fractions)
def test_a_failure_is_always_charged_exactly_one_attempt(
    delivery: Delivery, claim: Claim, outcome: Raised, allowed: Limits, fraction: float
) -> None:
    found = decide(delivery, claim, outcome, allowed, now=NOW, fraction=fraction)
    if isinstance(found, (RetryIn, DeadLetterNow)):
        assert found.attempts == attempt_number(delivery, claim)
    else:
        assert isinstance(found, Fail)


@given(deliveries, claims, allowances, fractions)
def test_a_deploy_is_never_charged(delivery: Delivery, claim: Claim, allowed: Limits, fraction: float) -> None:
    assert decide(delivery, claim, Stopped(), allowed, now=NOW, fraction=fraction) == HandBack(0.0, "stopped")


@given(fractions, fractions)
def test_messages_that_wait_for_one_key_or_store_do_not_come_back_together(one: float, other: float) -> None:
    for claim in (BUSY, AWAY):
        waits = [verdict(claim, NotStarted(), fraction=fraction).delay for fraction in (one, other)]
        assert (waits[0] == waits[1]) or (waits[0] < waits[1]) == (one < other)


def test_a_message_without_a_first_time_has_no_deadline() -> None:
    unknown = replace(FIRST, travel=Travel())
    assert deadline_of(unknown, limits(deadline=1.0)) is None
    assert verdict(CLAIMED, NotStarted(), limits(deadline=1.0), unknown) == Run(1, None)


def test_a_message_without_a_first_time_has_the_deadline_that_it_inherits() -> None:
    unknown = replace(FIRST, travel=Travel(until=NOW + 5))
    assert deadline_of(unknown, limits(deadline=1.0)) == NOW + 5
