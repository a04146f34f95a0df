"""``basic.py``, the first of whose pool processes dies before the event loop of its worker turns: ``TESTAPP_GRAVE`` notes that."""

from __future__ import annotations

import os
from typing import Any

from celery import signals

from .basic import make_app
from .plain import vanish

__all__ = ["app", "make_app"]


@signals.worker_process_init.connect
def die_once(**_: Any) -> None:
    """End the first process of all workers, as the kernel would."""
    try:
        os.close(os.open(os.environ["TESTAPP_GRAVE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    vanish()


if "TESTAPP_BROKER_URL" in os.environ:
    app = make_app(os.environ)
