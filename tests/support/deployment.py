"""One application deployed for a test: the publisher here, its workers in processes of their own."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Mapping
from typing import Any

from celery import Celery, Task

from celery_guardrails.policy.delivery import RawMessage

from .brokers import BrokerUnderTest
from .ledger import Ledger
from .waiting import eventually
from .workers import Worker, Workers


class Deployment:
    """An app module of ``tests/integration/apps`` on a broker.

    Args:
        module: dotted name of a module with ``make_app(environ)`` and ``app``.
        broker: messages go over it.
        store_url: of the guard's store.
        backend_url: of the result backend.
        queue: the only queue of the app.
        namespace: of the guard.
        ledger: tasks write into it.
        workers: starts its workers.
        settings: Celery settings, ``guardrails_*`` among them.
        retry: RetryPolicy of the tasks, where a test wants other than three quick attempts.
        env: further variables for app and workers.
    """

    def __init__(
        self,
        module: str,
        *,
        broker: BrokerUnderTest,
        store_url: str,
        backend_url: str,
        queue: str,
        namespace: str,
        ledger: Ledger,
        workers: Workers,
        settings: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.module = module
        self.broker = broker
        self.queue = queue
        self.dead_queue = f"{queue}.dead"
        self.namespace = namespace
        self.store_url = store_url
        self.ledger = ledger
        self.workers = workers
        self.env = {
            "TESTAPP_BROKER_URL": broker.url,
            "TESTAPP_STORE_URL": store_url,
            "TESTAPP_RESULT_BACKEND": backend_url,
            "TESTAPP_QUEUE": queue,
            "TESTAPP_NAMESPACE": namespace,
            "TESTAPP_LEDGER": str(ledger.path),
            "TESTAPP_SETTINGS": json.dumps(dict(settings or {})),
            **({"TESTAPP_RETRY": json.dumps(dict(retry))} if retry is not None else {}),
            **(env or {}),
        }
        broker.used += [queue, self.dead_queue]
        self.app: Celery = importlib.import_module(module).make_app(self.env)

    def worker(self, **options: Any) -> Worker:
        """Start a worker of this app, with the options of :meth:`Workers.start`."""
        return self.workers.start(self.module, **self._options(options))

    def start_workers(self, number: int, **options: Any) -> list[Worker]:
        """Start several at once and wait until all consume."""
        return self.workers.start_many(number, self.module, **self._options(options))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "env": {**self.env, **options.get("env", {})}}

    def task(self, name: str) -> Task:
        """Return a task by its name without the app's prefix."""
        return self.app.tasks[f"{self.app.main}.{name}"]

    def send(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """``delay`` of a task by its short name."""
        return self.task(name).delay(*args, **kwargs)

    def depth(self) -> int:
        """Messages that wait in the queue."""
        return self.broker.depth(self.queue)

    def dead(self) -> int:
        """Messages in the dead letter queue."""
        return self.broker.depth(self.dead_queue)

    def letters(self) -> list[RawMessage]:
        """Messages in the dead letter queue, byte for byte; they stay there."""
        with contextlib.closing(self.guardrails.broker.browse(self.dead_queue)) as found:
            return [letter.message for letter in found]

    def certificates(self, task_id: str) -> list[dict[str, Any]]:
        """What the dead letters of a task say of its death, as it stands in their header."""
        return [letter.headers["guardrails"] for letter in self.letters() if letter.headers.get("id") == task_id]

    def certificate(self, task_id: str) -> dict[str, Any]:
        """Wait for the one dead letter of a task, and return what it says."""
        (found,) = eventually(lambda: self.certificates(task_id), 30, every=0.1, because="a dead letter")
        return found

    @property
    def guardrails(self) -> Any:
        """The app's Guardrails object; None for the plain app."""
        return getattr(self.app, "guardrails", None)

    def close(self) -> None:
        """Close the publisher's connections."""
        consumer: Any = getattr(self.app.backend, "result_consumer", None)
        if getattr(consumer, "subscribed_to", None):
            # A result that is garbage unsubscribes, whenever it is collected: then the server may have gone, and it waits for it.
            consumer.stop()
            consumer.subscribed_to.clear()
            consumer._pubsub = None
        self.app.close()
