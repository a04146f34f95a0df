"""Tasks for canvases, twice the same: on plain Celery, or all of them guarded through ``task_cls``.

``TESTAPP_GUARDED=1`` chooses; what a canvas makes of them must not depend on it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, chord, group

from celery_guardrails import Guardrails
from tests.support.ledger import Ledger


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its tasks."""
    guarded = environ.get("TESTAPP_GUARDED") == "1"
    options = {"task_cls": "celery_guardrails:GuardedTask"} if guarded else {}
    app = Celery("canvas", broker=environ["TESTAPP_BROKER_URL"], backend=environ["TESTAPP_RESULT_BACKEND"], **options)
    app.conf.update(task_default_queue=environ["TESTAPP_QUEUE"], broker_connection_retry_on_startup=True, broker_connection_timeout=4.0)
    app.conf.update(json.loads(environ.get("TESTAPP_SETTINGS", "{}")))
    if guarded:
        Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    ledger = Ledger(environ["TESTAPP_LEDGER"])

    def task(function: Any = None, **options: Any) -> Any:
        if function is None:
            return lambda found: task(found, **options)
        return app.task(shared=False, name=f"canvas.{function.__name__}", **options)(function)

    def keyed(function: Any) -> Any:
        return task(function, **({"key": function.__name__ + ":{name}"} if guarded else {}))

    @task
    def add(x: int, y: int) -> int:
        return x + y

    @task
    def double(x: int) -> int:
        return 2 * x

    @task
    def constant() -> int:
        return 7

    @task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @task
    def listed(*values: Any) -> list[Any]:
        return list(values)

    @task
    def broken(*_: Any) -> None:
        raise KeyError("on purpose")  # permanent by the shipped rules: one attempt on both sides

    @task
    def note(value: Any, name: str) -> None:
        """For ``link``: writes ``linked``."""
        ledger.record("linked", name, value=value)

    @task
    def blame(request: Any, exc: Any, traceback: Any, name: str) -> None:
        """For ``link_error``, new style: writes ``blamed``."""
        ledger.record("blamed", name, error=type(exc).__name__, failed=request.task)

    @task
    def blame_old(task_id: str, name: str) -> None:
        """For ``link_error``, old style: the failed task's id only."""
        ledger.record("blamed", name, task_id=task_id)

    @task(bind=True)
    def replaced(self: Any, x: int) -> Any:
        raise self.replace(add.s(x, 100))

    @task(bind=True)
    def replaced_by_chain(self: Any, x: int) -> Any:
        raise self.replace(add.s(x, 100) | double.s())

    @task(bind=True)
    def replaced_by_group(self: Any, x: int) -> Any:
        raise self.replace(group(add.s(x, number) for number in range(3)))

    @task(bind=True)
    def replaced_by_chord(self: Any, x: int) -> Any:
        raise self.replace(chord([add.s(x, number) for number in range(3)], total.s()))

    @task(bind=True)
    def growing(self: Any, x: int) -> int:
        """Adds a member to the chord that it is a header of."""
        self.add_to_chord(add.s(x, 1000))
        return x

    @task(bind=True, max_retries=2, default_retry_delay=0)
    def second_time(self: Any, x: int) -> int:
        """Succeeds when it retries itself."""
        if not self.request.retries:
            raise self.retry(exc=ConnectionError("asked for"), countdown=0)
        return x

    @keyed
    def token(name: str, seconds: float = 0.0) -> str:
        """Return what no other run returns."""
        with ledger.run(name) as run:
            time.sleep(seconds)
            run.effect()
        return run.id

    @keyed
    def measured(name: str, value: int, seconds: float = 0.0) -> int:
        with ledger.run(name) as run:
            time.sleep(seconds)
            run.effect()
        return value

    @keyed
    def counted(numbers: list[int], name: str) -> int:
        """The body of a chord."""
        with ledger.run(name) as run:
            run.effect(numbers=numbers)
        return sum(numbers)

    @keyed
    def increased(value: int, name: str) -> int:
        """A step of a chain."""
        with ledger.run(name) as run:
            run.effect(value=value)
        return value + 1

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
