"""Time, chance and processes of a simulated fleet: everything that happens follows from one number.

Every process is a greenlet. It gives up control at each step that leaves it (a call of the store or the broker, a wait),
and that is where the world does to it what worlds do: it dies, freezes, or waits for an answer that does not come.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from greenlet import getcurrent, greenlet

LEASE = 10.0


class Crash(BaseException):
    """The process is gone: nothing after this line runs."""


class Host:
    """What dies and freezes as one: a machine, with its own idea of the time.

    Args:
        world: it is part of.
        name: for messages.
        offset: seconds by which its clock is ahead.
    """

    def __init__(self, world: World, name: str, offset: float) -> None:
        self.world, self.name, self.offset = world, name, offset
        self.frozen_until = 0.0
        self.processes: set[greenlet] = set()

    # celery_guardrails.ports.Clock

    def now(self) -> float:
        return self.world.now + self.offset

    def sleep(self, seconds: float) -> None:
        self.world.wait(seconds)

    def fraction(self) -> float:
        return self.world.random.random()


class World:
    """A scheduler of discrete events.

    Args:
        seed: of everything.
        faults: how likely the world is to interfere with a step; 0 for a world in which all goes well, None for its own luck.
    """

    def __init__(self, seed: int, faults: float | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.faults: float = self.random.choice((0.02, 0.05, 0.1, 0.2)) if faults is None else faults
        #: True time, unix time in seconds.
        self.now = self.start = 1_900_000_000.0
        #: No more faults from now on.
        self.calm = False
        self.trouble: list[str] = []
        self._queue: list[tuple[float, int, Any]] = []
        self._numbers = count()
        self._hosts: dict[greenlet, Host] = {}
        self._hub = getcurrent()

    def chance(self, probability: float) -> bool:
        return not self.calm and probability > 0 and self.random.random() < probability

    def complain(self, text: str) -> None:
        """Note that a promise was broken."""
        self.trouble.append(text)

    # -- processes --------------------------------------------------------------------------------------------

    def spawn(self, host: Host, run: Callable[[], None]) -> greenlet:
        """Start a process on a host."""
        process = greenlet(run, self._hub)
        self._hosts[process] = host
        host.processes.add(process)
        self._at(self.now, process)
        return process

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something that is no process's doing."""
        self._at(self.now + seconds, what)

    def wait(self, seconds: float) -> None:
        """Let the others run; called by processes."""
        process = getcurrent()
        self._at(self.now + max(0.0, seconds), process)
        self._hub.switch()
        if process not in self._hosts:
            raise Crash  # killed meanwhile

    def step(self) -> None:
        """Do a step that leaves the process: it takes time, and the process may not survive it."""
        self.wait(self.random.choice((0.0, 0.001, 0.003, 0.02, 0.1)))
        if self.chance(self.faults / 8):
            host = self._hosts[getcurrent()]
            host.frozen_until = self.now + self.random.uniform(0, LEASE * 3)
            self.wait(0.0)
        if self.chance(self.faults / 3):
            raise Crash

    def alive(self) -> bool:
        """Whether the process that asks has not been killed with its host."""
        return getcurrent() in self._hosts

    def kill(self, host: Host) -> None:
        """End all processes of a host; each finds out where it waits."""
        for process in host.processes:
            self._hosts.pop(process, None)
        host.processes.clear()

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self, done: Callable[[], bool], *, faults_for: float, patience: float = 20_000.0) -> None:
        """Run until ``done``, with faults for the first seconds.

        Raises:
            AssertionError: it did not come to rest.
        """
        while self._queue:
            due, _, what = heapq.heappop(self._queue)
            self.now = max(self.now, due)
            if self.now > self.start + faults_for:
                self.calm = True
            if self.now > self.start + patience:
                raise AssertionError(f"seed {self.seed}: the fleet did not come to rest")
            if not isinstance(what, greenlet):
                what()
                continue
            host = self._hosts.get(what)
            if host is not None and host.frozen_until > self.now:
                self._at(host.frozen_until, what)
                continue
            what.switch()
            if what.dead and host is not None:
                self._hosts.pop(what, None)
                host.processes.discard(what)
            if done():
                break
        self.end()

    def end(self) -> None:
        """End every process that still waits."""
        for host in set(self._hosts.values()):
            self.kill(host)
        while self._queue:
            what = heapq.heappop(self._queue)[2]
            if isinstance(what, greenlet) and not what.dead:
                what.switch()

    def _at(self, due: float, what: Any) -> None:
        heapq.heappush(self._queue, (due, next(self._numbers), what))
