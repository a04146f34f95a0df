"""Dead letters replayed on real brokers, with real workers, by a real command that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_guardrails.dead_letters import Filter
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import RawMessage, Travel
from tests.support import Deployment, Ledger, Workers, eventually
from tests.support.killing import Killed
from tests.support.processes import ROOT

LETTERS = 200
#: Every so many letters, one dies of its first replay as well.
STUBBORN = 10


@pytest.fixture
def command(workers: Workers) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``celery … guardrails dead-letters …`` for a deployment."""
    started: list[subprocess.Popen[str]] = []

    def start(deployment: Deployment, *arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "celery", "-A", deployment.module, "guardrails", "dead-letters", *arguments]
        env = {**workers._environment({}), **deployment.env}
        process = subprocess.Popen(line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str], code: int = 0) -> Any:
    """Wait for a command and return what it printed as JSON."""
    output, errors = process.communicate(timeout=90)
    assert process.returncode == code, (process.args, process.returncode, output, errors)
    return json.loads(output)


def travels(deployment: Deployment) -> list[Travel]:
    """Return the travel headers of what waits in the queue."""
    return [Travel.from_headers(message.headers) for message in deployment.broker.drain(deployment.queue)]


@pytest.mark.long_on("redis")
@pytest.mark.timeout(400)
def test_two_hundred_letters_replayed_by_a_command_that_is_killed_half_way_have_each_effect_once(deploy, command, ledger: Ledger) -> None:
    shop = deploy()
    shop.worker(concurrency=2)
    names = [f"order-{number}" for number in range(LETTERS)]
    for number, name in enumerate(names):
        shop.send("fail", name, error="TypeError", times=2 if number % STUBBORN == 0 else 1)
    eventually(lambda: shop.dead() == LETTERS, 90, because=lambda: f"all are dead, {shop.dead()} so far")
    assert ledger.count() == 0

    plan = finished(command(shop, "replay", "--dry-run", "--json"))
    assert (plan["total"], plan["replayed"], plan["already_completed"]) == (LETTERS, LETTERS, 0)

    victim = command(shop, "replay", "--rate", "25/s")
    eventually(lambda: ledger.count(event="start") - LETTERS + shop.depth() >= LETTERS // 4, 60, because="the replay is well under way")
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(10) == -signal.SIGKILL
    eventually(lambda: shop.dead() > LETTERS // 4, 10, because="it was killed half way")

    # each letter is somewhere: done, waiting, running or dead; the next run finds those that are dead
    again = finished(command(shop, "replay", "--json"))
    assert again["failed"] == 0
    assert again["replayed"] > 0

    def all_done_or_dead_again() -> bool:
        return ledger.count() + shop.dead() >= LETTERS and shop.depth() == 0

    eventually(all_done_or_dead_again, 60, because=lambda: f"{ledger.count()} done, {shop.dead()} dead, {shop.depth()} waiting")
    while shop.dead():
        finished(command(shop, "replay", "--json"))
        eventually(all_done_or_dead_again, 60, because="the stubborn ones are done")
    eventually(lambda: ledger.count() == LETTERS, 30, because=lambda: f"{ledger.count()} done, {shop.dead()} dead, {shop.depth()} waiting")
    assert sorted(ledger.counts()) == sorted(names)
    assert ledger.repeated() == {}
    assert ledger.overlaps() == []
    assert (shop.dead(), shop.depth()) == (0, 0)


@pytest.mark.brokers("amqp")  # Redis moves it in one step
def test_a_letter_that_was_published_and_not_removed_is_done_once(deploy, ledger: Ledger) -> None:
    shop = deploy()
    worker = shop.worker()
    shop.send("fail", "order", error="TypeError", times=1)
    eventually(lambda: shop.dead() == 1, 30, because="it is dead")
    worker.stop()

    broker, service = shop.guardrails.broker, shop.guardrails.dead_letters
    take = broker.take

    def killed(letter: Any) -> None:
        raise Killed

    broker.take = killed
    with pytest.raises(Killed):
        service.replay()
    broker.take = take
    eventually(lambda: (shop.depth(), shop.dead()) == (1, 1), 10, because="it is in both queues")
    assert service.replay().replayed == 1
    eventually(lambda: (shop.depth(), shop.dead()) == (2, 0), 10, because="there are two copies")

    shop.worker()
    ledger.wait("effect", "order")
    eventually(lambda: shop.depth() == 0, 20, because="the second copy is consumed")
    shop.workers.all[-1].stop()
    assert ledger.counts() == {"order": 1}
    assert shop.dead() == 0


def test_a_replayed_letter_has_fresh_attempts_and_the_same_task_id_and_key(deploy, ledger: Ledger) -> None:
    shop = deploy()
    shop.worker()
    result = shop.send("fail", "order", times=4)  # three attempts each life
    eventually(lambda: shop.dead() == 1, 30, because="it is exhausted")
    [letter] = shop.guardrails.dead_letters.list()
    assert (letter.reason, letter.task_id, letter.key, letter.replays) == ("exhausted", result.id, "effect:order", 0)
    assert letter.certificate.attempts == 3
    shop.guardrails.dead_letters.replay()
    ledger.wait("effect", "order")
    attempts = [entry.fields["attempt"] for entry in ledger.entries(event="start", key="order")]
    assert attempts == [1, 2, 3, 1, 2]
    assert {entry.fields["task_id"] for entry in ledger.entries(event="start", key="order")} == {result.id}
    eventually(lambda: shop.guardrails.lookup("effect:order").state.value == "completed", 30)


def test_the_original_comes_back_byte_for_byte(deploy) -> None:
    shop = deploy()
    broker, service = shop.guardrails.broker, shop.guardrails.dead_letters
    original = RawMessage(
        body=bytes(range(256)) * 40,
        content_type="application/x-foreign",
        content_encoding="binary",
        headers={"task": "shop.foreign", "id": "t-1", "note": "Grüße", "deep": {"list": [1, 2.5, None, True]}, "retries": 4},
        properties={"correlation_id": "t-1", "reply_to": "somewhere", "priority": 3, "delivery_mode": 2},
        exchange="",
        routing_key=shop.queue,
    )
    broker.dead_letter(original, shop.queue, DeathCertificate("unknown_task", task="shop.foreign", task_id="t-1", queue=shop.queue))
    [letter] = service.list()
    assert letter.message.body == original.body
    assert service.replay(ids=[letter.id]).clean
    [queued] = broker.browse(shop.queue)
    found = queued.message
    assert (found.body, found.content_type, found.content_encoding) == (original.body, original.content_type, original.content_encoding)
    assert {name: found.properties.get(name) for name in original.properties} == original.properties
    assert {name: value for name, value in found.headers.items() if name != "x-guardrails"} == {**original.headers, "retries": 0}
    assert Travel.from_headers(found.headers).replays == 1


@pytest.mark.brokers("amqp")  # Redis lets nothing die by itself
def test_what_the_broker_itself_dead_lettered_is_replayed_too(deploy) -> None:
    """Quorum and classic queues with our DLX: an expired message, with the broker's own x-death header."""
    shop = deploy()
    rails = shop.guardrails
    with shop.broker.connection() as connection:
        channel = connection.default_channel
        rails.broker.declare([shop.queue])
        arguments = {"x-dead-letter-exchange": rails.settings.dead_letter_exchange, "x-dead-letter-routing-key": shop.queue}
        channel.queue_declare(shop.queue, durable=True, auto_delete=False, arguments=arguments)
        connection.Producer().publish(
            {"a": 1}, routing_key=shop.queue, expiration=0.05, headers={"task": "t", "id": "t-1"}, serializer="json"
        )
    eventually(lambda: shop.dead() == 1, 10, because="it has expired")
    [letter] = rails.dead_letters.list(Filter(reason="broker"))
    assert (letter.certificate.error, letter.queue, letter.task_id) == ("broker.expired", shop.queue, "t-1")
    assert letter.died_at is not None
    assert abs(letter.died_at - rails.clock.now()) < 60
    assert rails.dead_letters.replay().replayed == 1
    assert shop.depth() == 1
    [message] = shop.broker.drain(shop.queue)
    assert "x-death" not in message.headers
    assert "expiration" not in message.properties


def test_the_identifier_is_the_same_on_every_browse_and_looking_moves_nothing(deploy) -> None:
    shop = deploy()
    rails = shop.guardrails
    for number in range(30):
        message = RawMessage(b"[[], {}, {}]", "application/json", "utf-8", {"task": "t", "id": f"t-{number}"}, {}, "", shop.queue)
        rails.broker.dead_letter(message, shop.queue, DeathCertificate("exhausted", task="t", task_id=f"t-{number}", queue=shop.queue))
    service = rails.dead_letters
    first = [letter.id for letter in service.list()]
    assert len(set(first)) == 30
    assert next(service.list(Filter(limit=1))).id == first[0]
    eventually(lambda: [letter.id for letter in service.list()] == first, 5, because="everything is back in its place")
    assert service.show(first[20]).task_id == "t-20"
    eventually(lambda: shop.dead() == 30, 5, because="nothing has moved")
    assert [letter.id for letter in service.list()] == first


def test_a_replay_is_not_faster_than_its_rate(deploy) -> None:
    shop = deploy()
    rails = shop.guardrails
    for number in range(101):
        message = RawMessage(b"[[], {}, {}]", "application/json", "utf-8", {"task": "t", "id": f"t-{number}"}, {}, "", shop.queue)
        rails.broker.dead_letter(message, shop.queue, DeathCertificate("exhausted", task="t", task_id=f"t-{number}", queue=shop.queue))
    assert rails.dead_letters.replay(rate=50).replayed == 101
    waiting = travels(shop)
    assert {travel.replays for travel in waiting} == {1}
    moments = [travel.first for travel in waiting if travel.first is not None]
    assert len(moments) == 101
    assert max(moments) - min(moments) >= 1.9, "100 steps of a fiftieth of a second; how evenly is tested under a fake clock"
