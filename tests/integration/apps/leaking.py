"""Tasks that leave something behind in their process, that stop for nothing, and that do neither."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_guardrails import GuardedTask, Guardrails, current_execution
from tests.support.ledger import Ledger

from .plain import make_celery

#: What a task leaves must live as long as the process, whatever the garbage collector thinks.
LEFT: list[Any] = []


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its guard and its tasks."""
    app = make_celery(environ)
    Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    ledger = Ledger(environ["TESTAPP_LEDGER"])

    def task(name: str, **options: Any) -> Any:
        return app.task(base=GuardedTask, name=f"testapp.{name}", key="effect:{name}", shared=False, **options)

    def running(name: str) -> Any:
        now = current_execution()
        return ledger.run(name, attempt=now.attempt, crashes=now.crashes)

    @task("clean")
    def clean(name: str, seconds: float = 0.0) -> str:
        """Leave nothing."""
        with running(name) as run:
            time.sleep(seconds)
            run.effect()
        return name

    @task("leak_thread")
    def leak_thread(name: str) -> str:
        """Give up on a thread that lives on, as a timeout around a blocking call does."""
        with running(name) as run:
            threading.Thread(target=time.sleep, args=(3600,), name="forgotten", daemon=False).start()
            run.effect()
        return name

    @task("leak_child")
    def leak_child(name: str) -> str:
        """Start a process and forget it; it ends when this process does, and holds everything open that this process has."""
        with running(name) as run:
            parent = os.getpid()
            LEFT.append(subprocess.Popen(["sh", "-c", f"while kill -0 {parent} 2>/dev/null; do sleep 0.2; done"], close_fds=False))
            run.effect()
        return name

    def _stubborn(name: str, gate: str) -> str:
        """Run until there is a file, whatever anybody says."""
        with running(name) as run:
            end = time.monotonic() + 90
            while time.monotonic() < end and not os.path.exists(gate):
                try:
                    time.sleep(0.05)
                except SoftTimeLimitExceeded:
                    run.record("told")
            run.effect()
        return name

    task("stubborn", soft_time_limit=1)(_stubborn)
    task("stubborn_hard", time_limit=1)(_stubborn)

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker
    app = make_app(os.environ)
