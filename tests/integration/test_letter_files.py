"""Dead letters in files and the history of their attempts, on real brokers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_guardrails.config import Settings
from celery_guardrails.dead_letters import DeadLetters
from celery_guardrails.integration.brokers import make_broker
from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage, Travel
from celery_guardrails.policy.history import PastAttempt, remembered
from celery_guardrails.testing.clock import FakeClock
from tests.support import BrokerUnderTest, Deployment, Workers, eventually
from tests.support.dead_letters import certificate_for, task_message
from tests.support.processes import ROOT


class Desk:
    """The service on a real broker, whose app knows one queue."""

    def __init__(self, url: str, queue: str, **conf: Any) -> None:
        app = Celery("shop", broker=url, set_as_current=False)
        app.conf.update(task_default_queue=queue, **conf)
        self.queue = queue
        self.port: Any = make_broker(app, Settings())
        self.service = DeadLetters.for_app(app, broker=self.port, store=None, settings=Settings(), clock=FakeClock())

    def bury(self, message: RawMessage) -> None:
        self.port.dead_letter(message, self.queue, certificate_for(message, queue=self.queue))

    def export(self) -> list[str]:
        return list(self.service.export())

    def empty(self) -> None:
        # RabbitMQ says that a channel is closed before it has put back what that held: one look may find too few.
        def gone() -> bool:
            assert self.service.discard().clean
            return bool(self.port.depth(f"{self.queue}.dead") == 0)

        eventually(gone, 30, because="the dead letter queue is empty")


@pytest.fixture
def desk(broker: BrokerUnderTest, queue: str) -> Iterator[Callable[..., Desk]]:
    opened: list[Desk] = []

    def open_(name: str = queue, **conf: Any) -> Desk:
        broker.used += [name, f"{name}.dead"]
        opened.append(Desk(broker.url, name, **conf))
        return opened[-1]

    yield open_
    for one in opened:
        one.port.close()


def letters() -> list[RawMessage]:
    """Return messages with all that headers, properties and bodies may be."""
    types = {"flag": True, "one": 1, "large": 2**40, "half": 0.5, "none": None, "deep": {"list": [1, {"é": "\x00"}], "empty": {}}}
    return [
        task_message("shop.charge", 7, key="charge:7", **types),
        replace(task_message(when=datetime(2026, 1, 2, 3, 4, 5), price=Decimal("1.5"), raw=b"\xff\xfe"), body=b"\x80\x04K\x01."),  # noqa: DTZ001
        replace(task_message(), body=b"", content_type="application/x-odd", content_encoding="binary", properties={"message_id": "m"}),
        task_message(task_id="twin"),
        task_message(task_id="twin"),
    ]


def test_export_import_export_gives_the_same_lines(desk: Callable[..., Desk]) -> None:
    here = desk()
    for message in letters():
        here.bury(message)
    before = {letter.id: letter.message for letter in here.service.list()}
    lines = here.export()
    assert (len(lines), len(before)) == (5, 5)
    here.empty()
    report = here.service.import_(lines)
    assert (report.imported, report.clean, report.destinations) == (5, True, {f"{here.queue}.dead": 5})
    assert sorted(here.export()) == sorted(lines)
    assert {letter.id: letter.message for letter in here.service.list()} == before, "types and all"
    assert (here.service.import_(lines).skipped, here.port.depth(f"{here.queue}.dead")) == (5, 5)


@pytest.mark.brokers("amqp")
def test_letters_of_a_quorum_queue_are_the_same_but_for_the_brokers_count_of_looks(desk: Callable[..., Desk]) -> None:
    here = desk(task_default_queue_type="quorum")

    def look() -> dict[str, Any]:
        found = {}
        for fields in map(json.loads, here.export()):
            fields["headers"].pop("x-delivery-count", None)
            found[fields["id"]] = fields
        return found

    for message in letters():
        here.bury(message)
    before, lines = look(), here.export()
    here.empty()
    assert here.service.import_(lines).imported == 5
    assert look() == before
    assert here.service.import_(lines).skipped == 5


@pytest.mark.brokers("amqp")
def test_a_letter_that_the_broker_made_keeps_its_death_and_becomes_durable(desk: Callable[..., Desk], broker: BrokerUnderTest) -> None:
    here = desk()
    here.port.declare([here.queue])
    arguments = {"x-dead-letter-exchange": "guardrails.dlx"}  # with a routing key of its own RabbitMQ would leave CC out
    with broker.connection() as connection, connection.Producer() as producer:
        producer.channel.queue_declare(here.queue, durable=True, auto_delete=False, arguments=arguments)
        producer.publish("{}", routing_key=here.queue, exchange="", headers={"id": "t", "CC": [f"{here.queue}.copy"]}, delivery_mode=1)
        message = eventually(lambda: connection.default_channel.basic_get(here.queue), 5, because="it has arrived")
        connection.default_channel.basic_reject(message.delivery_tag, requeue=False)
    eventually(lambda: here.port.depth(f"{here.queue}.dead") == 1, 5, because="it is dead")
    (letter,) = here.service.list()
    (line,) = here.export()
    assert isinstance(letter.message.headers["x-death"][0]["time"], datetime)
    here.empty()
    assert here.service.import_([line]).imported == 1
    (again,) = here.service.list()
    assert (again.id, again.reason, again.died_at) == (letter.id, "broker", letter.died_at)
    assert again.message.headers["x-death"] == letter.message.headers["x-death"]
    assert again.message.headers["guardrails-original-cc"] == [f"{here.queue}.copy"]
    assert (again.message.headers["guardrails-original-delivery-mode"], again.message.properties["delivery_mode"]) == (1, 2)
    assert here.port.depth(f"{here.queue}.copy") == 0
    second = here.export()
    here.empty()
    here.service.import_(second)
    assert here.export() == second


@pytest.mark.brokers("redis")
def test_garbage_in_a_dead_letter_queue_of_redis_comes_back_as_the_body_of_a_message(
    desk: Callable[..., Desk], broker: BrokerUnderTest
) -> None:
    here = desk()
    broker.push_garbage(f"{here.queue}.dead", b"{not json \xff")
    lines = here.export()
    here.empty()
    assert here.service.import_(lines).imported == 1
    (letter,) = here.service.list()
    assert letter.message.body == b"{not json \xff"
    assert here.service.import_(lines).skipped == 1


def test_what_was_exported_from_one_kind_of_broker_goes_into_the_other(
    desk: Callable[..., Desk], broker: BrokerUnderTest, redis_broker: BrokerUnderTest, amqp_broker: BrokerUnderTest
) -> None:
    here = desk()
    there = Desk((amqp_broker if broker.kind == "redis" else redis_broker).url, here.queue)
    with closing(there.port):
        here.bury(letters()[0])
        lines = here.export()
        assert there.service.import_(lines).imported == 1
        assert there.export() == lines
        there.empty()


@pytest.mark.brokers("amqp")
def test_a_message_whose_headers_fill_the_frame_is_retried_without_its_history(desk: Callable[..., Desk]) -> None:
    here = desk()
    history: tuple[PastAttempt, ...] = ()
    for number in range(1, 8):
        history = remembered(history, PastAttempt(number, 1.0, f"E{number}", "m", f"{number}" * 16, "t" * 1_500))
    for padding, kept in ((0, history), (127_000, ())):
        message = task_message(padding="x" * padding, **{TRAVEL_HEADER: Travel(key="k", attempts=7, history=history).to_header()})
        for publish in (lambda m: here.port.delay(m, here.queue, 0.5), lambda m: here.port.send(m, here.queue)):
            publish(message)
            eventually(lambda: here.port.depth(here.queue) == 1, 5, because="it has arrived")
            with closing(here.port.browse(here.queue)) as found:
                live = next(found)
                here.port.take(live)
            assert Travel.from_headers(live.message.headers) == Travel(key="k", attempts=7, history=kept)
    here.bury(live.message)
    (letter,) = here.service.list()
    assert letter.message.headers["padding"] == "x" * 127_000


# -- with workers and commands ----------------------------------------------------------------------------------------


@pytest.fixture
def run(workers: Workers) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``celery … guardrails dead-letters …`` to its end."""

    def call(deployment: Deployment, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "celery", "-A", deployment.module, "guardrails", "dead-letters", *arguments]
        env = {**workers._environment({}), **deployment.env}
        return subprocess.run(line, env=env, cwd=ROOT, input=answer, capture_output=True, text=True, timeout=60, check=False)

    return call


def test_a_letter_tells_every_attempt_and_is_replayed_after_an_export_and_import(deploy: Any, run: Any, tmp_path: Path) -> None:
    shop = deploy()
    shop.worker(concurrency=1)
    shop.send("fail", "order-1", error="ConnectionError", times=3)
    shop.send("retry_itself", "order-2", times=100)
    eventually(lambda: shop.dead() == 2, 30, because="both are dead")
    told = {letter.task: letter for letter in shop.guardrails.dead_letters.list()}
    by_policy, by_itself = told["testapp.fail"].certificate, told["testapp.retry_itself"].certificate
    assert [(past.attempt, past.error) for past in by_policy.history] == [(1, "ConnectionError"), (2, "ConnectionError")]
    assert [(past.attempt, past.error, past.message) for past in by_itself.history] == [
        (number, "ConnectionError", "asked for") for number in range(1, 6)
    ]
    assert all(past.at > 1_700_000_000 for past in by_policy.history + by_itself.history)
    assert by_policy.history[0].fingerprint == by_policy.fingerprint
    assert "in _fail" in by_policy.history[1].traceback

    file = tmp_path / "letters.jsonl"
    exported = run(shop, "export", "--task", "testapp.fail", "--output", str(file))
    assert exported.returncode == 0, exported.stderr
    shop.guardrails.dead_letters.discard()
    imported = run(shop, "import", "-", "--json", answer=f"{file.read_text()}garbage\n")
    assert imported.returncode == 1, imported.stderr
    assert (json.loads(imported.stdout)["imported"], json.loads(imported.stdout)["failures"][0]["id"]) == (1, "line 2")
    assert [letter.id for letter in shop.guardrails.dead_letters.list()] == [told["testapp.fail"].id]

    assert shop.guardrails.dead_letters.replay().replayed == 1
    eventually(lambda: shop.ledger.count("order-1", event="effect") == 1, 20, because="the replay goes well")


@pytest.mark.brokers("amqp")
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_who_looks_at_once_after_another_finds_all_letters(desk: Callable[..., Desk], kind: str) -> None:
    here = desk(task_default_queue_type=kind)
    for number in range(40):
        here.bury(task_message("shop.charge", number, task_id=f"task-{number}"))
    lines = here.export()
    assert len(lines) == 40
    for _ in range(8):
        found = {json.loads(line)["id"] for line in here.export()}
        assert found == {json.loads(line)["id"] for line in lines}
