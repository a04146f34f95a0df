"""What comes after a task goes on when the broker is back."""

from __future__ import annotations

import os
import signal
import time
from urllib.parse import urlsplit

import pytest
from celery import chain, chord

from celery_guardrails.integration.carrying_on import patient_policy

#: Seconds; Celery's own patience ends after about three.
OUTAGE = 8


@pytest.fixture
def between(broker, proxy):
    """The broker behind a proxy that can be cut; store, result backend and publisher are not touched."""
    return proxy(urlsplit(broker.url).port)


@pytest.fixture
def cut_off(deploy, broker, between):
    """An app whose worker reaches the broker through the proxy only."""
    app = deploy()
    app.start_workers(1, concurrency=1, env={"TESTAPP_BROKER_URL": between.through(broker.url)})
    # a connection that it has is given up sooner than one that it makes
    assert chain(app.task("add").si(1, 2), app.task("add").si(1, 3)).delay().get(timeout=60) == 4
    return app


def outage(app, between, name):
    app.ledger.wait("start", name)
    between.cut()
    app.ledger.wait("end", name)
    time.sleep(OUTAGE)
    between.mend()


def test_the_body_of_a_chord_runs_when_its_last_member_has_ended_while_the_broker_was_away(cut_off, between):
    app = cut_off
    members = [app.task("effect").si("first"), app.task("effect").si("last", 2.0)]
    result = chord(members, app.task("effect").si("body")).delay()
    outage(app, between, "last")
    assert result.get(timeout=60) == "body"
    assert app.ledger.counts() == {"add": 2, "first": 1, "last": 1, "body": 1}


@pytest.mark.chaos
def test_the_body_of_a_chord_runs_when_the_process_that_was_to_publish_it_was_killed(cut_off, between, workers):
    app = cut_off
    members = [app.task("effect").si("first"), app.task("effect").si("last", 2.0)]
    result = chord(members, app.task("effect").si("body")).delay()
    app.ledger.wait("start", "last")
    between.cut()
    app.ledger.wait("end", "last")
    (worker,) = workers.all
    worker.wait_log("Retrying refused callback publish", timeout=30)  # of Celery 5.7: it is in the middle of it
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    between.mend()
    assert result.get(timeout=180) == "body"
    assert app.ledger.counts() == {"add": 2, "first": 1, "last": 1, "body": 1}


@pytest.mark.long_on("redis")
def test_a_chain_goes_on_when_a_step_has_ended_while_the_broker_was_away(cut_off, between):
    app = cut_off
    result = chain(app.task("effect").si("step", 2.0), app.task("effect").si("next")).delay()
    outage(app, between, "step")
    assert result.get(timeout=60) == "next"
    assert result.parent.get(timeout=60) == "step"
    assert app.ledger.counts() == {"add": 2, "step": 1, "next": 1}


def test_what_is_not_published_after_a_task_has_the_patience_that_the_app_gives_it():
    assert patient_policy({"max_retries": 3}, None) is None
