"""The beginning of a pool process, and what it has inherited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.util import register_after_fork

import psutil
import pytest
import redis
from kombu.asynchronous import Hub

from celery_guardrails.worker import forking
from celery_guardrails.worker.result_pipes import SoundAsynPool
from tests.support import eventually
from tests.support.processes import ROOT


class Pools:
    """Redis-py's pools as the main process has them, with one connection each."""

    def __init__(self):
        plain, blocking = redis.ConnectionPool(), redis.BlockingConnectionPool(max_connections=2)
        plain._available_connections.append(plain.make_connection())
        blocking.make_connection()  # which remembers it
        self.all = [plain, blocking]
        register_after_fork(self, Pools.close)

    def close(self):
        """As kombu does in a process that has been forked (transport/redis.py, ``_disconnect_pools``)."""
        for pool in self.all:
            pool.disconnect()


@pytest.fixture
def pools():
    return Pools()


def up(hub, pool):
    """Let the event loop turn until the processes have said that they are up, for so many seconds."""
    turns, end = hub.create_loop(), time.monotonic() + 20.0
    hub.call_repeatedly(0.05, lambda: None)
    while time.monotonic() < end and len(pool._all_inqueues) < len(pool._pool):
        next(turns)
    return len(pool._all_inqueues)


def test_a_pool_process_waits_for_no_lock_that_a_thread_of_the_main_process_held(pools):
    release, held = threading.Event(), threading.Event()

    def hold():
        with pools.all[0]._lock, pools.all[1]._lock:
            held.set()
            release.wait(30)

    threading.Thread(target=hold).start()
    assert held.wait(10)
    pool, hub = SoundAsynPool(2, threads=False), Hub()
    pool.register_with_event_loop(hub)
    try:
        assert up(hub, pool) == 2
    finally:
        release.set()
        for process in pool._pool:
            os.kill(process.pid, signal.SIGKILL)


STUCK = """
import os, sys, time
from multiprocessing.util import register_after_fork
from celery_guardrails.worker.result_pipes import SoundAsynPool

class Parent:
    pass

parent = Parent()
register_after_fork(parent, lambda _: time.sleep(60))
pool = SoundAsynPool(2, threads=False)
print(*(process.pid for process in pool._pool), flush=True)
time.sleep(60)
"""


def test_a_pool_process_that_never_comes_to_its_beginning_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert [child.is_running() for child in children] == [True, True]
        time.sleep(0.5)  # they have been forked, and are no further
        parent.kill()
        eventually(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children), 30)


def test_a_process_that_is_not_forked_is_left_as_it_is():
    class Spawned:
        _start_method = "spawn"

    process = Spawned()
    assert forking.begin_alone(process) is process
    assert not hasattr(process, "_bootstrap")
