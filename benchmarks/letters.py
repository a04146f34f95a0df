"""Dead letters by the hundred thousand: ``python -m benchmarks.letters`` (``make bench-letters``).

For each broker a queue is filled; then, each in a process of its own, all letters are grouped (how much memory grows), some
replayed at a rate (how well it is held) and others as fast as it goes, each time between two runs of a bare kombu publisher that
waits for every confirm, with messages of the same size.
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
from statistics import median
from typing import Any

from celery import Celery
from kombu.connection import Connection

from celery_guardrails import Guardrails
from celery_guardrails.dead_letters import Filter
from celery_guardrails.policy.deadletter import DeathCertificate, error_fingerprint
from celery_guardrails.policy.delivery import DEAD_LETTER_HEADER, TRAVEL_HEADER, RawMessage, Travel
from tests.support import RabbitNode, RedisServer

from .report import Table

Figures = dict[str, float]

QUEUE = "letters"
#: Seconds that a replay at a rate takes.
PACED = 10
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


def fill(rails: Guardrails, letters: int) -> Figures:
    """Put so many letters into the dead letter queue, without a confirm for each: that would take minutes."""
    rails.broker.declare([QUEUE])
    with Connection(rails.app.conf.broker_url) as connection:
        producer = connection.Producer()
        for number in range(letters):
            message, certificate = letter(number)
            dead = message.with_headers(**{DEAD_LETTER_HEADER: certificate.to_header()})
            producer.publish(dead.body, routing_key=f"{QUEUE}.dead", delivery_mode=2, headers=dict(dead.headers), **_described(dead))
            while number % 500 == 0 and rails.dead_letters.count() < number - 500:
                time.sleep(0.01)  # py-amqp gives a connection up that is not read from for a second
    while rails.dead_letters.count() < letters:
        time.sleep(0.1)
    return {}


def group(rails: Guardrails, letters: int) -> Figures:
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


def replay(rails: Guardrails, letters: int) -> Figures:
    """Replay so many letters; seconds, and bytes that the process grew."""
    rails.dead_letters.count()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    report = rails.dead_letters.replay(Filter(limit=letters))
    seconds = time.perf_counter() - began
    assert report.replayed == letters, report
    return {"seconds": seconds, "grown": _memory("VmHWM") - before}


def pace(rails: Guardrails, letters: int) -> Figures:
    """Replay so many letters at a rate that takes ten seconds; seconds between the first one and the last."""
    moments: list[float] = []
    report = rails.dead_letters.replay(
        Filter(limit=letters), rate=letters / PACED, on_progress=lambda _: moments.append(time.perf_counter())
    )
    assert report.replayed == letters, report
    return {"seconds": (moments[-1] - moments[0]) * letters / (letters - 1)}


def publish(rails: Guardrails, letters: int) -> Figures:
    """Publish as many messages of the same size with a bare kombu producer that waits for confirms."""
    url = rails.app.conf.broker_url
    options = {"confirm_publish": True} if url.startswith("amqp") else {}
    with Connection(url, transport_options=options) as connection:
        queue = connection.SimpleQueue("bare")  # declares it
        producer = connection.Producer()
        began = time.perf_counter()
        for number in range(letters):
            message, _ = letter(number)
            producer.publish(message.body, routing_key="bare", delivery_mode=2, headers=dict(message.headers), **_described(message))
        seconds = time.perf_counter() - began
        queue.close()
    return {"seconds": seconds}


def _described(message: RawMessage) -> dict[str, Any]:
    return {"content_type": message.content_type, "content_encoding": message.content_encoding}


STEPS: dict[str, Callable[[Guardrails, int], Figures]] = {"fill": fill, "group": group, "pace": pace, "publish": publish, "replay": replay}


def _memory(name: str) -> int:
    """Return a size of this process in bytes, as Linux knows it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


# -- the benchmark ----------------------------------------------------------------------------------------------------


def step(name: str, broker: str, store: str, letters: int) -> Figures:
    """Run one step in a process of its own and return what it measured."""
    line = [sys.executable, "-m", "benchmarks.letters", "--step", name, "--letters", str(letters), "--broker", broker, "--store", store]
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    found: Figures = json.loads(done.stdout)
    return found


def measure(title: str, broker: str, store: str, options: argparse.Namespace) -> list[Any]:
    """Return one row of the table: each replay stands between two bare publishers, against which it is held."""
    total = max(options.group, options.rounds * options.letters + options.rate * PACED)
    step("fill", broker, store, total)
    grouped = step("group", broker, store, total)
    held = options.rate * PACED / step("pace", broker, store, options.rate * PACED)["seconds"]
    sample = max(500, options.letters // 4)
    rates, bares, ratios, grown = [], [], [], [grouped["grown"]]
    for _ in range(options.rounds):
        first = step("publish", broker, store, sample)["seconds"]
        replayed = step("replay", broker, store, options.letters)
        second = step("publish", broker, store, sample)["seconds"]
        rates.append(options.letters / replayed["seconds"])
        bares.append(2 * sample / (first + second))
        ratios.append(rates[-1] / bares[-1])
        grown.append(replayed["grown"])
    return [
        title,
        total / grouped["seconds"],
        max(grown) / 1e6,
        median(rates),
        median(bares),
        median(ratios),
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        100 * held / options.rate,
    ]


def main() -> None:
    """Start private servers, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.letters", description=__doc__)
    parser.add_argument("--group", type=int, default=100_000, help="letters that are grouped")
    parser.add_argument("--letters", type=int, default=5_000, help="letters of one replay")
    parser.add_argument("--rounds", type=int, default=3, help="replays, of which the medians are told")
    parser.add_argument("--rate", type=int, default=100, help="letters a second of a replay that takes ten seconds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("redis", "rabbitmq"))
    for hidden in ("--step", "--broker", "--store"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](make_rails(options.broker, options.store), options.letters)))
        return
    began = os.getloadavg()[0]
    columns = ["broker", "grouped/s", "grown MB", "replayed/s", "bare/s", "ratio", "ratios", "rate held %"]
    table = Table("Dead letters grouped and replayed, against a bare publisher that waits for confirms", columns)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisServer(directory / "redis")
        stack.callback(redis.stop)
        redis.start()
        if options.only != "rabbitmq":
            table.rows.append(measure("Redis", redis.url(0), redis.url(1), options))
        if options.only != "redis":
            rabbit = RabbitNode(directory / "rabbit")
            stack.callback(rabbit.stop)
            rabbit.start()
            table.rows.append(measure("RabbitMQ", rabbit.url(), redis.url(1), options))
    load = " to ".join(sorted({f"{value:.0f}" for value in (began, os.getloadavg()[0])}))
    table.notes.append(
        f"{options.group:,} letters grouped, {options.rounds} replays of {options.letters:,}, one at {options.rate}/s; load {load}"
    )
    table.notes.append(f"{os.cpu_count()} cores, servers on the same machine; letters with a traceback of {len(TRACEBACK)} characters")
    print(json.dumps(table.data(), indent=2) if options.json else table.text())


if __name__ == "__main__":
    main()
