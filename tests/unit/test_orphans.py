"""A pool process that watches its parent, as it does where the kernel does not."""

from __future__ import annotations

import os
import signal
import time

import psutil

from celery_guardrails.worker.orphans import watch_parent
from tests.support import eventually


def family(*, once: bool = False, parent: int | None = None) -> tuple[int, int]:
    """Fork a parent with a child that watches it, and return both pids."""
    ready, said = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            signal.alarm(60)
            mine = os.getpid()
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                os.write(said, f"{os.getpid()}\n".encode())
                watch_parent(mine if parent is None else parent, once=once)
            while True:
                time.sleep(1)
        finally:
            os._exit(1)
    pid = int(os.read(ready, 32))
    os.close(ready)
    os.close(said)
    return first, pid


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def end(*pids: int) -> None:
    for pid in pids:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_child_whose_parent_is_killed_ends_itself() -> None:
    parent, child = family()
    try:
        assert not gone(child)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        eventually(lambda: gone(child), 30, because="the child is gone")
    finally:
        end(child)


def test_a_child_whose_parent_died_before_it_could_look_ends_itself_at_once() -> None:
    parent, child = family(once=True, parent=1 << 22)
    try:
        eventually(lambda: gone(child), 30, because="the child is gone")
    finally:
        end(child, parent)
        os.waitpid(parent, 0)
