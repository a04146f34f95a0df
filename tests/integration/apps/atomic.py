"""Tasks whose rows commit with their completion, on SQLAlchemy. ``TESTAPP_STORE_URL`` names the store and the rows' database."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from celery import Celery
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from celery_guardrails import GuardedTask, Guardrails, RetryPolicy, current_execution
from celery_guardrails.contrib.sqlalchemy import session
from tests.support.ledger import Ledger

from .plain import make_celery


class Base(DeclarativeBase):
    pass


class Charge(Base):
    """No unique constraint: a second effect shall be seen, not refused."""

    __tablename__ = "testapp_charge"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    fence: Mapped[int] = mapped_column(sa.BigInteger)


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its guard and its tasks."""
    app = make_celery(environ)
    Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    ledger = Ledger(environ["TESTAPP_LEDGER"])
    options: dict[str, Any] = {
        "base": GuardedTask,
        "key": "charge:{name}",
        "fingerprint": False,
        "atomic": True,
        "retry": RetryPolicy(max_attempts=20, base=0.05, cap=0.2),
        "shared": False,
    }

    @app.task(name="testapp.charge", **options)
    def charge(name: str, seconds: float = 0.0, die: bool = False, fail: bool = False) -> int:
        now = current_execution()
        with ledger.run(name, fence=now.fence, attempt=now.attempt, crashes=now.crashes) as run:
            with now.step("gateway") as step:
                if not step.done:
                    run.record("gateway", idempotency_key=step.key)
                    step.value = step.key
            session().add(Charge(name=name, fence=now.fence))
            session().flush()
            time.sleep(seconds)
            if die and now.crashes == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if fail and now.attempt == 1:
                raise ConnectionError(name)
            return now.fence

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker
    app = make_app(os.environ)
