"""Where a task stands, by what was seen of it: a table."""

from __future__ import annotations

import pytest

from celery_guardrails.audit.report import Audit, Finding, findings_of
from celery_guardrails.audit.standing import Facts, Letter, Place, Sight, State, judge
from celery_guardrails.policy.lease import Record, RecordState, StoredResult

NOW, LEASE = 1000.0, 10.0
COMPLETED = Record(RecordState.COMPLETED, fence=7, result=StoredResult())
LIVE = Record(RecordState.LEASED, holder="h", owner="w1/5", until=NOW + 5, fence=7)
JUST_OVER = Record(RecordState.LEASED, holder="h", owner="w1/5", until=NOW - 5)
LONG_OVER = Record(RecordState.LEASED, holder="h", owner="w1/5", until=NOW - 31)
IDLE = Record(RecordState.IDLE, attempts=2, claimed_at=NOW - 60)
READY, DELAYED, HELD = Sight(Place.READY, "q"), Sight(Place.DELAYED, "q"), Sight(Place.HELD, "q")
ACTIVE = Sight(Place.HELD, "q", "w1", active=True)
LETTER = Letter("ab-12", "q", "poison")
ARCHIVED = Letter("ab-12", "q", "poison", "archive")
CONFLICT = Letter("cd-34", "q", "conflict")
DISCARDED = Letter("ab-12", "q", "poison", "archive", "discarded")


def stand(record=None, messages=(), letters=(), result="", *, all_held=True, name="k"):
    facts = Facts(name, "k", record, tuple(messages), tuple(letters), result)
    return judge(facts, now=NOW, lease=LEASE, all_held=all_held)


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        ({"record": COMPLETED}, State.COMPLETED, "completion"),
        ({"record": COMPLETED, "messages": [READY]}, State.COMPLETED, "completion"),  # a copy, which will not run
        ({"record": LIVE}, State.RUNNING, "w1/5"),
        ({"record": LIVE, "messages": [HELD]}, State.RUNNING, "w1/5"),
        ({"messages": [READY]}, State.WAITING, "in queue q"),
        ({"record": IDLE, "messages": [READY]}, State.WAITING, "in queue q"),
        ({"messages": [DELAYED]}, State.DELAYED, "for queue q"),
        ({"messages": [DELAYED, READY]}, State.WAITING, "in queue q"),
        ({"messages": [HELD]}, State.WAITING, "not begun"),
        ({"messages": [ACTIVE]}, State.RUNNING, "w1 says that it runs"),
        ({"record": JUST_OVER, "messages": [HELD]}, State.WAITING, "lease is over since 5 s"),
        ({"letters": [LETTER]}, State.DEAD, "poison (letter ab-12 of q)"),
        ({"letters": [ARCHIVED]}, State.DEAD, "archived"),
        ({"letters": [DISCARDED]}, State.DEAD, "discarded: poison"),
        ({"record": IDLE, "letters": [LETTER]}, State.DEAD, "poison"),
        ({"record": JUST_OVER, "all_held": False}, State.WAITING, "comes back"),
        ({"record": LONG_OVER, "all_held": False}, State.UNACCOUNTED, "w1/5 is gone"),
        ({"record": JUST_OVER}, State.UNACCOUNTED, "w1/5 is gone"),  # a broker that shows what is held shows that nobody holds it
        ({}, State.UNACCOUNTED, "no record, no message, no letter"),
        ({"record": IDLE}, State.UNACCOUNTED, "2 attempts charged, last claimed 60 s ago"),
        ({"result": "SUCCESS"}, State.COMPLETED, "result backend"),
        ({"result": "FAILURE"}, State.FAILED, "there is no letter"),
        ({"result": "REVOKED"}, State.FAILED, "REVOKED"),
        ({"result": "PENDING"}, State.UNACCOUNTED, "no record"),
        ({"result": "STARTED"}, State.UNACCOUNTED, "no record"),
    ],
)
def test_a_task_is_in_exactly_one_state(seen, state, words):
    standing = stand(**seen)
    assert (standing.state, standing.contradiction) == (state, "")
    assert words in standing.where
    assert standing.settled is (state is not State.UNACCOUNTED)


@pytest.mark.parametrize("letter", [LETTER, ARCHIVED], ids=["queue", "archive"])
@pytest.mark.parametrize("record", [COMPLETED, LIVE], ids=["completed", "running"])
def test_what_is_completed_or_runs_and_has_a_letter_contradicts_itself(record, letter):
    standing = stand(record, letters=[letter])
    assert standing.contradiction.endswith(f"and dead-lettered as {letter}")
    assert not standing.settled


@pytest.mark.parametrize("record", [COMPLETED, LIVE], ids=["completed", "running"])
def test_a_letter_that_was_discarded_contradicts_nothing(record):
    assert stand(record, letters=[DISCARDED]).settled


def test_a_letter_whose_key_waits_as_well_is_told_and_is_no_error():
    standing = stand(None, [READY], [LETTER])
    assert standing.state is State.WAITING
    assert "published twice, or being replayed" in standing.note
    assert [finding.error for finding in findings_of([standing], [])] == [False]


def test_each_thing_that_is_odd_is_a_finding_with_its_key_and_what_to_do():
    standings = [stand(COMPLETED, letters=[LETTER]), stand(LIVE, letters=[LETTER]), stand(), stand(COMPLETED)]
    findings = findings_of(standings, ["what 1 consumers hold"])
    assert [finding.kind for finding in findings] == ["completed and dead", "running and dead", "unaccounted"]
    assert all(finding.error and finding.key == "k" and finding.mend for finding in findings)
    assert "not seen: what 1 consumers hold" in findings[2].text


def test_what_failed_without_a_letter_is_told_and_is_no_error():
    (finding,) = findings_of([stand(result="FAILURE")], [])
    assert (finding.kind, finding.error) == ("failed without a letter", False)
    assert "dead_letter=False" in finding.mend


def test_a_balance_counts_every_one_that_was_asked_for_once():
    audit = Audit(0, 0, 1, standings=(stand(COMPLETED), stand(LIVE), stand(messages=[READY]), stand()))
    assert sum(audit.balance.values()) == 4
    assert audit.balance[State.WAITING] == audit.balance[State.UNACCOUNTED] == 1


def test_notes_do_not_break_conservation_and_errors_do():
    assert Audit(0, 0, 1, findings=(Finding("a", "b", error=False),)).conserved
    assert not Audit(0, 0, 1, findings=(Finding("a", "b"),)).conserved


@pytest.mark.parametrize(("record", "state"), [(COMPLETED, State.COMPLETED), (LIVE, State.RUNNING)])
def test_a_letter_whose_key_is_another_tasks_contradicts_nothing_and_is_noted(record, state):
    standing = stand(record, letters=[CONFLICT])
    assert (standing.state, standing.contradiction) == (state, "")
    assert "other arguments" in standing.note
    assert "conflict (letter cd-34 of q)" in standing.note
    both = stand(record, letters=[CONFLICT, LETTER])
    assert "poison" in both.contradiction
    assert "conflict" not in both.contradiction


@pytest.mark.parametrize("record", [COMPLETED, LIVE, IDLE, None])
def test_a_task_that_was_refused_for_its_key_is_dead_whatever_became_of_that_key(record):
    standing = stand(record, letters=[CONFLICT], name="id-2")
    assert (standing.state, standing.where, standing.contradiction) == (State.DEAD, "conflict (letter cd-34 of q)", "")
    assert stand(record, messages=[READY], letters=[CONFLICT], name="id-2").state is not State.DEAD, "it is being replayed"
    assert stand(COMPLETED, letters=[CONFLICT, LETTER], name="id-1").state is State.COMPLETED
