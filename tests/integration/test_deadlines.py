"""Deadlines on real brokers: they travel with what a task publishes, and end what has not ended by then."""

from __future__ import annotations

import time

import pytest
from celery import chain
from celery.exceptions import SoftTimeLimitExceeded

from celery_guardrails import DeadlineExceeded
from celery_guardrails.policy.delivery import Travel
from tests.support import eventually

#: Seconds from the publish on.
DEADLINE = 6.0


@pytest.fixture(scope="module")
def app(shared_deploy):
    app = shared_deploy("deadlines", env={"TESTAPP_DEADLINE": str(DEADLINE)})
    app.worker(concurrency=6)
    return app


def only(app, name, event="start"):
    (found,) = app.ledger.wait(event, name)
    return found


# -- travelling -----------------------------------------------------------------------------------------------------

MEMBERS = {"a task": ["0"], "a chain": ["0", "1"], "a group": ["0", "1"], "a chord": ["0", "1", "body"]}


@pytest.mark.parametrize("how", MEMBERS)
def test_what_a_task_publishes_has_its_deadline(app, name, how):
    app.send("parent", name, how)
    deadline = only(app, name).fields["deadline"]
    assert deadline is not None
    children = [only(app, f"{name}.{member}").fields for member in MEMBERS[how]]
    assert [child["deadline"] for child in children] == [deadline] * len(children)
    assert all(0 < child["remaining"] < DEADLINE for child in children)


def test_the_steps_of_a_chain_have_the_deadline_of_its_head(app, name):
    head, shown = app.task("head"), app.task("shown")
    result = chain(head.si(name, 0.5), shown.si(f"{name}.1"), shown.si(f"{name}.2")).delay()
    assert result.get(timeout=15) == f"{name}.2"
    deadline = only(app, name).fields["deadline"]
    steps = [only(app, f"{name}.{step}").fields for step in (1, 2)]
    assert [step["deadline"] for step in steps] == [deadline, deadline]
    assert all(step["remaining"] < DEADLINE - 0.4 for step in steps)


def test_a_task_that_nobody_with_a_deadline_published_has_none(app, name):
    assert app.send("shown", name).get(timeout=15) == name
    assert only(app, name).fields["deadline"] is None


# -- expired before it starts ---------------------------------------------------------------------------------------


def expired():
    """Options with which a message arrives as one whose inherited deadline passed a moment ago."""
    return {"headers": {"x-guardrails": Travel(first=time.time(), until=time.time() - 0.1).to_header()}}


def test_a_message_whose_deadline_has_passed_is_dead_lettered_and_its_body_does_not_run(app, name):
    result = app.task("shown").apply_async((name,), link_error=app.task("errback").si(name), **expired())
    with pytest.raises(DeadlineExceeded):
        result.get(timeout=15)
    assert result.state == "FAILURE"
    found = app.certificate(result.id)
    assert (found["reason"], found["attempts"]) == ("deadline", 0)
    assert found["error"].endswith("DeadlineExceeded")
    assert app.ledger.count(name, "start") == 0
    eventually(lambda: name in str([entry.fields for entry in app.ledger.entries(event="errback")]), 10, because="the errback has run")


def test_a_message_whose_deadline_comes_while_its_key_is_held_waits_for_what_becomes_of_it(app, name):
    holder = app.task("effect").apply_async((name, 3.0))
    app.ledger.wait("start", name)
    began = time.time()
    until = {"x-guardrails": Travel(key=f"effect:{name}", first=began, until=began + 1.0).to_header()}
    waiting = app.task("effect").apply_async((name, 3.0), headers=until)
    assert holder.get(timeout=20) == name  # not touched by it
    assert waiting.get(timeout=20) == name, "completed is never dead as well"
    assert app.ledger.count(name, "start") == 1
    assert waiting.id not in {letter.headers["id"] for letter in app.letters()}


# -- cut off while it runs ------------------------------------------------------------------------------------------


def cut_off(app, name, task, error=DeadlineExceeded):
    """Send a task that hangs; return its certificate and the seconds that it lasted."""
    began = time.monotonic()
    result = app.task(task).apply_async((name,), link_error=app.task("errback").si(name))
    with pytest.raises(error):
        result.get(timeout=40)
    lasted = time.monotonic() - began
    assert result.state == "FAILURE"
    assert (app.ledger.count(name, "start"), app.ledger.count(name, "effect")) == (1, 0)
    eventually(lambda: name in str([entry.fields for entry in app.ledger.entries(event="errback")]), 10, because="the errback has run")
    return app.certificate(result.id), lasted


def test_a_task_that_hangs_is_cut_off_at_its_deadline_and_dead_lettered(app, name):
    found, lasted = cut_off(app, name, "hang")
    assert (found["reason"], found["attempts"], found["crashes"]) == ("deadline", 1, 0)
    assert found["error"].endswith("DeadlineExceeded")
    assert DEADLINE - 0.5 < lasted < DEADLINE + 12
    assert app.guardrails.lookup(found["key"]) is None


def test_longer_time_limits_are_cut_and_the_soft_one_strikes_first(app, name):
    found, lasted = cut_off(app, name, "hang_long_limits", SoftTimeLimitExceeded)
    assert found["reason"] == "deadline"
    assert app.ledger.count(name, "soft") == 1
    assert lasted < DEADLINE + 12


def test_a_task_without_dead_letters_is_cut_off_and_fails(app, name):
    result = app.send("hang_plainly", name)
    with pytest.raises(DeadlineExceeded):
        result.get(timeout=20)
    assert app.certificates(result.id) == []


@pytest.mark.brokers("redis")
def test_a_green_thread_is_cut_off_too(deploy, name):
    app = deploy("deadlines", env={"TESTAPP_DEADLINE": "2"})
    app.worker(pool="gevent", concurrency=4)
    found, lasted = cut_off(app, name, "hang")
    assert (found["reason"], found["attempts"]) == ("deadline", 1)
    assert lasted < 2 + 12


# -- replayed -------------------------------------------------------------------------------------------------------


def test_a_replay_has_a_fresh_deadline(app, name):
    result = app.send("hang_once", name)
    letter = eventually(lambda: [letter for letter in app.guardrails.dead_letters.list() if letter.task_id == result.id], 40, every=0.2)[0]
    assert letter.reason == "deadline"
    assert app.guardrails.dead_letters.replay(ids=[letter.id]).replayed == 1
    app.ledger.wait("effect", name)
    first, second = app.ledger.entries(event="start", key=name)
    assert second.fields["deadline"] > first.fields["deadline"] + DEADLINE - 0.5
    assert second.fields["attempt"] == 1


def test_a_replay_forgets_the_deadline_that_it_had_inherited(app, name):
    result = app.task("shown").apply_async((name,), **expired())
    letter = eventually(lambda: [letter for letter in app.guardrails.dead_letters.list() if letter.task_id == result.id], 40, every=0.2)[0]
    assert app.guardrails.dead_letters.replay(ids=[letter.id]).replayed == 1
    app.ledger.wait("effect", name)
    assert only(app, name).fields["deadline"] is None
