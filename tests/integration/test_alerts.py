"""Alerts of real workers: one message of the fleet, from children that come and go, and a receiver that hangs is in nobody's way."""

from __future__ import annotations

import json

import pytest

from tests.support import consistently, eventually


def told(receiver):
    return [json.loads(body)["guardrails"] for *_, body in receiver.requests]


@pytest.mark.brokers("redis")
def test_a_flood_in_two_workers_is_one_message_of_the_new_kind_and_one_of_the_rate(deploy, receiver):
    app = deploy(guardrails_alert_webhook=f"{receiver.url}/hook")
    app.start_workers(2, concurrency=2)
    app.send("fail_for_good", "first")
    eventually(lambda: receiver.requests)
    for number in range(160):
        app.send("fail_for_good", f"n{number}")
    eventually(lambda: app.dead() == 161, 30)
    eventually(lambda: len(receiver.requests) == 2, 30)
    consistently(lambda: len(receiver.requests) == 2, 2.0)
    new, rate = told(receiver)
    assert (new["why"], new["letters"], new["kinds"][0]["task"]) == ("new", 1, "testapp.fail_for_good")
    assert new["kinds"][0]["queue"] == app.queue
    assert rate["why"] == "rate"
    assert 100 < rate["count"] <= 161, "children of both workers were counted together"
    assert rate["letters"] <= 160
    assert new["kinds"][0]["fingerprint"] == app.letters()[0].headers["guardrails"]["fingerprint"], "what the message says can be looked up"


@pytest.mark.brokers("redis")
def test_a_child_that_ends_right_after_its_task_still_tells(deploy, receiver):
    app = deploy(guardrails_alert_webhook=receiver.url)
    app.worker(concurrency=1, options=["--max-tasks-per-child=1"])
    app.send("fail_for_good", "n")
    eventually(lambda: receiver.requests)
    assert told(receiver)[0]["letters"] == 1


def test_a_webhook_that_hangs_delays_no_dead_letter_and_not_the_end_of_the_worker(deploy, receiver):
    receiver.misbehave("silent")
    app = deploy(guardrails_alert_webhook=receiver.url)
    worker = app.worker(concurrency=1)
    app.send("fail_for_good", "first")
    eventually(lambda: receiver.requests)
    for number in range(30):
        app.send("fail_for_good", f"n{number}")
    eventually(lambda: app.dead() == 31, 60, because="the webhook hangs for longer, and all are dead")
    assert len(receiver.requests) < 10, "one after the other they would be 31"
    assert worker.stop(15) == 0


@pytest.mark.brokers("redis")
def test_what_cannot_be_a_task_is_told_by_the_main_process(deploy, receiver, broker):
    app = deploy(guardrails_alert_webhook=receiver.url)
    app.worker(concurrency=1)
    app.app.send_task("testapp.nobody_knows_it", queue=app.queue)
    eventually(lambda: receiver.requests)
    (kind,) = told(receiver)[0]["kinds"]
    assert (kind["reason"], kind["task"]) == ("unknown_task", "testapp.nobody_knows_it")
