"""A hard day in a small shop, in about a minute: ``python -m example_project.demo``.

500 orders, each published twice, are charged at a payment gateway by two Celery workers, while processes are killed, the
gateway fails and goes down, and bad messages come in. At the end every order is accounted for: from the gateway's ledger,
the broker and Celery's result backend, never from celery-guardrails' own counters. ``--plain`` runs the same day on plain
Celery. docs/demo.md says what each figure means.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .day import ORDERS, Day, Publisher, read_orders
from .ledger import Accepted, AmqpQueues, Figures, GatewayLedger, Queues, RedisQueues, result_states
from .processes import ROOT, GatewayProcess, Redis, Worker, gateway, private_redis, scratch, stop, wait_for, workers
from .report import final_word, ledger_after_day, ledger_after_replay, plain_ledger
from .screen import Screen

#: Seconds after which a day that has not come to rest is over all the same, guarded and plain.
PATIENCE = {"guarded": 80.0, "plain": 90.0}
#: Plain Celery never comes to rest (the poison order goes round for ever): its day is over when the gateway has had no call
#: for longer than the longest retry wait.
SILENCE = 11.0


@dataclass
class Demo:
    """Everything that runs, and the figures of it."""

    screen: Screen
    plain: bool
    orders: list[dict[str, Any]]
    queues: Queues
    redis: Redis
    gateway: GatewayProcess
    crew: list[Worker]
    accepted: Accepted
    directory: Path
    environment: dict[str, str]
    charge: Any = None
    began: float = 0.0
    #: Worker children that were killed on purpose, and when (unix time).
    victims: dict[int, float] = field(default_factory=dict)
    #: Seconds the broker and the workers have been at rest.
    calm_since: float | None = None

    def clock(self) -> float:
        """Return the seconds since the day began."""
        return time.monotonic() - self.began

    def figures(self) -> Figures:
        """Count everything, from outside."""
        states = result_states(self.redis.results, self.accepted.tasks)
        counts: dict[str, int] = {}
        for state in states.values():
            counts[state] = counts.get(state, 0) + 1
        return Figures(
            accepted=self.accepted,
            gateway=GatewayLedger(self.gateway.ledger).figures(self.victims),
            letters=self.queues.letters(self.queues.dead),
            waiting=self.queues.ready(self.queues.queue),
            delayed=self.queues.delayed(),
            taken=self.queues.taken(),
            finished=counts,
            endless={task_id: order for task_id, order in self.accepted.tasks.items() if task_id not in states},
            failed={self.accepted.tasks[task_id] for task_id, state in states.items() if state == "FAILURE"},
        )

    # -- the day ----------------------------------------------------------------------------------------------

    def run_day(self) -> None:
        """Publish, let things go wrong, and wait until every message has come to its end (or patience has)."""
        from . import shop

        self.charge = shop.charge
        day = Day(shop.app, self.queues.queue, self.crew, self.gateway, self.accepted, self.clock, self.victims)
        publisher = Publisher(self.orders, self.accepted, shop.charge)
        schedule = day.mishaps()
        ledger = GatewayLedger(self.gateway.ledger)
        self.began = time.monotonic()
        publisher.start()
        looked = 0.0
        try:
            while True:
                self.supervise()
                for mishap in schedule:
                    text = mishap.attempt(self.clock())
                    if text is not None:
                        self.screen.event(self.clock(), text, "yellow")
                if self.clock() - looked >= 0.25:
                    looked = self.clock()
                    over = not publisher.is_alive() and all(mishap.done for mishap in schedule)
                    self.show(ledger, len(self.orders), day.gateway_down, publisher.is_alive())
                    if over and self.at_rest(ledger):
                        break
                    if self.clock() > PATIENCE["plain" if self.plain else "guarded"]:
                        self.screen.event(self.clock(), "patience is over: the day is closed as it stands", "red")
                        break
                time.sleep(0.02)
        finally:
            publisher.stopped.set()
            publisher.join(5)
        if publisher.error is not None:
            self.screen.event(self.clock(), f"{self.accepted.refused} publishes were refused: {publisher.error!r}", "red")

    def supervise(self) -> None:
        """Start workers again that have ended."""
        for worker in self.crew:
            code = worker.supervise()
            if code is not None:
                how = "exit code 0" if code == 0 else signal.Signals(-code).name if code < 0 else f"exit code {code}"
                self.screen.event(self.clock(), f"{worker.name} has ended ({how}) and is started again", "cyan")

    def at_rest(self, ledger: GatewayLedger) -> bool:
        """Whether nothing more will happen."""
        if self.plain:
            return time.time() - ledger.last_call() > SILENCE
        return self.calm(ended=("SUCCESS", "FAILURE"))

    def calm(self, ended: tuple[str, ...]) -> bool:
        """Whether for a second every message has had one of these ends and no task message has been in a queue."""
        states = result_states(self.redis.results, self.accepted.tasks).values()
        done = sum(state in ended for state in states) == len(self.accepted.tasks)
        if not done or self.queues.ready(self.queues.queue) + (self.queues.taken() or 0):
            self.calm_since = None
            return False
        self.calm_since = self.calm_since or time.monotonic()
        return time.monotonic() - self.calm_since > 1.0

    def show(self, ledger: GatewayLedger, expected: int, down: bool, publishing: bool) -> None:
        """Refresh the live block."""
        paint = self.screen.paint
        charged, waiting, delayed = ledger.charged(), self.queues.ready(self.queues.queue), self.queues.delayed()
        dead, taken = self.queues.ready(self.queues.dead), self.queues.taken()
        phase = "gateway DOWN" if down else "orders come in" if publishing else "running dry"
        held = "" if taken is None else f"taken by workers {taken:>3}    "
        done = int(30 * charged / expected)
        block = [
            "",
            f"{self.clock():6.1f} s  {paint('█' * done, 'green')}{'░' * (30 - done)}  {paint(phase, 'red' if down else 'bold')}",
            f"          accepted {len(self.accepted.orders):>4} orders ({len(self.accepted.tasks)} messages)    charged {charged:>4}",
            f"          waiting {waiting:>5}    delayed {delayed:>4}    {held}dead letters {dead:>3}",
        ]
        short = (
            f"{self.clock():6.1f} s  {phase}: accepted {len(self.accepted.orders)}, charged {charged}, waiting {waiting},"
            f" delayed {delayed}{'' if taken is None else f', taken {taken}'}, dead letters {dead}"
        )
        self.screen.status(block, short)

    # -- mending and replay -----------------------------------------------------------------------------------

    def celery(self, *arguments: str) -> int:
        """Run a ``celery -A example_project.shop …`` command as an operator would, and show it."""
        command = ["celery", "-A", "example_project.shop", *arguments]
        self.screen.line()
        self.screen.line("$ " + shlex.join(command), "bold")
        done = subprocess.run(
            [sys.executable, "-m", *command], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        lines = (done.stdout + (done.stderr if done.returncode else "")).rstrip().splitlines()
        for text in lines[:14]:
            self.screen.clipped("  " + text)
        if len(lines) > 14:
            self.screen.line(f"  … {len(lines) - 14} lines more", "dim")
        return done.returncode

    def mend_and_replay(self) -> int:
        """Mend the gateway and the receipt bug, replay the dead letters through the CLI, wait for their ends."""
        self.screen.title("REPLAY: the gateway is mended and the receipt bug fixed, so the dead letters are sent again")
        self.gateway.ask("/admin/mend", {})
        Path(self.environment["SHOP_HOTFIX"]).touch()
        code = self.celery("guardrails", "dead-letters", "replay", "--task", "example_project.shop.charge")
        self.calm_since = None

        def settled() -> bool:
            self.supervise()
            return self.queues.ready(self.queues.dead) <= len(self.accepted.garbage) and self.calm(ended=("SUCCESS",))

        wait_for(settled, 20)
        self.celery("guardrails", "dead-letters", "list")
        return code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m example_project.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--broker", metavar="URL", help="amqp://… or redis://…; default: a private Redis")
    parser.add_argument("--plain", action="store_true", help="the same day on plain Celery (acks_late, autoretry_for, retry_backoff)")
    parser.add_argument("--orders", type=Path, default=ORDERS, metavar="FILE", help="JSON lines with order_id and amount in cents")
    parser.add_argument("--no-idempotency-key", action="store_true", help="do not send Idempotency-Key: the gateway charges every call")
    parser.add_argument("--keep", action="store_true", help="keep the worker logs and the gateway's ledger")
    options = parser.parse_args(argv)
    if options.broker and not options.broker.startswith(("amqp://", "amqps://", "redis://", "rediss://", "redis+socket://")):
        parser.error(f"--broker {options.broker}: amqp://… or redis://… is wanted")
    return options


def environment_of(options: argparse.Namespace, redis: Redis, gateway_url: str, directory: Path) -> dict[str, str]:
    """Return the environment that makes shop.py the shop of this run."""
    run = secrets.token_hex(4)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "SHOP_MODE": "plain" if options.plain else "guarded",
        "SHOP_BROKER": options.broker or redis.broker,
        "SHOP_BACKEND": redis.results,
        "SHOP_STORE": redis.store,
        "SHOP_GATEWAY": gateway_url,
        "SHOP_QUEUE": f"orders-{run}",
        "SHOP_NAMESPACE": f"shop-{run}",
        "SHOP_DLX": f"guardrails.dlx-{run}",
        "SHOP_IDEMPOTENCY_KEY": "0" if options.no_idempotency_key else "1",
        "SHOP_HOTFIX": str(directory / "receipt-bug-is-fixed"),
    }


def run(options: argparse.Namespace, screen: Screen) -> int:
    """Run the demo and return its exit code."""
    orders = read_orders(options.orders)
    started = time.monotonic()
    with ExitStack() as stack:
        directory = stack.enter_context(scratch(options.keep))
        redis = stack.enter_context(private_redis(directory))
        pay = stack.enter_context(gateway(directory))
        environment = environment_of(options, redis, pay.url, directory)
        os.environ.update(environment)  # the publisher in this process is the same shop
        broker, queue, namespace = (environment[name] for name in ("SHOP_BROKER", "SHOP_QUEUE", "SHOP_NAMESPACE"))
        try:
            queues: Queues
            if broker.startswith("amqp"):
                queues = AmqpQueues(broker, queue, namespace, environment["SHOP_DLX"])
            else:
                queues = RedisQueues(broker, queue, namespace)
        except OSError as error:
            raise SystemExit(f"no broker at {options.broker}: {error}") from error
        stack.callback(queues.clean)
        crew = stack.enter_context(workers(2, environment, directory))
        mode = "plain Celery" if options.plain else "celery-guardrails"
        screen.line(f"A hard day in a small shop, on {mode}", "bold")
        screen.line(f"  broker   {'RabbitMQ, ' + safe(broker) if broker.startswith('amqp') else options.broker or redis.origin}")
        screen.line(f"  store    {redis.origin}" if not options.plain else f"  results  {redis.origin}")
        screen.line(f"  gateway  {pay.url}, a process of its own with its own ledger")
        screen.line("  workers  2 × celery worker --pool prefork -c 2")
        screen.line(f"  orders   {len(orders)} from {options.orders.name}, each published twice")
        if options.keep:
            screen.line(f"  files    {directory}")
        demo = Demo(screen, options.plain, orders, queues, redis, pay, crew, Accepted(), directory, environment)
        if not wait_for(lambda: all(worker.ready() for worker in crew), 30):
            raise SystemExit(f"the workers did not start:\n{crew[0].log.read_text()[-2000:]}")
        screen.line()
        demo.run_day()
        return plain_end(demo, options, started) if options.plain else guarded_end(demo, options, started)


def guarded_end(demo: Demo, options: argparse.Namespace, started: float) -> int:
    """Print both ledgers and judge them."""
    screen, key = demo.screen, not options.no_idempotency_key
    first = demo.figures()
    balanced = ledger_after_day(screen, first, demo.crew, key)
    replay = demo.mend_and_replay()
    codes = stop(demo.crew, patience=40)
    second = demo.figures()
    balanced = ledger_after_replay(screen, second, first, codes, key) and balanced and replay == 0
    final_word(screen, balanced, time.monotonic() - started, options)
    return 0 if balanced else 1


def plain_end(demo: Demo, options: argparse.Namespace, started: float) -> int:
    """Print what became of the day on plain Celery."""
    stop(demo.crew, patience=8)
    figures = demo.figures()
    left = demo.queues.letters(demo.queues.queue)
    poison = {order for order, amount in demo.accepted.orders.items() if amount % 100 == shop_poison()}
    plain_ledger(demo.screen, figures, left, poison, demo.crew, not options.no_idempotency_key)
    final_word(demo.screen, None, time.monotonic() - started, options)
    return 0


def shop_poison() -> int:
    """Return the cents that the shop's receipt library dies of."""
    from .shop import POISON

    return POISON


def safe(url: str) -> str:
    """Return a broker URL without its password."""
    from kombu.connection import Connection

    return str(Connection(url).as_uri())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; Ctrl-C and SIGTERM clean up as a normal end does."""
    options = parse(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return run(options, Screen())
    except KeyboardInterrupt:
        print("\ninterrupted: everything that was started has been ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
