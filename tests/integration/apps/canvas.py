"""Tasks for canvases, twice the same: on plain Celery, or all of them guarded through ``task_cls``.

``TESTAPP_GUARDED=1`` chooses; what a canvas makes of them must not depend on it. ``TESTAPP_TWICE=1`` publishes every
message twice, byte for byte, those that a worker publishes as well.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, chord, current_task, group
from celery.exceptions import Ignore
from celery.signals import celeryd_init

from celery_guardrails import Guardrails, GuardrailsError, current_execution
from celery_guardrails.integration import running
from tests.support.ledger import Ledger


@celeryd_init.connect
def be_impatient(**_: object) -> None:
    """No process dies here while it publishes the body of a chord, and a test waits until nothing is left."""
    running._ECHO = 1.0


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its tasks."""
    guarded = environ.get("TESTAPP_GUARDED") == "1"
    options = {"task_cls": "celery_guardrails:GuardedTask"} if guarded else {}
    app = Celery("canvas", broker=environ["TESTAPP_BROKER_URL"], backend=environ["TESTAPP_RESULT_BACKEND"], **options)
    app.conf.update(task_default_queue=environ["TESTAPP_QUEUE"], broker_connection_retry_on_startup=True, broker_connection_timeout=4.0)
    app.conf.update(json.loads(environ.get("TESTAPP_SETTINGS", "{}")))
    if guarded:
        Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    if environ.get("TESTAPP_TWICE") == "1":
        publish_twice(app)
    ledger = Ledger(environ["TESTAPP_LEDGER"])

    def task(function: Any = None, **options: Any) -> Any:
        if function is None:
            return lambda found: task(found, **options)
        body = recorded(function) if environ.get("TESTAPP_TWICE") == "1" and guarded else function
        return app.task(shared=False, name=f"canvas.{function.__name__}", **options)(body)

    def recorded(function: Any) -> Any:
        """Write ``body`` on the key of each run of a body that returns or is replaced: a failure is not remembered."""

        def record() -> None:
            with contextlib.suppress(GuardrailsError):  # celery.map and the like call it as a function
                ledger.record("body", current_execution().key, task=function.__name__)

        @functools.wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            try:
                value = function(*args, **kwargs)
            except Ignore:
                record()
                raise
            record()
            return value

        return body

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
            # not at once: Celery writes RETRY after it has published, over the success of a copy that was quicker (celery/app/trace.py)
            raise self.retry(exc=ConnectionError("asked for"), countdown=0.5)
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
        stamps = current_task.request.stamps
        if stamps:
            ledger.record("stamped", name, stamps="".join(stamps["order"]))
        with ledger.run(name) as run:
            run.effect(value=value)
        return value + 1

    @task(bind=True, **({"key": "relayed:{name}"} if guarded else {}))
    def relayed(self: Any, name: str, value: int, how: str) -> Any:
        """Have an effect, then put a task, a chain, a group or itself in its place."""
        with ledger.run(name) as run:
            run.effect()
        later = measured.si(f"{name}.later", value)
        place = {
            "task": later,
            "chain": later | increased.s(f"{name}.last"),
            "group": group(later, add.si(value, value)),
            "chord": chord([later, add.si(value, value)], counted.s(f"{name}.last")),
            "same key": sharing.si(name, value, how),
            "broken": broken.si(),
        }
        raise self.replace(place[how])

    @task(**({"key": "relayed:{name}"} if guarded else {}))
    def sharing(name: str, value: int, how: str) -> int:
        """Has the key of the task that it is put in the place of."""
        with ledger.run(f"{name}.later") as run:
            run.effect()
        return value

    @task(bind=True)
    def relayed_by_id(self: Any, name: str, value: int) -> Any:
        """The same where the task's id is the key."""
        with ledger.run(name) as run:
            run.effect()
        raise self.replace(add.s(value, 1) | double.s())

    @keyed
    def grown(name: str, value: int) -> int:
        """Has an effect, and adds a member to the chord that it is a header of."""
        with ledger.run(name) as run:
            run.effect()
        current_task.add_to_chord(measured.s(f"{name}.added", 10 * value).set(task_id=f"added-{name}"))
        return value

    app.finalize()
    return app


def publish_twice(app: Celery) -> None:
    """Publish every message of this process twice, as one does that did not hear the broker's answer."""
    once = app.amqp.send_task_message

    def twice(*args: Any, **kwargs: Any) -> Any:
        once(*args, **kwargs)
        return once(*args, **kwargs)

    app.amqp.send_task_message = twice


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
