"""The first thing that a pool process does when it has been forked.

It has one thread, and the locks as they were: one that another thread of the main process held in that moment is held for ever. Before a
pool process comes to ask the kernel to end it with its parent (celery/concurrency/prefork.py, ``process_initializer``), kombu,
Celery and the project close in it what belongs to the parent (``register_after_fork``), and may meet such a lock. Celery kills a process
that says nothing for four seconds; where the main process was killed meanwhile, nobody would.

With redis-py 7 and later it happens to one process in some hundreds: ``ConnectionPool.reset`` takes the pool's lock (redis/connection.py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from celery import platforms

__all__ = ["begin_alone"]


def begin_alone(process: Any) -> Any:
    """Have a pool process that will be forked, and is not yet, end with its parent from its first moment, and wait for no lock of it."""
    if getattr(process, "_start_method", None) != "fork":
        return process  # nothing is inherited, and what is pickled must not know us
    bootstrap, parent = process._bootstrap, os.getpid()

    def begin(*args: Any, **kwargs: Any) -> Any:
        platforms.set_pdeathsig("SIGKILL")
        if os.getppid() != parent:  # killed before it was asked for
            os.kill(os.getpid(), signal.SIGKILL)
        _free_pools()
        return bootstrap(*args, **kwargs)

    process._bootstrap = begin
    return process


def _free_pools() -> None:
    """Let redis-py's pools of the parent be reset in this process, whoever held their locks."""
    redis = sys.modules.get("redis.connection")
    for name in ("ConnectionPool", "BlockingConnectionPool"):
        pool_class = getattr(redis, name, None)
        if pool_class is not None and "reset" in vars(pool_class):
            pool_class.reset = _freed(pool_class.reset)


def _freed(reset: Callable[[Any], None]) -> Callable[[Any], None]:
    def freed(pool: Any) -> None:
        if getattr(pool, "pid", None) not in (None, os.getpid()):
            pool._lock = threading.RLock()
        reset(pool)

    return freed
