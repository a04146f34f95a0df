"""A replay of ten thousand letters that is killed twenty times at random: each has its effect once, and none is lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from kombu.connection import Connection

from celery_guardrails.dead_letters import DeadLetters
from celery_guardrails.integration.brokers import make_broker
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER
from tests.support import Deployment, Ledger, Workers, eventually
from tests.support.processes import ROOT

LETTERS = 10_000
KILLS = 20
#: Says when it begins, and what it moved where it is not killed before.
REPLAY = """
import importlib, os, sys
service = importlib.import_module(sys.argv[1]).make_app(os.environ).guardrails.dead_letters
service.count()
print("begins", flush=True)
report = service.replay()
print(report.replayed, report.failed, report.stopped or "-", flush=True)
"""


def bury(shop: Deployment, letters: int) -> list[str]:
    """Put letters of the task ``effect`` into the dead letter queue; return the names of their effects."""
    names = [f"order-{number}" for number in range(letters)]
    task = shop.task("effect").name
    with Connection(shop.broker.url) as connection:
        producer = connection.Producer()
        for name in names:
            certificate = DeathCertificate("exhausted", task=task, task_id=name, queue=shop.queue, error="builtins.OSError", last_seen=1.0)
            producer.publish(
                json.dumps([[name], {}, {}]).encode(),
                routing_key=shop.dead_queue,
                content_type="application/json",
                content_encoding="utf-8",
                headers={"lang": "py", "task": task, "id": name, "retries": 0, DEAD_LETTER_HEADER: certificate.to_header()},
                delivery_mode=2,
            )
    eventually(lambda: shop.dead() == letters, 60, because=lambda: f"{shop.dead()} of {letters} are in the dead letter queue")
    return names


def start(shop: Deployment, workers: Workers) -> subprocess.Popen[str]:
    """Start a replay and return when it begins."""
    line = [sys.executable, "-c", REPLAY, shop.module]
    env = {**workers._environment({}), **shop.env}
    process = subprocess.Popen(line, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_ten_thousand_letters_replayed_by_twenty_that_are_killed_have_each_effect_once(
    deploy, workers: Workers, ledger: Ledger, kind: str
) -> None:
    shop: Deployment = deploy(task_default_queue_type=kind)
    if kind == "quorum" and not shop.broker.url.startswith("amqp"):
        pytest.skip("Redis has one kind of queue")
    shop.guardrails.broker.declare([shop.queue])
    shop.start_workers(2, concurrency=2)
    names = bury(shop, LETTERS)
    chance = random.Random(5)
    left: list[int] = []
    for _ in range(KILLS):
        victim = start(shop, workers)
        left.append(shop.dead())
        time.sleep(chance.uniform(0.0, 0.4))  # not for luck: any moment is as good
        victim.send_signal(signal.SIGKILL)
        assert victim.wait(30) == -signal.SIGKILL, "it came to its end before it was killed"
        assert victim.stdout is not None
        victim.stdout.close()
    assert sum(later < earlier for earlier, later in pairwise(left)) > KILLS // 4, f"some were killed in the middle of their work: {left}"

    def all_done() -> bool:
        if shop.dead():
            output, _ = start(shop, workers).communicate(timeout=300)
            assert output.split()[1:] == ["0", "-"], output
        return shop.depth() == 0 and shop.dead() == 0 and ledger.count() == LETTERS

    eventually(all_done, 400, every=1.0, because=lambda: f"{ledger.count()} effects, {shop.dead()} dead, {shop.depth()} waiting")
    assert sorted(ledger.counts()) == sorted(names)
    assert ledger.repeated() == {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("operators", [2])
def test_operators_at_once_publish_each_letter_once(deploy, operators: int) -> None:
    """No key helps here: the messages themselves are counted."""
    shop: Deployment = deploy()
    rails = shop.guardrails
    rails.broker.declare([shop.queue])
    names = bury(shop, 3_000)
    together, reports = threading.Barrier(operators), []

    def operate() -> None:
        with closing(make_broker(shop.app, rails.settings)) as broker:
            service = DeadLetters.for_app(shop.app, broker=broker, store=rails.store, settings=rails.settings, clock=rails.clock)
            together.wait(10)
            reports.append(service.replay())

    threads = [threading.Thread(target=operate) for _ in range(operators)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    eventually(lambda: shop.depth() + shop.dead() == len(names), 30, because="what was held is back")
    if shop.dead():  # one passed over what the other held
        reports.append(rails.dead_letters.replay())
    messages: list[Any] = shop.broker.drain(shop.queue)
    assert Counter(message.headers["id"] for message in messages) == Counter(names)
    assert sum(report.replayed for report in reports) == len(names)
    assert [report.failed for report in reports] == [0] * len(reports)
    assert shop.dead() == 0
