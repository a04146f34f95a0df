"""``basic.py`` and tasks with deadlines: what they publish, and what they hang in.

``TESTAPP_DEADLINE`` is the deadline of the tasks that have one of their own, in seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from celery import Celery, chain, chord, group
from celery.exceptions import SoftTimeLimitExceeded

from celery_guardrails import GuardedTask, RetryPolicy, current_execution
from tests.support.ledger import Ledger

from . import basic


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app of ``basic.py`` with further tasks."""
    app = basic.make_app(environ)
    ledger = Ledger(environ["TESTAPP_LEDGER"])
    free = RetryPolicy(**basic.QUICK)
    bound = RetryPolicy(**basic.QUICK, deadline=float(environ["TESTAPP_DEADLINE"]))

    def task(name: str, retry: RetryPolicy, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        return app.task(base=GuardedTask, bind=True, name=f"testapp.{name}", shared=False, retry=retry, **options)  # type: ignore[no-any-return]

    def running(self: Any, name: str) -> Any:
        now = current_execution()
        return ledger.run(name, task=self.name, deadline=now.deadline, remaining=now.remaining(), attempt=now.attempt)

    @task("shown", free)
    def shown(self: Any, name: str) -> str:
        """Has no deadline of its own."""
        with running(self, name) as run:
            run.effect()
        return name

    @task("parent", bound)
    def parent(self: Any, name: str, how: str) -> str:
        """Publish ``shown`` in one way or another."""
        members = [shown.si(f"{name}.{number}") for number in range(2)]
        with running(self, name) as run:
            ways = {
                "a task": members[0],
                "a chain": chain(members),
                "a group": group(members),
                "a chord": chord(members, shown.si(f"{name}.body")),
            }
            ways[how].apply_async()
            run.effect()
        return name

    @task("head", bound)
    def head(self: Any, name: str, seconds: float = 0.0) -> str:
        """The first step of a chain."""
        with running(self, name) as run:
            time.sleep(seconds)
            run.effect()
        return name

    def _hang(self: Any, name: str, seconds: float = 60.0) -> str:
        with running(self, name) as run:
            try:
                time.sleep(seconds)
            except SoftTimeLimitExceeded:
                run.record("soft")
                raise
            run.effect()
        return name

    task("hang", bound)(_hang)
    # no time for another attempt once the soft limit has struck
    task("hang_long_limits", replace(bound, base=5.0, cap=5.0), time_limit=50, soft_time_limit=40)(_hang)
    task("hang_plainly", bound, dead_letter=False)(_hang)

    @task("hang_once", bound)
    def hang_once(self: Any, name: str) -> str:
        return _hang(self, name, 0.0 if ledger.count(name, "start") else 60.0)

    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
