"""Runs one contestant through the storm: servers and workers of its own, a schedule, and what was written down."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.support import RedisServer, eventually, free_port, processes

from .contestant import Contestant
from .measures import Storm, read_dependency, read_published
from .plan import PHASES, Plan

#: Seconds in which the publisher starts before the first phase begins.
_LEAD = 3.0

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run(name: str, plan: Plan, directory: Path, say: Callable[[str], None]) -> Storm:
    """Let the storm pass over one contestant.

    It takes the plan's time and some 10 s; every process ends with it, however it ends.

    Args:
        name: of :data:`benchmarks.storm.contestant.CONTESTANTS`.
        plan: phases and rate; the dependency's capacity is that of the default plan.
        directory: for data and logs.
        say: told what happens.

    Raises:
        RuntimeError: a worker or the publisher ended before its time.
    """
    directory.mkdir()
    with ExitStack() as stack:
        redis = RedisServer(directory / "redis")
        stack.callback(redis.stop)
        redis.start()
        port = free_port()
        dependency = _dependency(port, directory)
        stack.callback(processes.end, dependency, grace=5)
        eventually(lambda: processes.listens(port), 20, because=lambda: processes.tail(directory / "dependency.log"))
        contestant = Contestant(name, directory, redis, f"http://127.0.0.1:{port}")
        stack.callback(contestant.stop)
        contestant.start()
        start = time.time() + _LEAD
        publisher = contestant.publish(start=start, seconds=plan.total, rate=plan.rate)
        stack.callback(processes.end, publisher)
        at = start
        for phase, seconds in zip(PHASES, plan.seconds, strict=True):
            _wait_until(at, contestant, publisher)
            say(f"{name}: {phase} for {seconds:g} s (load {os.getloadavg()[0]:.1f})")
            _opener.open(f"http://127.0.0.1:{port}/phase/{phase}", timeout=10).close()
            at += seconds
        _wait_until(at, contestant, publisher)
        end = time.time()
        publisher.wait(timeout=30)
        contestant.stop()
        left = contestant.left()
        processes.end(dependency, grace=5)
        calls, starts = read_dependency((directory / "calls").read_text(encoding="utf-8").splitlines())
        published = read_published((directory / "published").read_text(encoding="utf-8").splitlines())
        return Storm(calls, published, {**starts, "end": end}, left.waiting, left.dead)


def _dependency(port: int, directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.storm.dependency", "--port", str(port), "--log", str(directory / "calls")]
    return processes.spawn(command, log=directory / "dependency.log")


def _wait_until(at: float, contestant: Contestant, publisher: subprocess.Popen[bytes]) -> None:
    while (left := at - time.time()) > 0:
        time.sleep(min(1.0, left))
        contestant.check()
        if publisher.poll() not in {None, 0}:
            raise RuntimeError(f"the publisher of {contestant.name} ended\n{processes.tail(contestant.directory / 'publisher.log')}")
