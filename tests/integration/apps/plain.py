"""The same effects on plain Celery: what the infrastructure is tested with, and what the guard is compared with."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery

from tests.support.ledger import Ledger


def make_celery(environ: Mapping[str, str]) -> Celery:
    """Return the bare app, as the variables say."""
    app = Celery("testapp", broker=environ["TESTAPP_BROKER_URL"], backend=environ.get("TESTAPP_RESULT_BACKEND"))
    app.conf.update(
        task_default_queue=environ.get("TESTAPP_QUEUE", "celery"),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A publisher in a test waits for nobody: an absent broker is an error at once.
        broker_connection_timeout=4.0,
    )
    app.conf.update(json.loads(environ.get("TESTAPP_SETTINGS", "{}")))
    return app


def hold_gil(seconds: float) -> None:
    """Sleep in C without giving up the GIL: no other thread of this process runs meanwhile."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


def vanish(number: int = signal.SIGKILL) -> None:
    """End this process as the kernel would; with 0 it leaves without a word."""
    if number == 0:
        os._exit(1)
    os.kill(os.getpid(), number)
    time.sleep(10)


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its tasks.

    They are not shared: a test process makes many of these apps, and by default a task of one is a task of all.
    """
    app = make_celery(environ)
    ledger = Ledger(environ["TESTAPP_LEDGER"])

    @app.task(bind=True, name="testapp.effect", shared=False, acks_late=True)
    def effect(self: Any, name: str, seconds: float = 0.0) -> str:
        with ledger.run(name, task_id=self.request.id) as run:
            time.sleep(seconds)
            run.effect()
        return name

    @app.task(name="testapp.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="testapp.kill_self", shared=False, acks_late=True)
    def kill_self(name: str) -> None:
        with ledger.run(name):
            vanish()

    @app.task(name="testapp.hold_gil", shared=False, acks_late=True)
    def hold(name: str, seconds: float) -> None:
        with ledger.run(name):
            hold_gil(seconds)

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
