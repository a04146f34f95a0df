"""Tasks whose effects are rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction

from celery_guardrails import RetryPolicy, current_execution, guarded_task
from tests.support.ledger import Ledger, Run

from .models import Effect

ledger = Ledger(os.environ["ATOMIC_LEDGER"])
QUICK = RetryPolicy(max_attempts=5, base=0.1, cap=0.2, jitter="none")


def atomic(**options: Any) -> Any:
    """Make a guarded task that is atomic and keyed by its name."""
    return guarded_task(**{"key": "effect:{name}", "fingerprint": ("name",), "atomic": True, "retry": QUICK, **options})


@contextmanager
def running(name: str) -> Iterator[Run]:
    """Frame a body in the ledger."""
    now = current_execution()
    with ledger.run(name, fence=now.fence, attempt=now.attempt, crashes=now.crashes) as run:
        yield run


def effect(name: str, run: Run) -> None:
    """Do the effect."""
    Effect.objects.create(key=name, run=run.id, pid=os.getpid())


def first_time(name: str) -> bool:
    """Whether no other run of this name has begun."""
    return ledger.count(name, "start") <= 1


@atomic()
def record(name: str, before: float = 0.0, after: float = 0.0) -> str:
    """Wait, do the effect, wait."""
    with running(name) as run:
        time.sleep(before)
        effect(name, run)
        run.record("written")
        time.sleep(after)
        return run.id


@atomic()
def wait(name: str) -> str:
    """Do the effect; the first time wait until a test says ``go``."""
    with running(name) as run:
        effect(name, run)
        run.record("written")
        end = time.monotonic() + 60
        while first_time(name) and not ledger.count(name, "go") and time.monotonic() < end:
            time.sleep(0.05)
        return run.id


@atomic()
def fail(name: str, times: int = 1) -> str:
    """Do the effect, then fail."""
    with running(name) as run:
        effect(name, run)
        if ledger.count(name, "start") <= times:
            raise ConnectionError("after the effect")
        return run.id


@atomic()
def step(name: str) -> str:
    """Do the effect and something outside of the database, which no rollback takes back; then fail once."""
    with running(name) as run:
        effect(name, run)
        with current_execution().step("outside") as outside:
            if not outside.done:
                run.record("outside", step=outside.key)
                outside.value = run.id
        if first_time(name):
            raise ConnectionError("after the step")
        return str(outside.value)


@atomic()
def hook_fails(name: str) -> str:
    """Do the effect; what was to come after the commit fails."""
    with running(name) as run:
        effect(name, run)
        transaction.on_commit(lambda: 1 / 0)
        return run.id


@atomic()
def hook_dies(name: str) -> str:
    """Do the effect and die right after the commit, the first time."""
    with running(name) as run:
        effect(name, run)
        if first_time(name):
            transaction.on_commit(lambda: os.kill(os.getpid(), 9))
        return run.id


@atomic()
def spawn(name: str) -> str:
    """Do the effect, and publish another task when it is committed; fail the first time."""
    with running(name) as run:
        effect(name, run)
        record.delay_on_commit(f"{name}.child")
        if first_time(name):
            raise ConnectionError("after the effect")
        return run.id


@guarded_task(key="effect:{name}", retry=QUICK)
def plain(name: str) -> str:
    """Not atomic, on the same store."""
    with running(name) as run:
        effect(name, run)
        return run.id


if os.environ.get("ATOMIC_WRONG_DATABASE"):

    @atomic(atomic="elsewhere")
    def misplaced(name: str) -> None:
        """Names a database that does not hold the records."""
