"""The tasks of the smoke tests; they write their effects to the Redis of the result backend."""

from __future__ import annotations

import os
import signal
import time

import redis
from celery import current_app

from celery_guardrails import PermanentError, RetryPolicy, guarded_task


def record(event: str, name: str) -> int:
    """Count an event and return how often it has happened."""
    with redis.Redis.from_url(current_app.conf.result_backend) as client:
        return int(client.hincrby(f"ledger:{event}", name, 1))


@guarded_task(key="smoke:{name}")
def effect(name: str, seconds: float = 0.0) -> str:
    """Do the effect after a while."""
    record("start", name)
    time.sleep(seconds)
    record("effect", name)
    return name


@guarded_task(key="smoke:{name}", retry=RetryPolicy(base=0.2, jitter="none"))
def flaky(name: str, times: int) -> str:
    """Fail the first ``times`` times."""
    if record("start", name) <= times:
        raise ConnectionError("not yet")
    record("effect", name)
    return name


@guarded_task(key="smoke:{name}")
def declined(name: str) -> None:
    """Fail for good."""
    record("start", name)
    raise PermanentError("declined")


@guarded_task(key="smoke:{name}")
def poison(name: str) -> None:
    """Kill the process."""
    record("start", name)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)
