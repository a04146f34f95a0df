"""Dead letters by the ten thousand: ``python -m benchmarks.letters`` (``make bench-letters``).

For each broker a queue is filled; then, each in a process of its own, all letters are grouped (how much memory grows) and
replayed (how fast), beside a bare kombu publisher that waits for every confirm, with messages of the same size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from celery import Celery
from kombu.connection import Connection

from celery_guardrails import Guardrails
from celery_guardrails.policy.deadletter import DeathCertificate, error_fingerprint
from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage, Travel
from tests.support import RabbitNode, RedisServer

from .report import Table

QUEUE = "letters"
TRACEBACK = "Traceback (most recent call last):\n" + "".join(
    f'  File "/srv/shop/module_{depth}.py", line {depth + 7}, in function_{depth}\n    call(number={depth})\n' for depth in range(12)
)
#: Errors that the letters died of.
ERRORS = tuple(f"shop.errors.Error{number}" for number in range(10))


def letter(number: int) -> tuple[RawMessage, DeathCertificate]:
    """Return a letter of about three kilobytes, as the guard writes it."""
    task_id = f"{number:08x}-0000-4000-8000-{number:012x}"
    error = ERRORS[number % len(ERRORS)]
    now = 1_900_000_000.0 + number
    message = RawMessage(
        json.dumps([[number, "x" * 200], {"currency": "EUR"}, {"callbacks": None, "chain": None}]).encode(),
        "application/json",
        "utf-8",
        {
            "lang": "py",
            "task": "shop.charge",
            "id": task_id,
            "retries": 0,
            TRAVEL_HEADER: Travel(key=f"charge:{number}", first=now).to_header(),
        },
        {"correlation_id": task_id, "delivery_mode": 2, "priority": 0},
        "",
        QUEUE,
    )
    certificate = DeathCertificate(
        "exhausted",
        task="shop.charge",
        task_id=task_id,
        key=f"charge:{number}",
        error=error,
        message=f"order {number} was refused",
        traceback=TRACEBACK,
        fingerprint=error_fingerprint(error, TRACEBACK),
        attempts=12,
        first_seen=now,
        last_seen=now + 900,
        worker="w1@host/7",
        queue=QUEUE,
    )
    return message, certificate


def make_rails(broker: str, store: str) -> Guardrails:
    """Return the guardrails of an app that has one queue."""
    app = Celery("letters", broker=broker, set_as_current=False)
    app.conf.task_default_queue = QUEUE
    return Guardrails(app, store=store)


# -- in a process of its own ----------------------------------------------------------------------------------------


def fill(rails: Guardrails, letters: int) -> dict[str, float]:
    """Put so many letters into the dead letter queue."""
    for number in range(letters):
        message, certificate = letter(number)
        rails.broker.dead_letter(message, QUEUE, certificate)
    return {}


def group(rails: Guardrails, letters: int) -> dict[str, float]:
    """Group all letters; seconds, and bytes that the process grew at its peak."""
    rails.dead_letters.count()  # connections and libraries are there before
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    groups = rails.dead_letters.groups()
    seconds = time.perf_counter() - began
    assert sum(found.count for found in groups) == letters, groups
    assert len(groups) == len(ERRORS), groups
    return {"seconds": seconds, "grown": _memory("VmHWM") - before}


def replay(rails: Guardrails, letters: int) -> dict[str, float]:
    """Replay all letters; seconds, and bytes that the process grew."""
    rails.dead_letters.count()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    report = rails.dead_letters.replay()
    seconds = time.perf_counter() - began
    assert report.replayed == letters, report
    return {"seconds": seconds, "grown": _memory("VmHWM") - before}


def publish(rails: Guardrails, letters: int) -> dict[str, float]:
    """Publish as many messages of the same size with a bare kombu producer that waits for confirms."""
    url = rails.app.conf.broker_url
    options = {"confirm_publish": True} if url.startswith("amqp") else {}
    with Connection(url, transport_options=options) as connection:
        queue = connection.SimpleQueue("bare")  # declares it
        producer = connection.Producer()
        began = time.perf_counter()
        for number in range(letters):
            message, _ = letter(number)
            producer.publish(
                message.body,
                routing_key="bare",
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                headers=dict(message.headers),
                delivery_mode=2,
            )
        seconds = time.perf_counter() - began
        queue.close()
    return {"seconds": seconds}


STEPS: dict[str, Callable[[Guardrails, int], dict[str, float]]] = {"fill": fill, "group": group, "replay": replay, "publish": publish}


def _memory(name: str) -> int:
    """Return a size of this process in bytes, as Linux knows it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


# -- the benchmark ----------------------------------------------------------------------------------------------------


def step(name: str, broker: str, store: str, letters: int) -> dict[str, float]:
    """Run one step in a process of its own and return what it measured."""
    line = [sys.executable, "-m", "benchmarks.letters", "--step", name, "--letters", str(letters), "--broker", broker, "--store", store]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(title: str, broker: str, store: str, letters: int) -> list[Any]:
    """Return one row of the table: bare publisher before and after the replay, and what lies between."""
    step("fill", broker, store, letters)
    grouped = step("group", broker, store, letters)
    sample = max(1000, letters // 4)
    first = sample / step("publish", broker, store, sample)["seconds"]
    replayed = step("replay", broker, store, letters)
    second = sample / step("publish", broker, store, sample)["seconds"]
    bare, rate = (first + second) / 2, letters / replayed["seconds"]
    grown = [found["grown"] / 1e6 for found in (grouped, replayed)]
    return [title, letters, letters / grouped["seconds"], grown[0], rate, grown[1], bare, rate / bare]


def main() -> None:
    """Start private servers, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.letters", description=__doc__)
    parser.add_argument("--letters", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("redis", "rabbitmq"))
    for hidden in ("--step", "--broker", "--store"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](make_rails(options.broker, options.store), options.letters)))
        return
    columns = ["broker", "letters", "grouped/s", "grown MB", "replayed/s", "grown MB ", "bare/s", "ratio"]
    table = Table("Dead letters grouped and replayed, against a bare publisher that waits for confirms", columns)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisServer(directory / "redis")
        stack.callback(redis.stop)
        redis.start()
        if options.only != "rabbitmq":
            table.rows.append(measure("Redis", redis.url(0), redis.url(1), options.letters))
        if options.only != "redis":
            rabbit = RabbitNode(directory / "rabbit")
            stack.callback(rabbit.stop)
            rabbit.start()
            table.rows.append(measure("RabbitMQ", rabbit.url(), redis.url(1), options.letters))
    table.notes.append(f"{os.cpu_count()} cores, servers on the same machine; letters with a traceback of {len(TRACEBACK)} characters")
    print(json.dumps(table.data(), indent=2) if options.json else table.text())


if __name__ == "__main__":
    main()
