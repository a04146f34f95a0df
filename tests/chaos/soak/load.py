"""The publisher of a soak: orders by a seed, each published until the broker has confirmed it."""

from __future__ import annotations

import itertools
import threading
import time
import traceback
import uuid
from collections import Counter
from typing import Any

from celery import chain, chord

from .plan import LINKS, MEMBERS, ROWS, Expected, Order, orders
from .site import NAME_HEADER, Site

#: What no worker can run, as other programs might send it.
BAD = {
    "undecodable": (b'[["broken"], {}, {', "soak.plain"),
    "unknown": (b'[["x"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]', "soak.nowhere"),
    "invalid": (b'"no triple"', "soak.plain"),
}


class Load(threading.Thread):
    """Publishes at a rate until it is told to stop, or has published enough.

    An error of a publish says nothing of whether the message is there: it is published again, with the same key, as an outbox does.

    Args:
        site: to publish to.
        seed: of the orders.
        rate: tasks a second, at most.
        most: tasks in all, or None.
    """

    def __init__(self, site: Site, *, seed: int, rate: float, most: int | None = None) -> None:
        super().__init__(name="load", daemon=True)
        self.tasks: list[Expected] = []
        self.confirmed: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.crashed = ""
        self._site, self._app = site, site.deployment.app
        self._orders, self._rate, self._most = orders(seed), rate, most
        self._over = threading.Event()

    def stop(self) -> None:
        """End after the order in hand."""
        self._over.set()
        self.join(60)

    def run(self) -> None:
        try:
            self._publish()
        except Exception:  # noqa: BLE001 - told in the report; a soak without load proves nothing
            self.crashed = traceback.format_exc()

    def _publish(self) -> None:
        due = time.monotonic()
        while not self._over.is_set() and (self._most is None or len(self.confirmed) < self._most):
            order = next(self._orders)
            expected = order.tasks()
            self.tasks += expected
            if self._until_confirmed(order):
                self.confirmed.update(task.name for task in expected)
                self.kinds[order.kind] += len(expected)
            # never in a hurry afterwards: an outage is not followed by a storm of ours
            due = max(due + len(expected) / self._rate, time.monotonic() - 1)
            self._over.wait(due - time.monotonic())

    def _until_confirmed(self, order: Order) -> bool:
        for attempt in itertools.count():
            try:
                self._send(order)
                return True
            except Exception as error:  # noqa: BLE001 - whatever the client makes of a broker that dies
                self.errors[type(error).__name__] += 1
                if self._over.is_set() and attempt >= 20:
                    return False
                time.sleep(0.5)
        return False

    def _send(self, order: Order) -> None:
        name, seconds, kind = order.name, order.seconds, order.kind
        if kind in BAD:
            self._send_bad(name, *BAD[kind])
        elif kind == "chain":
            chain(self._task("plain").si(f"{name}.{number}", seconds) for number in range(LINKS)).apply_async()
        elif kind == "chord":
            members = [f"{name}.{number}" for number in range(MEMBERS)]
            body = self._task("gather").s(f"{name}.body", members)
            chord([self._task("plain").si(member, seconds) for member in members], body).apply_async()
        elif kind == "loop":
            self._task("loop").delay(name, seconds, ROWS)
        elif kind in ("twice", "again"):
            one = str(uuid.uuid4())
            for number in range(2):
                self._task("plain").apply_async((name, seconds), task_id=one if kind == "twice" else f"{one}-{number}")
        else:
            self._task(kind).delay(name, seconds)

    def _task(self, name: str) -> Any:
        return self._app.tasks[f"soak.{name}"]

    def _send_bad(self, name: str, body: bytes, task: str) -> None:
        headers = {"lang": "py", "task": task, "id": f"id-{name}", "root_id": f"id-{name}", "retries": 0, NAME_HEADER: name}
        with self._app.producer_or_acquire() as producer:
            producer.publish(
                body,
                exchange="",
                routing_key=self._site.deployment.queue,
                content_type="application/json",
                content_encoding="utf-8",
                headers=headers,
                delivery_mode=2,
            )
