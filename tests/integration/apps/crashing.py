"""Tasks whose processes die where their messages say (``tests/support/crashing.py``): one for each way through the guard.

``key`` is the name. With a ``sqlalchemy+…`` store there is also one that is atomic.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery

from celery_guardrails import GuardedTask, Guardrails, PermanentError, RetryPolicy, current_execution
from tests.support.crashing import install, mark
from tests.support.ledger import Ledger

from .plain import make_celery, vanish


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its guard and its tasks."""
    app = make_celery(environ)
    Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    ledger = Ledger(environ["TESTAPP_LEDGER"])

    def task(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        chosen = {"key": "{name}", "retry": RetryPolicy(max_attempts=3, base=0.1, cap=0.2), **options}
        return app.task(base=GuardedTask, bind=True, name=f"testapp.{name}", shared=False, **chosen)  # type: ignore[no-any-return]

    def effect(name: str, what: str = "effect") -> str:
        ledger.record(what, name)
        mark(what)
        return name

    @task("succeed")
    def succeed(self: Any, name: str) -> str:
        mark("body")
        return effect(name)

    @task("linger")
    def linger(self: Any, name: str) -> str:
        """Long enough for a renewal; its effect comes last, so that it is not repeated when the worker is killed."""
        time.sleep(0.5)
        return effect(name)

    @task("flaky")
    def flaky(self: Any, name: str) -> str:
        mark("body")
        if current_execution().attempt == 1:
            raise ConnectionError("the first time")
        return effect(name)

    @task("doomed")
    def doomed(self: Any, name: str) -> str:
        mark("body")
        raise PermanentError("always")

    @task("stepped")
    def stepped(self: Any, name: str) -> str:
        mark("body")
        with current_execution().step("step") as step:
            if not step.done:
                step.value = effect(name, "step")
        return effect(name)

    @task("dies_once")
    def dies_once(self: Any, name: str) -> str:
        if current_execution().crashes == 0:
            vanish()
        return effect(name)

    if environ["TESTAPP_STORE_URL"].startswith("sqlalchemy+"):
        import sqlalchemy as sa

        from celery_guardrails.contrib.sqlalchemy import session

        @task("atomic", atomic=True)
        def atomic(self: Any, name: str) -> str:
            mark("body")
            session().execute(sa.text("INSERT INTO testapp_line (name) VALUES (:name)"), {"name": name})
            mark("effect")
            return name

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
    install(app, Ledger(os.environ["TESTAPP_LEDGER"]))
