"""The contestants on Celery, by ``STORM_CONTESTANT``: the body is the same, only the decorator differs.

``celery`` is set up as a careful team does it: late acknowledgement, nothing lost with a killed child, no more prefetched than runs,
exponential backoff with full jitter. ``guardrails`` has its defaults and a resource with the defaults; ``guardrails-bare`` is the same
without the resource, to see what the resource is good for; ``guardrails-slots`` lets no more calls in at once than the dependency works on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celery import Celery, signals

from .call import call_dependency
from .plan import ATTEMPTS, QUEUE, Plan

TASK = "storm.call"


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app of one contestant with its task."""
    app = Celery("storm", broker=environ["STORM_BROKER"], set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    contestant = environ["STORM_CONTESTANT"]
    decorate = _plain(app) if contestant == "celery" else _guarded(app, environ, contestant)
    decorate(call_dependency)
    app.finalize()
    return app


def _plain(app: Celery) -> Callable[..., Any]:
    return app.task(
        name=TASK,
        shared=False,
        acks_late=True,
        reject_on_worker_lost=True,
        autoretry_for=(OSError,),
        retry_backoff=True,
        retry_jitter=True,
        max_retries=ATTEMPTS - 1,
    )


def _guarded(app: Celery, environ: Mapping[str, str], contestant: str) -> Callable[..., Any]:
    from celery_guardrails import GuardedTask, Guardrails, RetryPolicy

    guardrails = Guardrails(app, store=environ["STORM_STORE"])
    options: dict[str, Any] = {}
    if contestant != "guardrails-bare":
        guardrails.resource("gateway", max_concurrency=Plan.slots if contestant == "guardrails-slots" else None)
        options["resource"] = "gateway"
    return app.task(name=TASK, base=GuardedTask, shared=False, retry=RetryPolicy(max_attempts=ATTEMPTS), **options)


@signals.task_failure.connect
def _given_up(args: tuple[Any, ...] = (), **_: Any) -> None:
    """Note what plain Celery drops after the last attempt: it keeps nothing of it that could be counted afterwards."""
    with Path(os.environ["STORM_GIVEN_UP"]).open("a", encoding="utf-8") as file:
        file.write(f"{args[0]}\n")


if "STORM_CONTESTANT" in os.environ:  # in a worker or publisher
    app = make_app(os.environ)
