"""gevent: what runs goes on, and keeps its lease, while the worker waits for its broker to come back."""

from __future__ import annotations

import time
from typing import Any

from celery import bootsteps
from kombu.utils import functional

__all__ = ["Cooperating"]


class Cooperating(bootsteps.Step):
    """Lets kombu wait between two tries to connect as everything else waits in such a worker: the others run meanwhile.

    ``celery worker -P gevent`` replaces ``time.sleep``, but shortly before, gevent looks at every object in memory for locks and touches
    one of Celery's that imports itself then, and kombu with it: ``kombu/utils/functional.py`` keeps the ``sleep`` that stops the whole
    process (Celery 5.4 to 5.7). While the broker is away nothing runs for up to 32 seconds at a time, nobody renews a lease, and
    another worker, for which the broker is there, takes the tasks over.
    """

    label = "guardrails cooperating"

    def __init__(self, w: Any, **kwargs: Any) -> None:
        super().__init__(w, **kwargs)
        if getattr(w.pool_cls, "is_green", False):
            functional.sleep = time.sleep  # type: ignore[attr-defined]  # it imported it
