"""One working day of the shop: orders are published, and things go wrong on schedule."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kombu.connection import Connection

from .ledger import Accepted
from .processes import GatewayProcess, Worker

ORDERS = Path(__file__).with_name("orders.jsonl")
#: Seconds in which the orders come in, and what the gateway's outage lasts.
PUBLISHING, OUTAGE = 25.0, 10.0
#: Seconds a mishap waits for its chance (a kill in the middle of a charge needs a charge).
LATE = 4.0


def read_orders(path: Path) -> list[dict[str, Any]]:
    """Return the orders of a JSON-lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    orders = [json.loads(line) for line in lines if line.strip()]
    if not orders or any(not {"order_id", "amount"} <= order.keys() for order in orders):
        raise SystemExit(f"{path}: one JSON object a line with order_id and amount (in cents) is wanted")
    return orders


class Publisher(threading.Thread):
    """Publishes each order twice: half of the second copies at once (a double click), half up to 3 s later (a relay's retry)."""

    def __init__(self, orders: Iterable[dict[str, Any]], accepted: Accepted, charge: Any) -> None:
        super().__init__(name="publisher", daemon=True)
        rng = random.Random(7)
        listed = list(orders)
        self.accepted, self.charge = accepted, charge
        self.plan: list[tuple[float, int, int]] = []
        for position, order in enumerate(listed):
            at = position / len(listed) * PUBLISHING
            again = at + (0.0 if position % 2 else rng.uniform(0.2, 3.0))
            self.plan += [(moment, int(order["order_id"]), int(order["amount"])) for moment in (at, again)]
        self.plan.sort()
        self.stopped = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Publish at the planned times; an order counts as accepted once the broker has confirmed a copy of it."""
        begin = time.monotonic()
        for at, order_id, amount in self.plan:
            if self.stopped.wait(max(0.0, begin + at - time.monotonic())):
                return
            try:
                result = self.charge.apply_async((order_id, amount))
            except Exception as error:  # noqa: BLE001  # whatever it is, the shop's web page would show an error: not accepted
                self.accepted.refused += 1
                self.error = error
                continue
            self.accepted.tasks[result.id] = order_id
            self.accepted.orders[order_id] = amount


@dataclass
class Mishap:
    """Something that goes wrong at a time: ``act`` returns what happened, or None to be asked again."""

    at: float
    act: Callable[[], str | None]
    done: bool = False

    def attempt(self, clock: float) -> str | None:
        """Let it happen if its time has come; after :data:`LATE` seconds of waiting for its chance, give it up."""
        if self.done or clock < self.at:
            return None
        text = self.act()
        if text is None and clock > self.at + LATE:
            text = f"left out: {(self.act.__doc__ or '').strip().lower()} (there was no chance for it)"
        self.done = text is not None
        return text


@dataclass
class Day:
    """What goes wrong, when.

    Args:
        app: the shop's Celery app.
        queue: the task queue.
        crew: the workers.
        gateway: the gateway.
        accepted: written to when garbage is put in.
        clock: returns the seconds since the day began.
        victims: written to: the children that are killed, by process id, and the unix time of it.
    """

    app: Any
    queue: str
    crew: list[Worker]
    gateway: GatewayProcess
    accepted: Accepted
    clock: Callable[[], float]
    victims: dict[int, float]
    down_from: float | None = None

    def mishaps(self) -> list[Mishap]:
        """Return the schedule, in seconds since the day began."""
        return [
            Mishap(3.0, self.kill_child),
            Mishap(4.5, self.garbage),
            Mishap(6.0, self.kill_main),
            Mishap(8.0, self.take_gateway_down),
            Mishap(20.0, self.terminate),
        ]

    @property
    def gateway_down(self) -> bool:
        """Whether the gateway is down at the moment."""
        return self.down_from is not None and self.clock() < self.down_from + OUTAGE

    def fresh_caller(self, worker: Worker) -> int | None:
        """Return a child of the worker that is in the middle of a call to the gateway, or None."""
        children = None
        for call in sorted(self.gateway.ask("/admin/inflight")["calls"], key=lambda call: -call["since"]):
            if time.time() - call["since"] > 0.05:
                break
            children = worker.children() if children is None else children
            if call["caller"] in children:
                return int(call["caller"])
        return None

    def kill_child(self) -> str | None:
        """Kill a child in the middle of a call to the gateway."""
        pid = self.fresh_caller(self.crew[0])
        if pid is None:
            return None
        self.victims[pid] = time.time()
        os.kill(pid, signal.SIGKILL)
        return f"kill -9 {pid}: a child of {self.crew[0].name}, in the middle of a charge"

    def kill_main(self) -> str | None:
        """Kill a worker's main process while it has a charge running; its supervisor starts it again."""
        worker = self.crew[0]
        if self.fresh_caller(worker) is None:
            return None
        self.victims.update(dict.fromkeys(worker.children(), time.time()))
        os.kill(worker.pid, signal.SIGKILL)
        return f"kill -9 {worker.pid}: the main process of {worker.name}, with charges running and others prefetched"

    def terminate(self) -> str | None:
        """Stop a worker as a deploy does; its supervisor starts it again."""
        worker = self.crew[1]
        assert worker.process is not None
        worker.process.terminate()
        return f"SIGTERM to {worker.name} (a deploy)"

    def take_gateway_down(self) -> str | None:
        """Take the gateway down."""
        self.gateway.ask("/admin/down", {"seconds": OUTAGE})
        self.down_from = self.clock()
        return f"the gateway is down for {OUTAGE:.0f} s: 503, or the connection closed without an answer"

    def garbage(self) -> str | None:
        """Put a message with a broken body into the queue, and one for a task that no worker has."""
        body = b'[[9001, 4200], {"note": "caf\xe9 \xff'
        headers = {"lang": "py", "task": self.charge_name, "id": "9001aaaa-0000-4000-8000-000000009001", "retries": 0}
        options = self.app.conf.broker_transport_options
        with Connection(self.app.conf.broker_url, transport_options=options) as connection, connection.Producer() as producer:
            producer.publish(
                body, exchange="", routing_key=self.queue, headers=headers, content_type="application/json", content_encoding="utf-8"
            )
            self.accepted.garbage.append(body)
            unknown = json.dumps([[9002, 100], {}, {}]).encode()
            headers = {"lang": "py", "task": "shop.refund_of_next_release", "id": "9002aaaa-0000-4000-8000-000000009002", "retries": 0}
            producer.publish(
                unknown, exchange="", routing_key=self.queue, headers=headers, content_type="application/json", content_encoding="utf-8"
            )
            self.accepted.garbage.append(unknown)
        return "two bad messages put into the queue: one that cannot be decoded, one for a task that no worker knows"

    @property
    def charge_name(self) -> str:
        """Return the registered name of the task."""
        return "example_project.shop.charge"
