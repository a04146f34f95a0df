"""The app of the soak: ``TESTAPP_…`` as in ``tests/integration/apps``; ``SOAK_ATOMIC=1`` has the effects in the store's database."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from celery import Celery

from celery_guardrails import GuardedTask, Guardrails, PermanentError, RetryableError, RetryPolicy, current_execution
from tests.integration.apps.plain import make_celery, vanish
from tests.support.ledger import Ledger, Run

metadata = sa.MetaData()
#: No unique constraint: a second effect shall be seen, not refused.
effects = sa.Table(
    "soak_effect",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
)

#: Wide enough that deaths from outside exhaust nothing.
PATIENT = RetryPolicy(max_attempts=30, base=0.2, cap=2.0)


def key_of(name: str) -> str:
    """Return the idempotency key of a task."""
    return f"soak:{name}"


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its guard and its tasks."""
    app = make_celery(environ)
    Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    ledger = Ledger(environ["TESTAPP_LEDGER"])
    atomic = environ.get("SOAK_ATOMIC") == "1"

    def task(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        chosen = {"key": "soak:{name}", "fingerprint": False, "retry": PATIENT, "atomic": atomic, **options}
        return app.task(base=GuardedTask, bind=True, name=f"soak.{name}", shared=False, **chosen)  # type: ignore[no-any-return]

    def running(name: str) -> Any:
        now = current_execution()
        return ledger.run(name, fence=now.fence, attempt=now.attempt, crashes=now.crashes)

    def effect(run: Run, name: str) -> str:
        if atomic:
            from celery_guardrails.contrib.sqlalchemy import session

            session().execute(sa.insert(effects).values(name=name, fence=current_execution().fence))
        else:
            run.effect()
        return name

    def work(name: str, seconds: float, first: Callable[[Run], None] = lambda run: None) -> str:
        """Wait, let ``first`` fail or die, have the effect: the end of a body, so that the open window is the guard's alone."""
        with running(name) as run:
            time.sleep(seconds)
            first(run)
            return effect(run, name)

    @task("plain")
    def plain(self: Any, name: str, seconds: float) -> str:
        return work(name, seconds)

    @task("gather")
    def gather(self: Any, found: list[str], name: str, members: list[str]) -> str:
        """The body of a chord."""
        if sorted(found) != sorted(members):
            raise PermanentError(f"{found} instead of {members}")
        return work(name, 0.0)

    @task("retrying")
    def retrying(self: Any, name: str, seconds: float) -> str:
        def fail(run: Run) -> None:
            if current_execution().attempt <= 2:
                raise RetryableError("not yet")

        return work(name, seconds, fail)

    @task("self_retry")
    def self_retry(self: Any, name: str, seconds: float) -> str:
        def fail(run: Run) -> None:
            if current_execution().attempt <= 2:
                raise self.retry(exc=ConnectionError("not yet"), countdown=0.3, max_retries=30)

        return work(name, seconds, fail)

    @task("permanent")
    def permanent(self: Any, name: str, seconds: float) -> str:
        def fail(run: Run) -> None:
            raise PermanentError("for good")

        return work(name, seconds, fail)

    @task("exhausted", retry=RetryPolicy(max_attempts=3, base=0.2, cap=0.5))
    def exhausted(self: Any, name: str, seconds: float) -> str:
        def fail(run: Run) -> None:
            raise RetryableError("never")

        return work(name, seconds, fail)

    def once(how: Callable[[], None]) -> Callable[[Run], None]:
        def die(run: Run) -> None:
            if current_execution().crashes == 0:
                run.record("dies")
                how()

        return die

    @task("exits")
    def exits(self: Any, name: str, seconds: float) -> str:
        return work(name, seconds, once(lambda: os._exit(3)))

    @task("segfault")
    def segfault(self: Any, name: str, seconds: float) -> str:
        return work(name, seconds, once(lambda: ctypes.string_at(0)))  # type: ignore[arg-type]

    @task("poison")
    def poison(self: Any, name: str, seconds: float) -> str:
        def die(run: Run) -> None:
            run.record("dies")
            vanish()

        return work(name, seconds, die)

    @task("hard_limit", time_limit=1)
    def hard_limit(self: Any, name: str, seconds: float) -> str:
        def overrun(run: Run) -> None:
            if current_execution().attempt == 1 and current_execution().crashes == 0:
                run.record("overruns")
                time.sleep(30)

        return work(name, seconds, overrun)

    @task("loop", atomic=False)
    def loop(self: Any, name: str, seconds: float, rows: int) -> str:
        def rows_after(cursor: int | None) -> Iterator[tuple[int, int]]:
            yield from ((row, row) for row in range((cursor or 0) + 1, rows + 1))

        with running(name) as run:
            for row in current_execution().resume(rows_after, save_seconds=0.2):
                time.sleep(seconds)
                run.record("row", row=row)
            run.effect()
        return name

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker
    app = make_app(os.environ)
