"""``python -m benchmarks``: servers of its own, every measurement, one report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

from tests.support import RabbitNode, RedisServer

from .contestant import Contestant
from .costs import measure
from .leaks import looks
from .report import Table
from .stores import LONG_LEASE, records, round_trips
from .workers import publishing, throughput

T = TypeVar("T", RedisServer, RabbitNode)

NO_CONFIRMS = {"broker_transport_options": {"confirm_publish": False}}
CONFIRMS = {"broker_transport_options": {"confirm_publish": True}}


class Bench:
    """The servers and the sizes.

    Args:
        directory: for data and logs.
        stack: ends what was started.
        quick: a tenth of everything.
    """

    def __init__(self, directory: Path, stack: ExitStack, *, quick: bool, tasks: int | None, rounds: int | None) -> None:
        self.directory = directory
        self.quick = quick
        self.tasks = tasks or (600 if quick else 2000)
        self.rounds = rounds or (2 if quick else 9)
        self._stack = stack
        self._servers: dict[str, Any] = {}

    def redis(self, name: str = "redis") -> RedisServer:
        """Return the server of this name, started on first use."""
        return self._server(name, RedisServer)

    def rabbit(self) -> RabbitNode:
        """Return the RabbitMQ node, started on first use."""
        return self._server("rabbit", RabbitNode)

    def _server(self, name: str, kind: Callable[[Path], T]) -> T:
        if name not in self._servers:
            self._servers[name] = server = kind(self.directory / name)
            self._stack.callback(server.stop)
            server.start()
        return cast(T, self._servers[name])

    def contestant(self, variant: str, **options: Any) -> Contestant:
        """Return a contestant on the Redis server, where the options name no other."""
        options.setdefault("broker", self.redis().url(0))
        options.setdefault("store", self.redis().url(1))
        return Contestant(variant, self.directory, **options)

    # -- measurements -----------------------------------------------------------------------------------------------

    def redis_worker(self) -> list[Table]:
        """Throughput on Redis, results ignored."""
        variants = [self.contestant(variant) for variant in ("plain", "guarded", "keyed")]
        return [throughput("Redis broker and store, results ignored", variants, tasks=self.tasks, rounds=self.rounds)]

    def resources(self) -> list[Table]:
        """What a resource costs a guarded task, and its round trips."""
        store = self.redis("store")
        counted = self.contestant("resource", store=store.url(), settings=LONG_LEASE)
        variants = [self.contestant(variant) for variant in ("keyed", "resource")]
        return [
            throughput("A keyed task with a resource against one without, all on Redis", variants, tasks=self.tasks, rounds=self.rounds),
            round_trips(counted, store, tasks=self.tasks // 4),
        ]

    def redis_results(self) -> list[Table]:
        """Throughput on Redis, results kept there."""
        variants = [self.contestant(variant, backend=self.redis().url(2)) for variant in ("plain", "guarded")]
        return [throughput("Redis broker and store, results in Redis", variants, tasks=self.tasks // 2, rounds=self.rounds)]

    def rabbit_worker(self) -> list[Table]:
        """Throughput on RabbitMQ, results ignored."""
        url = self.rabbit().url()
        variants = [self.contestant(variant, broker=url) for variant in ("plain", "guarded")]
        return [throughput("RabbitMQ broker, Redis store, results ignored", variants, tasks=self.tasks // 2, rounds=self.rounds)]

    def publishing(self) -> list[Table]:
        """Cost of apply_async."""
        tasks, url = self.tasks // 4, self.rabbit().url()
        redis = [self.contestant(variant) for variant in ("plain", "guarded", "keyed")]
        rabbit = [
            self.contestant("plain", broker=url, settings=NO_CONFIRMS, title="plain"),
            self.contestant("plain", broker=url, settings=CONFIRMS, title="plain, confirms"),
            self.contestant("guarded", broker=url, title="guarded (confirms)"),
            self.contestant("keyed", broker=url, title="keyed (confirms)"),
        ]
        return [
            publishing("Publishing to Redis", redis, tasks=tasks, rounds=self.rounds),
            publishing("Publishing to RabbitMQ", rabbit, tasks=tasks, rounds=self.rounds),
        ]

    def round_trips(self) -> list[Table]:
        """Store round trips at the server."""
        store = self.redis("store")
        contestant = self.contestant("keyed", store=store.url(), settings=LONG_LEASE)
        return [round_trips(contestant, store, tasks=self.tasks // 4)]

    def records(self) -> list[Table]:
        """Memory and claim cost by the number of records."""
        return records(self.redis("store"), sizes=(1_000, 10_000) if self.quick else (1_000, 10_000, 100_000, 1_000_000))

    def costs(self) -> list[Table]:
        """CPU of the two halves of a worker."""
        return [measure(self.redis("costs"), self.directory, tasks=40, rounds=20 if self.quick else 100)]

    def leaks(self) -> list[Table]:
        """What it costs to watch tasks for what they leave behind."""
        look = looks(self.rounds)  # first: the servers are children, too
        watched = {"guardrails_watch_leaks": True}
        variants = [self.contestant("keyed"), self.contestant("keyed", settings=watched, title="keyed, watched")]
        title = "A keyed task watched for leaks, and one that is not, all on Redis"
        return [look, throughput(title, variants, tasks=self.tasks, rounds=self.rounds)]


PARTS: dict[str, Callable[[Bench], list[Table]]] = {
    "redis": Bench.redis_worker,
    "resources": Bench.resources,
    "results": Bench.redis_results,
    "rabbitmq": Bench.rabbit_worker,
    "publish": Bench.publishing,
    "trips": Bench.round_trips,
    "records": Bench.records,
    "costs": Bench.costs,
    "leaks": Bench.leaks,
}


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    names = ["celery", "kombu", "redis", "amqp", "celery-guardrails"]
    if find_spec("hiredis"):
        names.append("hiredis")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        **{name: version(name) for name in names},
    }


def main(argv: list[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Guarded tasks against plain Celery.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="less of everything: a smoke test of the benchmark, not a measurement")
    parser.add_argument("--tasks", type=int, help="tasks a round (default 2000)")
    parser.add_argument("--rounds", type=int, help="rounds (default 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    chosen = parser.parse_args(argv)
    unknown = set(chosen.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: {', '.join(PARTS)} are known")
    about, tables, began = machine(), [], time.monotonic()
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="gr-bench-") as directory, ExitStack() as stack:
        bench = Bench(Path(directory), stack, quick=chosen.quick, tasks=chosen.tasks, rounds=chosen.rounds)
        for name in chosen.parts or PARTS:
            for table in PARTS[name](bench):
                print(table.text(), flush=True)
                tables.append(table)
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s, load {about['load']:.1f} at the start, {os.getloadavg()[0]:.1f} at the end")
    if chosen.json is not None:
        report = {"about": about, "seconds": round(seconds, 1), "tables": [table.data() for table in tables]}
        chosen.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
