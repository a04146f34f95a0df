"""The app that is measured: one no-op task, plain or guarded, as the ``BENCH_…`` variables say.

Every run of the task appends one byte to a file: so the effects are counted outside of broker, store and Celery, and
what the counting costs (about 2 µs) is the same for every variant.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celery_guardrails import GuardedTask, Guardrails

#: plain: Celery with acks_late. guarded: the task id is the key. keyed: a key from the arguments, and their fingerprint.
#: resource: keyed, with a resource that has a breaker, a budget, slots and a rate, all of them wide.
VARIANTS = ("plain", "guarded", "keyed", "resource")
TASK = "bench.noop"


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app of one variant with its task."""
    variant = environ["BENCH_VARIANT"]
    app = Celery("bench", broker=environ["BENCH_BROKER"], backend=environ.get("BENCH_BACKEND") or None, set_as_current=False)
    app.conf.update(
        task_default_queue=environ["BENCH_QUEUE"],
        task_ignore_result=not environ.get("BENCH_BACKEND"),
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_heartbeat=0,  # the worker stands still while its queue is filled
        **json.loads(environ.get("BENCH_SETTINGS", "{}")),
    )
    effects = os.open(environ["BENCH_EFFECTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noop(n: int) -> None:
        os.write(effects, b".")

    if variant == "plain":
        app.task(name=TASK, acks_late=True, shared=False)(noop)
    else:
        guardrails = Guardrails(app, store=environ["BENCH_STORE"], namespace=environ["BENCH_QUEUE"])
        options: dict[str, Any] = {"key": "noop:{n}"} if variant in ("keyed", "resource") else {}
        if variant == "resource":
            guardrails.resource("downstream", max_concurrency=1000, rate="1000000/s")
            options["resource"] = "downstream"
        app.task(name=TASK, base=GuardedTask, shared=False, **options)(noop)
    app.finalize()
    return app


if "BENCH_VARIANT" in os.environ:  # in a worker
    app = make_app(os.environ)
