"""``basic.py`` and a command for its workers that holds their main process up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery.worker.control import control_command

from .basic import make_app

__all__ = ["app", "make_app"]


@control_command(args=[("gate", str)], signature="[gate]")
def shrink_late(state: Any, gate: str) -> str:
    """Do not look at what processes say until the file ``gate`` is there; then let one process go."""
    Path(gate).with_suffix(".held").touch()
    while not os.path.exists(gate):
        time.sleep(0.02)
    try:
        state.consumer.pool.shrink(1)
    except ValueError as busy:
        return str(busy)
    return "shrunk"


if "TESTAPP_BROKER_URL" in os.environ:
    app = make_app(os.environ)
