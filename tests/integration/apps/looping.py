"""``basic.py`` and a task that loops: each row is an effect of its own in the ledger."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery

from celery_guardrails import GuardedTask, current_execution
from tests.support.ledger import Ledger

from . import basic
from .plain import vanish


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app of ``basic.py`` with a further task."""
    app = basic.make_app(environ)
    ledger = Ledger(environ["TESTAPP_LEDGER"])

    @app.task(base=GuardedTask, bind=True, name="testapp.rows", key="rows:{name}", fingerprint=("name",), shared=False)
    def rows(self: Any, name: str, number: int, seconds: float, save_seconds: float = 0.2, dies: int = 0) -> int:
        """Handle so many rows, each for ``seconds`` in the first run, and quickly afterwards; the first run dies in the row ``dies``."""
        now = current_execution()
        first = ledger.count(name, "start") == 0

        def rows_after(cursor: int | None) -> Iterator[tuple[int, int]]:
            run.record("asks", cursor=cursor)
            yield from ((row, row) for row in range((cursor or 0) + 1, number + 1))

        with ledger.run(name, attempt=now.attempt, crashes=now.crashes, task_id=self.request.id) as run:
            for row in now.resume(rows_after, save_seconds=save_seconds):
                run.record("begins", row=row)
                time.sleep(seconds if first or seconds > 10 else 0.005)
                if first and row == dies:
                    run.record("dies")
                    vanish()
                run.effect(row=row)
        return number

    @app.task(base=GuardedTask, name="testapp.slow_rows", key="rows:{name}", fingerprint=("name",), shared=False)
    def slow_rows(name: str, number: int, seconds: float) -> int:
        """Handle so many rows, each for ``seconds`` in every run."""
        now = current_execution()
        with ledger.run(name, attempt=now.attempt, crashes=now.crashes) as run:
            for row in now.resume(lambda cursor: ((n, n) for n in range((cursor or 0) + 1, number + 1))):
                time.sleep(seconds)
                run.effect(row=row)
        return number

    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
