"""The soak's own parts: a schedule that can be repeated, and an audit that can fail."""

from __future__ import annotations

from itertools import islice

import pytest

from celery_guardrails.audit import Audit, Finding, Standing, State
from tests.chaos.soak.audit import audit
from tests.chaos.soak.live import Live, identity
from tests.chaos.soak.measures import Death, growth, takeovers
from tests.chaos.soak.plan import FAULTS_AN_HOUR, Expected, Order, orders, schedule
from tests.support.ledger import Entry

PLAIN = Expected("a", "plain")
DOOMED = Expected("d", "permanent", "permanent")
LOOP = Expected("l", "loop", once=False)


def judged(effects=None, letters=None, *, tasks=(PLAIN, DOOMED), confirmed=("a", "d"), rows=None):
    return audit(tasks, set(confirmed), effects or {}, letters or {}, rows or {})


GOOD = {"a": 1}, {"d": ["permanent"]}


def test_a_seed_gives_the_same_deaths_and_the_same_tasks_again():
    assert schedule(7, 600) == schedule(7, 600)
    assert schedule(7, 600) != schedule(8, 600)
    assert list(islice(orders(7), 500)) == list(islice(orders(7), 500))
    assert list(islice(orders(7), 500)) != list(islice(orders(8), 500))


def test_deaths_are_in_order_of_time_and_every_kind_comes_at_least_once():
    plan = schedule(1, 60)
    assert [fault.at for fault in plan] == sorted(fault.at for fault in plan)
    assert {fault.kind for fault in plan} == set(FAULTS_AN_HOUR)
    assert all(3 <= fault.at <= 57 for fault in plan)


def test_an_hour_has_the_deaths_that_the_documentation_promises():
    kinds = [fault.kind for fault in schedule(1, 3600)]
    for kind, least in {"child_kill": 200, "worker_kill": 50, "broker_restart": 20}.items():
        assert kinds.count(kind) >= least


def test_a_store_that_is_a_file_is_not_restarted_and_the_other_deaths_stay_as_they_were():
    everything = schedule(3, 900)
    assert schedule(3, 900, store_restarts=False) == [fault for fault in everything if fault.kind != "store_restart"]


def test_every_task_of_a_chain_and_a_chord_is_expected_to_have_its_effect():
    assert [task.name for task in Order("1-chain", "chain", 0).tasks()] == ["1-chain.0", "1-chain.1", "1-chain.2"]
    assert [task.name for task in Order("2-chord", "chord", 0).tasks()][-1] == "2-chord.body"


def test_all_is_well_where_each_task_has_the_end_that_it_was_to_have():
    verdict = judged(*GOOD)
    assert verdict.good(atomic=True)
    assert (verdict.accepted, verdict.completed, dict(verdict.dead)) == (2, 1, {"permanent": 1})


def test_a_task_without_effect_and_without_letter_is_lost():
    for effects, letters in (({}, GOOD[1]), (GOOD[0], {})):
        verdict = judged(effects, letters)
        assert len(verdict.lost) == 1
        assert not verdict.good(atomic=False)


def test_a_publish_that_nobody_confirmed_may_be_lost_but_not_doubled():
    assert judged({}, GOOD[1], confirmed=("d",)).good(atomic=True)
    assert not judged({"a": 2}, GOOD[1], confirmed=("d",)).good(atomic=True)


def test_a_second_effect_is_doubled_and_fails_the_soak_only_where_it_is_atomic():
    verdict = judged({"a": 2}, GOOD[1])
    assert verdict.doubled == {"a": 2}
    assert not verdict.good(atomic=True)
    assert verdict.good(atomic=False)


def test_a_loop_may_repeat_its_end_but_leave_out_no_row():
    assert judged({"l": 2}, tasks=(LOOP,), confirmed=("l",)).good(atomic=True)
    assert "3 rows" in judged({"l": 1}, tasks=(LOOP,), confirmed=("l",), rows={"l": 3}).astray[0]


@pytest.mark.parametrize(
    ("effects", "letters"),
    [
        (GOOD[0], {"d": ["poison"]}),
        ({"a": 1, "d": 1}, {}),
        ({"a": 1}, {"a": ["poison"], **GOOD[1]}),
        ({}, {"a": ["exhausted"], **GOOD[1]}),
        ({"a": 1, "stranger": 1}, GOOD[1]),
        (GOOD[0], {"stranger": ["invalid"], **GOOD[1]}),
    ],
    ids=["another reason", "effect of a doomed task", "effect and letter", "innocent is dead", "unknown effect", "unknown letter"],
)
def test_an_end_that_nobody_expected_is_told_and_fails_the_soak(effects, letters):
    verdict = judged(effects, letters)
    assert len(verdict.astray) == 1
    assert not verdict.good(atomic=False)


# -- the live look --------------------------------------------------------------------------------------------------


def looked(live, now, *standings, effects=None, findings=(), tasks=None):
    """Let it see an audit of made-up standings, each (name, state[, contradiction])."""
    seen = tuple(Standing(name, name, state, where="somewhere", contradiction=more[0] if more else "") for name, state, *more in standings)
    by_name = {task.name: task for task in (PLAIN, DOOMED, LOOP)}
    tasks = tasks or [by_name[one.name] for one in seen]
    return live.see(now, tasks, Audit(0, 0, 1, standings=seen, findings=findings), effects or {})


def test_a_completion_without_an_effect_is_found_at_the_second_look():
    live = Live(30)
    looked(live, 0, ("a", State.COMPLETED))
    assert not live.found
    looked(live, 20, ("a", State.COMPLETED))
    assert live.found == {"a: completed, and there is no effect"}


def test_an_effect_that_is_read_a_look_later_is_no_contradiction():
    live = Live(30)
    looked(live, 0, ("a", State.COMPLETED))
    looked(live, 20, ("a", State.COMPLETED), effects={"a": 1})
    looked(live, 40, ("a", State.COMPLETED))
    assert not live.found


def test_a_task_that_is_nowhere_is_suspect_only_when_it_has_been_for_too_long():
    live = Live(30)
    assert looked(live, 0, ("a", State.UNACCOUNTED)) == looked(live, 20, ("a", State.UNACCOUNTED)) == []
    assert looked(live, 40, ("a", State.UNACCOUNTED)) == ["a: somewhere, for 40 s"]
    assert looked(live, 60, ("a", State.UNACCOUNTED)) == [], "it is told once"
    assert list(live.suspects) == ["a"]
    assert not live.found


def test_a_task_that_turns_up_between_two_looks_is_not_suspect():
    live = Live(30)
    for now, state in ((0, State.UNACCOUNTED), (20, State.WAITING), (40, State.UNACCOUNTED), (60, State.UNACCOUNTED)):
        assert looked(live, now, ("a", state)) == []


def test_what_runs_and_is_dead_for_too_long_is_suspect():
    live = Live(30)
    looked(live, 0, ("a", State.RUNNING, "running, and dead-lettered as poison"))
    assert looked(live, 31, ("a", State.RUNNING, "running, and dead-lettered as poison"))


def test_a_dead_letter_of_a_task_that_was_to_succeed_is_found_and_that_of_a_doomed_one_is_looked_for_no_more():
    live = Live(30)
    looked(live, 0, ("a", State.DEAD), ("d", State.DEAD))
    assert live.found == {"a: somewhere, and it was to succeed"}
    assert live.open([DOOMED, LOOP], {"d", "l"}, {}) == [LOOP]


def test_a_key_that_is_completed_and_dead_is_found_whoever_asked_for_it():
    live = Live(30)
    looked(live, 0, findings=(Finding("completed and dead", "x: completed, and dead-lettered"), Finding("overdue", "y")))
    assert live.found == {"x: completed, and dead-lettered"}


def test_looked_for_is_what_was_accepted_and_has_no_effect_and_must_have_been_published():
    live = Live(30)
    chain, chord = Order("1-chain", "chain", 0).tasks(), Order("2-chord", "chord", 0).tasks()
    names = {task.name for task in (PLAIN, *chain, *chord)}

    def opened(effects, confirmed=names):
        return [task.name for task in live.open([PLAIN, *chain, *chord], confirmed, effects)]

    members = [f"2-chord.{number}" for number in range(4)]
    assert opened({}) == ["a", "1-chain.0", *members]
    assert opened({}, set()) == []
    assert opened({"a": 1, "1-chain.0": 1, **dict.fromkeys(members, 1)}) == ["1-chain.1", "2-chord.body"]
    assert opened(dict.fromkeys(names - {"2-chord.body"}, 1) | {"2-chord.1": 0}) == ["2-chord.1"]


def test_bad_messages_are_known_by_their_task_id():
    assert identity(Expected("7-invalid", "invalid", "invalid")) == "id-7-invalid"
    assert identity(PLAIN) == "soak:a"


def entry(event, run, time, *, pid, key="k"):
    return Entry(event, key, run, pid, time, {})


def test_a_takeover_lasts_from_the_death_of_the_holder_to_the_next_start():
    ledger = [entry("start", "r1", 10, pid=1), entry("start", "r2", 17.5, pid=2), entry("end", "r2", 18, pid=2)]
    assert takeovers(ledger, [Death(12, "worker_kill", frozenset({1, 9}))]) == [(5.5, "k", "worker_kill")]


def test_a_death_in_the_body_is_known_from_the_ledger():
    ledger = [entry("start", "r1", 1, pid=1), entry("dies", "r1", 2, pid=1), entry("start", "r2", 2.5, pid=2)]
    assert takeovers(ledger, []) == [(0.5, "k", "in the body")]


def test_a_run_that_ended_before_its_process_died_is_taken_over_by_nobody():
    ledger = [entry("start", "r1", 1, pid=1), entry("end", "r1", 2, pid=1), entry("start", "r2", 9, pid=2)]
    assert takeovers(ledger, [Death(3, "child_kill", frozenset({1}))]) == []


def test_growth_is_a_slope_an_hour():
    assert growth([(0, 100), (1800, 200), (3600, 300)]) == pytest.approx(200)
    assert growth([(0, 100)]) == 0
