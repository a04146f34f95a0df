"""A pool process does not outlive its main process: nobody would renew its lease, or hear of its end.

On Linux the kernel sees to that, because Celery asks it to (PR_SET_PDEATHSIG, celery/concurrency/prefork.py). Elsewhere a thread
of the pool process looks whether its parent is still the one it had. A body that does not let other threads run holds the thread
up; the lease is over then, and what the body does is neither recorded nor reported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

from celery import bootsteps, signals

__all__ = ["Orphans", "watch_parent"]

#: Seconds between two looks.
_INTERVAL = 1.0


class Orphans(bootsteps.Step):
    """Has every pool process watch its parent where the kernel does not."""

    label = "guardrails orphans"

    def __init__(self, w: Any, **kwargs: Any) -> None:
        super().__init__(w, **kwargs)
        self._main = os.getpid()
        signals.worker_process_init.connect(self._on_process, weak=False)

    def _on_process(self, **_: Any) -> None:
        if os.getpid() == self._main:
            return  # eventlet and gevent send it in the main process
        # the parent may have died between the fork and the child's wish to be told
        watch_parent(self._main, once=sys.platform.startswith("linux"))


def watch_parent(parent: int, *, once: bool = False) -> threading.Thread | None:
    """End this process as soon as ``parent`` is not its parent any more; ``once``: look now and not again."""
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    if once:
        return None
    thread = threading.Thread(target=_watch, args=(parent,), name="guardrails-orphan", daemon=True)
    thread.start()
    return thread


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_INTERVAL)
    os.kill(os.getpid(), signal.SIGKILL)
