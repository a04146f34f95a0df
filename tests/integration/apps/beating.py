"""Tasks that beat fires, every one a slot of its schedule.

``TESTAPP_SCHEDULE`` is a JSON object: name of an entry → name of the task and seconds. ``TESTAPP_STRANGER=1`` leaves the
tasks out: beat then knows them by name only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celery_guardrails import GuardedTask, Guardrails, current_execution
from tests.support.ledger import Ledger


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its tasks and its schedule."""
    app = Celery("beating", broker=environ["TESTAPP_BROKER_URL"], backend=environ["TESTAPP_RESULT_BACKEND"])
    app.conf.update(task_default_queue=environ["TESTAPP_QUEUE"], broker_connection_retry_on_startup=True, broker_connection_timeout=4.0)
    app.conf.update(json.loads(environ.get("TESTAPP_SETTINGS", "{}")))
    schedule = json.loads(environ.get("TESTAPP_SCHEDULE", "{}"))
    app.conf.beat_schedule = {name: {"task": f"beating.{task}", "schedule": seconds} for name, (task, seconds) in schedule.items()}
    Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    if environ.get("TESTAPP_STRANGER") != "1":
        add_tasks(app, Ledger(environ["TESTAPP_LEDGER"]))
    app.finalize()
    return app


def add_tasks(app: Celery, ledger: Ledger) -> None:
    """Define the tasks."""

    def task(**options: Any) -> Any:
        def define(function: Any) -> Any:
            return app.task(base=GuardedTask, shared=False, name=f"beating.{function.__name__}", **options)(function)

        return define

    @task(key="{task}:{slot}")
    def tick() -> str:
        """Write the slot that it ran for."""
        key = current_execution().key
        with ledger.run(key) as run:
            run.effect()
        return key

    @task(key="{task}:{slot}", retryable=(ValueError,))
    def stumbling() -> str:
        """Fail at the first attempt."""
        execution = current_execution()
        with ledger.run(execution.key) as run:
            if execution.attempt == 1:
                raise ValueError("asked for")
            run.effect()
        return execution.key


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker or beat; a test calls make_app itself
    app = make_app(os.environ)
