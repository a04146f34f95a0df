"""Dead letters in memory, and the service that looks after them."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any

from celery_guardrails.config import Settings
from celery_guardrails.dead_letters import DeadLetters, KombuDecoder
from celery_guardrails.policy.deadletter import DeathCertificate, error_fingerprint
from celery_guardrails.policy.delivery import TRAVEL_HEADER, RawMessage, Travel
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.clock import FakeClock
from celery_guardrails.testing.memory_broker import MemoryBroker

TRACEBACK = 'Traceback (most recent call last):\n  File "/srv/shop/tasks.py", line 7, in charge\n    pay()\nConnectionError: gateway away\n'


def task_message(name: str = "shop.charge", *args: Any, task_id: str | None = None, key: str | None = None, **headers: Any) -> RawMessage:
    """Return a message as Celery's protocol 2 sends it, of a task that has been tried five times."""
    task_id = task_id or str(uuid.uuid4())
    travel = Travel(key=key, fingerprint="f" * 16, attempts=5, deferrals=2, deliveries=7, first=1_800_000_000.0, waited=3.5)
    return RawMessage(
        body=json.dumps([list(args), {}, {"callbacks": None}]).encode(),
        content_type="application/json",
        content_encoding="utf-8",
        headers={
            "lang": "py",
            "task": name,
            "id": task_id,
            "retries": 5,
            "eta": "2026-01-01T00:00:00+00:00",
            "expires": "2026-01-02T00:00:00+00:00",
            "argsrepr": repr(args),
            TRAVEL_HEADER: travel.to_header(),
            **headers,
        },
        properties={"correlation_id": task_id, "reply_to": "here", "delivery_mode": 2, "priority": 0},
        exchange="orders",
        routing_key="orders.new",
    )


def certificate_for(original: RawMessage, reason: str = "exhausted", **fields: Any) -> DeathCertificate:
    """Return a certificate as the guard writes it."""
    chosen = {
        "task": original.headers.get("task", ""),
        "task_id": original.headers.get("id", ""),
        "key": Travel.from_headers(original.headers).key,
        "error": "builtins.ConnectionError",
        "message": "gateway away",
        "traceback": TRACEBACK,
        "fingerprint": error_fingerprint(fields.get("error", "builtins.ConnectionError"), TRACEBACK),
        "attempts": 6,
        "first_seen": 1_800_000_000.0,
        "last_seen": 1_899_990_000.0,
        "worker": "w1@host/7",
        "exchange": "orders",
        "routing_key": "orders.new",
        "queue": "celery",
        **fields,
    }
    return DeathCertificate(reason=reason, **chosen)


class Kit:
    """A service on a broker, a store and a clock in memory."""

    def __init__(self, *queues: str, accept: tuple[str, ...] = ("json",), move_limit: int = 1) -> None:
        self.clock = FakeClock()
        self.points: list[str] = []
        self.broker = MemoryBroker(queues or ("celery",), clock=self.clock, on_operation=self.operation, move_limit=move_limit)
        self.store = MemoryStore(now=self.clock.now)
        self.service = DeadLetters(self.broker, self.store, settings=Settings(), clock=self.clock, decoder=KombuDecoder(accept))

    def operation(self, point: str) -> None:
        """See what the service does with the broker; tests replace it to break things."""
        self.points.append(point)

    def consumed_elsewhere(self, queue: str) -> None:
        """Let there be a queue that the app does not know."""
        self.broker._ready.setdefault(queue, {})

    def bury(self, original: RawMessage | None = None, reason: str = "exhausted", queue: str = "celery", **fields: Any) -> RawMessage:
        """Put a dead letter into the dead letter queue and return the message."""
        message = original or task_message()
        self.broker.dead_letter(message, queue, certificate_for(message, reason, **{"queue": queue, **fields}))
        return message

    def bury_raw(self, message: RawMessage, queue: str = "celery.dead") -> None:
        """Put a message into a dead letter queue as another program or the broker itself would."""
        self.broker._put(replace(message), queue)

    def ids(self) -> list[str]:
        """Return the identifiers of all letters."""
        return [letter.id for letter in self.service.list()]
