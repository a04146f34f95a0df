"""The guarded app with a remote control command that holds up the loop of the worker's main process."""

from __future__ import annotations

import os
import time
from typing import Any

from celery.signals import celeryd_init
from celery.worker.control import control_command

from celery_guardrails.worker import health

from .basic import make_app


@celeryd_init.connect
def be_impatient(**_: object) -> None:
    """In the worker, not in the test that imports this: nobody waits for a minute and a half."""
    health.STUCK, health.STANDS = 4.0, 2.0


@control_command(name="hold_up_the_loop", args=[("seconds", float)])
def hold_up_the_loop(state: Any, seconds: float) -> dict[str, str]:
    """Come back after ``seconds``."""
    time.sleep(seconds)
    return {"ok": "it goes on"}


__all__ = ["make_app"]

if "TESTAPP_BROKER_URL" in os.environ:
    app = make_app(os.environ)
