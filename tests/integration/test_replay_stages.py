"""Canaries, edits, stops and two operators on real brokers, with real workers and real commands."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from celery_guardrails.dead_letters import DeadLetters, Edit, Filter
from celery_guardrails.dead_letters import passes as passes_module
from celery_guardrails.integration.brokers import make_broker
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import RawMessage, Travel
from tests.support import Deployment, Ledger, eventually

from .test_replay import command, finished  # noqa: F401


def bury(shop: Deployment, number: int) -> list[str]:
    """Put so many letters of a task that nobody runs into the dead letter queue; return their task ids."""
    names = [f"t-{index}" for index in range(number)]
    for name in names:
        message = RawMessage(b"[[], {}, {}]", "application/json", "utf-8", {"task": "t", "id": name}, {}, "", shop.queue)
        shop.guardrails.broker.dead_letter(
            message, shop.queue, DeathCertificate("exhausted", task="t", task_id=name, queue=shop.queue, last_seen=time.time())
        )
    return names


def waiting(shop: Deployment) -> Counter[str]:
    return Counter(message.headers["id"] for message in shop.broker.drain(shop.queue))


def test_a_canary_stops_at_a_bug_that_is_still_there_and_goes_on_where_it_is_mended(deploy, ledger: Ledger) -> None:
    shop = deploy()
    shop.worker(concurrency=2)
    for number in range(6):
        shop.send("fail", f"broken-{number}", error="TypeError", times=None)
        shop.send("fail", f"mended-{number}", error="AttributeError", times=1)
    eventually(lambda: shop.dead() == 12, 30, because=lambda: f"all are dead, {shop.dead()} so far")
    service: DeadLetters = shop.guardrails.dead_letters

    stopped = service.replay(Filter(error="TypeError"), canary=True, canary_wait=20.0)
    assert stopped.canary is not None
    assert [(stage.name, stage.replayed, stage.failed) for stage in stopped.canary.stages] == [("one letter", 1, 1)]
    assert "dead again" in stopped.canary.why
    assert (stopped.canary.left, stopped.replayed, stopped.clean) == (5, 1, False)
    assert sum(ledger.count(event="start", key=f"broken-{number}") for number in range(6)) == 7, "one of them again"
    assert shop.dead() == 12

    through = service.replay(Filter(error="AttributeError"), canary=True, canary_wait=20.0)
    assert through.canary is not None
    assert [(stage.name, stage.replayed, stage.completed) for stage in through.canary.stages] == [
        ("one letter", 1, 1),
        ("1 %", 1, 1),
        ("all", 4, 0),
    ]
    assert through.clean
    eventually(lambda: ledger.count() == 6, 20, because=lambda: f"{ledger.count()} of 6 are done")
    assert ledger.repeated() == {}
    assert shop.dead() == 6


def test_an_edited_letter_runs_with_its_new_arguments_and_tells_of_them_when_it_dies_again(deploy, ledger: Ledger) -> None:
    shop = deploy()
    shop.worker()
    result = shop.send("fail", "order", error="TypeError", times=None)
    eventually(lambda: shop.dead() == 1, 30, because="it is dead")
    service: DeadLetters = shop.guardrails.dead_letters

    assert service.replay(edit=Edit({"error": "AttributeError"})).edited == 1
    eventually(lambda: [letter.replays for letter in service.list()] == [1], 20, because="it is dead again")
    [letter] = service.list()
    assert letter.certificate.error == "AttributeError"
    assert letter.travel.edited == (("error", '"TypeError"', '"AttributeError"'),)
    assert (letter.task_id, letter.key) == (result.id, "effect:order")

    report = service.replay(edit=Edit({"times": 0, "name": "other"}))
    assert report.edits[0].new_key == "effect:other"
    ledger.wait("effect", "other")
    eventually(lambda: shop.guardrails.lookup("effect:other").state.value == "completed", 10, because="its new key is completed")
    assert ledger.counts() == {"other": 1}
    assert {entry.fields["task_id"] for entry in ledger.entries(event="start")} == {result.id}


def test_two_operators_at_once_have_each_effect_once(deploy, ledger: Ledger) -> None:
    shop = deploy()
    shop.worker(concurrency=2)
    names = [f"order-{number}" for number in range(60)]
    for name in names:
        shop.send("fail", name, error="TypeError", times=1)
    eventually(lambda: shop.dead() == 60, 30, because=lambda: f"all are dead, {shop.dead()} so far")
    rails = shop.guardrails
    start, moved = threading.Barrier(2), []

    def operate() -> None:
        broker = make_broker(shop.app, rails.settings)
        service = DeadLetters.for_app(shop.app, broker=broker, store=rails.store, settings=rails.settings, clock=rails.clock)
        start.wait(10)
        moved.append(service.replay().replayed)
        broker.close()

    threads = [threading.Thread(target=operate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(moved) == 2
    assert sum(moved) <= 60, "what both have published only one could take out"

    def rest_replayed() -> bool:
        if shop.dead():  # one passed over what the other had just taken
            rails.dead_letters.replay()
        return ledger.count() == 60

    eventually(rest_replayed, 30, because=lambda: f"{ledger.count()} of 60 are done, {shop.dead()} dead")
    eventually(lambda: (shop.depth(), shop.dead()) == (0, 0), 20, because="nothing is left")
    assert sorted(ledger.counts()) == sorted(names)
    assert ledger.repeated() == {}


@pytest.mark.brokers("amqp")  # Redis holds nothing
@pytest.mark.parametrize(("moment", "call"), [("move", 1), ("take", 4)])
def test_a_replay_whose_channel_was_closed_while_it_was_stopped_goes_on_in_a_new_pass(deploy, monkeypatch, moment: str, call: int) -> None:
    """As after SIGTSTP for longer than RabbitMQ's consumer_timeout: the channel that holds the letters is gone."""
    shop = deploy()
    names = bury(shop, 10)
    broker = shop.guardrails.broker
    monkeypatch.setattr(passes_module, "PASS_SECONDS", 0.5)
    held: list[Any] = []
    calls = count(1)
    browse, real = broker.browse, getattr(broker, moment)

    def browsing(queue: str, **options: Any) -> Any:
        for queued in browse(queue, **options):
            held.append(queued)
            yield queued

    def stopped(*arguments: Any) -> Any:
        if next(calls) == call:
            held[-1].handle.channel.close()
            eventually(lambda: shop.dead() == 11 - call, 10, because="the broker has put back what was held")
            time.sleep(0.6)
        return real(*arguments)

    monkeypatch.setattr(broker, "browse", browsing)
    monkeypatch.setattr(broker, moment, stopped)
    report = shop.guardrails.dead_letters.replay()
    assert (report.replayed, report.failed, report.stopped) == (10, 0, "")
    assert shop.dead() == 0
    assert waiting(shop) == Counter(names)


@pytest.mark.long_on("amqp")
def test_a_command_that_is_stopped_and_continued_moves_each_letter_once(deploy, command: Callable[..., Any]) -> None:  # noqa: F811
    shop = deploy()
    names = bury(shop, 40)
    process: subprocess.Popen[str] = command(shop, "replay", "--rate", "40/s", "--json")
    eventually(lambda: shop.depth() >= 5, 30, because="it is under way")
    process.send_signal(signal.SIGSTOP)  # SIGTSTP does nothing to a group that no shell looks after
    there = shop.depth()
    time.sleep(0.5)  # not for luck: a stopped process must not go on, however long it is looked at
    assert shop.depth() <= there + 1
    process.send_signal(signal.SIGCONT)
    report = finished(process)
    assert (report["replayed"], report["failed"]) == (40, 0)
    assert waiting(shop) == Counter(names)
    assert shop.dead() == 0


@pytest.mark.long_on("redis")
def test_ctrl_c_ends_a_command_behind_the_letter_in_hand_with_exact_totals(deploy, command: Callable[..., Any]) -> None:  # noqa: F811
    shop = deploy()
    names = bury(shop, 40)
    process: subprocess.Popen[str] = command(shop, "replay", "--rate", "5/s", "--json")  # eight seconds: a busy machine looks late
    eventually(lambda: shop.depth() >= 5, 30, because="it is under way")
    process.send_signal(signal.SIGINT)
    report = finished(process, code=1)
    assert report["stopped"] == "interrupted"
    assert 5 <= report["replayed"] < 40
    assert shop.depth() == report["replayed"]
    eventually(lambda: shop.dead() == 40 - report["replayed"], 10, because="what was held is back in its queue")
    assert finished(command(shop, "replay", "--json"))["replayed"] == 40 - report["replayed"]
    messages = shop.broker.drain(shop.queue)
    assert Counter(message.headers["id"] for message in messages) == Counter(names)
    assert {Travel.from_headers(message.headers).replays for message in messages} == {1}
