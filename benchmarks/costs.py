"""Where the guard's time goes: CPU microseconds a task of the two halves of a worker, each alone in one process.

No broker and no pool: a captured message is fed to the strategy as the consumer does it (main process), and what would
travel to the pool is unpickled and traced as a pool process does it (child), with a real Redis store. CPU time, not wall
time, so a busy machine disturbs it little. ``python -m benchmarks.costs --profile`` shows the functions behind it.
"""

from __future__ import annotations

import argparse
import cProfile
import pickle
import pstats
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from billiard.pool import ACK
from celery.app import trace
from celery.worker import state as worker_state
from kombu.transport.virtual import Message

from celery_guardrails.integration.mainstate import state
from tests.support import RedisServer

from .app import TASK, VARIANTS, make_app
from .report import Table


class _Qos:
    """Stands in for kombu's bookkeeping of what is unacknowledged."""

    def append(self, *args: Any) -> None:
        """Take a delivery."""

    def ack(self, *args: Any) -> None:
        """Take an ack; the real one costs both variants the same, and depends on the broker."""


class _Pool:
    """Pickles what a pool would send to a child and answers at once that it was done."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.keep = False

    def apply_async(self, target: Any, args: Any = (), **options: Any) -> None:
        data = pickle.dumps((ACK, (1, None, target, args, {})), protocol=pickle.HIGHEST_PROTOCOL)
        if self.keep:
            self.sent.append(data)
        options["accept_callback"](1, 0.0)
        options["callback"]((0, "None", 0.0))


class Halves:
    """Both halves of a worker for one variant."""

    def __init__(self, variant: str, server: RedisServer, directory: Path) -> None:
        environ = {
            "BENCH_VARIANT": variant,
            "BENCH_BROKER": server.url(0),
            "BENCH_STORE": server.url(1),
            "BENCH_QUEUE": f"costs-{variant}",
            "BENCH_EFFECTS": str(directory / "effects"),
        }
        self._queue = environ["BENCH_QUEUE"]
        self.app = make_app(environ)
        self.task = self.app.tasks[TASK]
        self.pool = _Pool()
        self._channel = self.app.connection_for_write().channel()
        self._channel._qos = _Qos()
        self._wire = self._capture()
        self._handler = self._make_handler(variant)
        self.trace: Any = None

    def _capture(self) -> dict[str, Any]:
        """Return a message as it lies in Redis."""
        self.task.apply_async((1,))
        message: dict[str, Any] = self._channel._get(self._queue)
        return message

    def _make_handler(self, variant: str) -> Callable[[Any], Any]:
        consumer: Any = SimpleNamespace(
            app=self.app,
            hostname="bench@host",
            connection_errors=(OSError,),
            channel_errors=(),
            task_buckets={TASK: None},
            event_dispatcher=None,
            timer=SimpleNamespace(call_at=None),
            qos=None,
            initial_prefetch_count=8,
            controller=SimpleNamespace(state=worker_state),
            pool=self.pool,
            _limit_task=None,
            _limit_post_eta=None,
            apply_eta_task=None,
            disable_rate_limits=True,
            task_consumer=None,
            on_task_request=lambda request: request.execute_using_pool(self.pool),
        )
        strategy = self.task.start_strategy(self.app, consumer)

        def handle(message: Any) -> Any:
            return strategy(message, None, message.ack_log_error, message.reject_log_error, [])

        if variant == "plain":
            return handle
        from celery_guardrails.worker.bad_messages import BadMessages

        consumer.create_task_handler = lambda: handle
        consumer.on_decode_error = consumer.on_unknown_message = consumer.on_unknown_task = consumer.on_invalid_task = None
        BadMessages(consumer)
        handler: Callable[[Any], Any] = consumer.create_task_handler()
        return handler

    def messages(self, number: int) -> list[Any]:
        """Return messages that differ in their ids (and keys), fresh from the wire."""
        made = []
        for _ in range(number):
            raw = pickle.loads(pickle.dumps(self._wire))
            raw["headers"]["id"] = task_id = str(uuid.uuid4())
            raw["properties"]["delivery_tag"] = str(uuid.uuid4())
            if "key" in raw["headers"].get("x-guardrails", {}):
                raw["headers"]["x-guardrails"]["key"] = task_id
            made.append(raw)
        return made

    def main(self, raws: list[Any]) -> float:
        """Feed messages to the main process' half; return CPU microseconds for each."""
        start = time.process_time()
        for raw in raws:
            self._handler(Message(raw, channel=self._channel))
        spent = time.process_time() - start
        state.live.clear()
        return spent / len(raws) * 1e6

    def child(self, sent: list[bytes]) -> float:
        """Unpickle and run what was sent to the pool; return CPU microseconds for each."""
        trace.setup_worker_optimizations(self.app, hostname="bench@host")
        self.task.__trace__ = trace.build_tracer(self.task.name, self.task, self.app.loader, "bench@host", app=self.app)
        start = time.process_time()
        for data in sent:
            _, (_, _, target, args, kwargs) = pickle.loads(data)
            target(*args, **kwargs)
        return (time.process_time() - start) / len(sent) * 1e6


def measure(server: RedisServer, directory: Path, *, tasks: int, rounds: int, profile: bool = False) -> Table:
    """Measure both halves of every variant in interleaved rounds."""
    halves = {variant: Halves(variant, server, directory) for variant in VARIANTS}
    spent: dict[str, list[tuple[float, float, float]]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds + 1):
        for variant, half in halves.items():
            half.pool.keep = False
            main = half.main(half.messages(tasks))
            half.pool.keep = True
            half.main(half.messages(tasks))
            sent, half.pool.sent = half.pool.sent, []
            child = half.child(sent)
            if number:
                spent[variant].append((main, child, len(sent[0])))
    if profile:
        for variant, half in halves.items():
            raws = half.messages(tasks)
            _profile(f"{variant}, main process, {tasks} tasks", half.main, raws)
            _profile(f"{variant}, child, {tasks} tasks", half.child, half.pool.sent)
    table = Table(
        f"CPU of the two halves of a worker, each alone: {rounds} rounds of {tasks} tasks, the best of them",
        ["variant", "main µs/task", "child µs/task", "pickled bytes"],
        notes=["without the broker's client (main) and the pool's pipes; the child with the store's client, not its server"],
    )
    for variant, costs in spent.items():
        table.rows.append([variant, min(main for main, _, _ in costs), min(child for _, child, _ in costs), int(costs[0][2])])
    return table


def _profile(title: str, run: Callable[[Any], Any], work: Any) -> None:
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(run, work)
    print(f"\n{title}")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(28)


def main() -> int:
    """Measure, print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--profile", action="store_true", help="print the most expensive functions as well")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gr-bench-") as directory:
        server = RedisServer(Path(directory) / "redis").start()
        try:
            print(measure(server, Path(directory), tasks=chosen.tasks, rounds=chosen.rounds, profile=chosen.profile).text())
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
