"""``basic.py`` and the ways in which a task of Celery's can end other than by returning or raising."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from celery import Celery

from celery_guardrails import GuardedTask, RetryableError, RetryPolicy, current_execution
from tests.support.ledger import Ledger

from . import basic

QUICK = RetryPolicy(**basic.QUICK)


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app of ``basic.py`` with further tasks."""
    app = basic.make_app(environ)
    ledger = Ledger(environ["TESTAPP_LEDGER"])

    def task(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        chosen = {"key": "effect:{name}", "retry": QUICK, **options}
        return app.task(base=GuardedTask, bind=True, name=f"testapp.{name}", shared=False, **chosen)  # type: ignore[no-any-return]

    def running(self: Any, name: str) -> Any:
        now = current_execution()
        return ledger.run(name, task_id=self.request.id, attempt=now.attempt, retries=self.request.retries, deliveries=now.deliveries)

    @task("retry_by_default")
    def retry_by_default(self: Any, name: str, times: int) -> str:
        """``self.retry()`` with nothing said about when or how often."""
        with running(self, name) as run:
            if ledger.count(name, "start") <= times:
                raise self.retry(exc=ConnectionError("asked for"))
            run.effect()
        return name

    @task("retry_at_most")
    def retry_at_most(self: Any, name: str, max_retries: int) -> str:
        """``self.retry(max_retries=…)`` for ever."""
        with running(self, name):
            raise self.retry(exc=ConnectionError("asked for"), max_retries=max_retries, countdown=0)

    @task("retry_with_others")
    def retry_with_others(self: Any, name: str, page: int, last: int) -> int:
        """``self.retry(args=…)``: one page a run."""
        with running(self, name) as run:
            run.effect(page=page)
            if page < last:
                raise self.retry(args=(name, page + 1, last), kwargs={}, countdown=0)
        return page

    @task("retry_and_go_on")
    def retry_and_go_on(self: Any, name: str) -> str:
        """``self.retry(throw=False)``: the body goes on."""
        with running(self, name) as run:
            if ledger.count(name, "start") == 1:
                self.retry(exc=ConnectionError("asked for"), throw=False, countdown=0.2)
                run.record("went on")
                return "first"
            run.effect()
        return "second"

    @task("retry_when_told")
    def retry_when_told(self: Any, name: str, asked: float) -> str:
        """``self.retry(exc=…)`` with an error that carries a wait, once."""
        with running(self, name) as run:
            if ledger.count(name, "start") == 1:
                raise self.retry(exc=RetryableError("busy", retry_after=asked))
            run.effect()
        return name

    @task("told_to_wait", retry=RetryPolicy(max_attempts=2, base=0.1))
    def told_to_wait(self: Any, name: str, asked: float) -> str:
        """Fails once, as of a dependency that says when to come again."""
        with running(self, name) as run:
            if ledger.count(name, "start") == 1:
                raise RetryableError("busy", retry_after=asked)
            run.effect()
        return name

    @task("retry_at")
    def retry_at(self: Any, name: str, due: float, how: str) -> str:
        """``self.retry(countdown=…)`` or ``self.retry(eta=…)``, once, for a unix time in seconds."""
        with running(self, name) as run:
            if ledger.count(name, "start") == 1:
                when = {"countdown": due - time.time()} if how == "countdown" else {"eta": datetime.fromtimestamp(due, timezone.utc)}
                raise self.retry(exc=ConnectionError("asked for"), **when)
            run.effect()
        return name

    @task("survives_soft_limit", soft_time_limit=1)
    def survives_soft_limit(self: Any, name: str) -> str:
        """Catches its soft limit and ends well."""
        from celery.exceptions import SoftTimeLimitExceeded

        with running(self, name) as run:
            try:
                time.sleep(30)
            except SoftTimeLimitExceeded:
                run.effect()
        return name

    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
