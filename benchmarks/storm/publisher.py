"""Publishes at a fixed rate whatever becomes of the tasks (an open loop), and notes when."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .plan import task_name


def sender() -> Callable[[str], object]:
    """Return what publishes one task of the contestant that ``STORM_CONTESTANT`` names."""
    if os.environ["STORM_CONTESTANT"] == "dramatiq":
        from .dramatiq_app import call

        return call.send
    from .celery_app import TASK, app

    task = app.tasks[TASK]
    return lambda name: task.apply_async((name,))


def main() -> int:
    """Publish; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm.publisher")
    parser.add_argument("--start", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--log", type=Path, required=True)
    chosen = parser.parse_args()
    send = sender()
    with chosen.log.open("w", encoding="utf-8") as log:
        for number in range(round(chosen.seconds * chosen.rate)):
            time.sleep(max(0.0, chosen.start + number / chosen.rate - time.time()))
            at, name = time.time(), task_name(number)
            send(name)
            log.write(f"{at} {name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
