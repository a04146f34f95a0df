"""The event loop: workers take messages from a queue and call a dependency that slows down, dies and heals.

Nothing here knows how failures are retried: a contestant (:mod:`.contestants`) says whether a message may call now, what becomes
of it after a failure, and whether a process takes messages at all. Every transition takes constant time, but for the heap's.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Contestant", "Measures", "Message", "Scenario", "simulate"]


@dataclass(frozen=True)
class Scenario:
    """What happens, the same for every contestant.

    Args:
        workers: executions that can run at one time, one task each.
        per_process: of these that share one worker process, which takes their messages from the broker.
        arrivals: tasks published a second, whatever becomes of the earlier ones (an open loop); None for a tenth of the workers.
        call: seconds that one call takes the dependency.
        utilisation: part of the dependency's capacity that the arrivals use when all is well.
        slowdown: how many times longer a call takes in the slow phase.
        timeout: seconds after which the client gives a call up. The dependency does not notice and does the work all the same.
        refused: seconds that a call takes which the dependency refuses, or which finds nobody there.
        overhead: seconds that a worker is busy with a message besides the call: taking it, asking the store, handing it back.
        normal: seconds of the first phase.
        slow: seconds of the second.
        down: seconds of the third, in which every call fails.
        healed: seconds of the last.
        seed: of all that is random.
    """

    workers: int = 10_000
    per_process: int = 10
    arrivals: float | None = None
    call: float = 0.5
    utilisation: float = 0.6
    slowdown: float = 2.0
    timeout: float = 10.0
    refused: float = 0.02
    overhead: float = 0.002
    normal: float = 30.0
    slow: float = 30.0
    down: float = 60.0
    healed: float = 180.0
    seed: int = 1

    @property
    def rate(self) -> float:
        """Tasks published a second."""
        return self.workers / 10 if self.arrivals is None else self.arrivals

    @property
    def capacity(self) -> float:
        """Calls that the dependency completes a second when all is well."""
        return self.rate / self.utilisation

    @property
    def dies(self) -> float:
        """Second at which the dependency dies."""
        return self.normal + self.slow

    @property
    def heals(self) -> float:
        """Second at which it is there again."""
        return self.dies + self.down

    @property
    def end(self) -> float:
        """Second at which the simulation ends."""
        return self.heals + self.healed


@dataclass(eq=False)
class Message:
    """A task's message.

    Args:
        task_id: of the task.
        born: second at which it was published.
        attempts: charged.
        deferrals: times handed back since the last attempt.
        waited: seconds that it waited before this attempt.
    """

    __slots__ = ("attempts", "born", "deferrals", "task_id", "waited")

    task_id: str
    born: float
    attempts: int
    deferrals: int
    waited: float | None


class Contestant(Protocol):
    """A way to retry."""

    name: str
    #: Its processes look at the resource from time to time.
    looks: bool

    def admit(self, message: Message, holder: str, process: int, now: float) -> float | None:
        """Return None where the message may call now, else the seconds after which it comes back."""

    def ended(self, message: Message, holder: str, succeeded: bool, now: float) -> float | None:
        """Return the seconds after which a message comes back whose call has failed, or None where that was all."""

    def pauses(self, process: int) -> bool:
        """Whether a process takes no messages from the queue now."""

    def look(self, process: int, now: float) -> float:
        """Let a process see how things are; return the seconds before its next look."""


@dataclass
class Measures:
    """What was counted in each second.

    Args:
        seconds: of the simulation.
    """

    seconds: int
    calls: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    goodput: list[int] = field(default_factory=list)
    asks: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    exhausted: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    published: int = 0
    deferrals: int = 0  # messages handed back without a call

    def __post_init__(self) -> None:
        for name in ("calls", "firsts", "goodput", "asks", "refused", "looks", "exhausted", "waiting"):
            setattr(self, name, [0] * self.seconds)


class _Dependency:
    """So many calls a second, first come, first served; what is more than that waits in its line.

    ``line`` is the calls in it; the wait is the line divided by the calls it completes a second. A client that gives up stays in
    the line, as a request does whose connection nobody looks at before its turn: that is what keeps an overloaded service down.
    """

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self.scenario, self.rng = scenario, rng
        self.line = self.at = 0.0

    def call(self, now: float) -> tuple[bool, float]:
        """Return whether the call succeeds, and the seconds it takes."""
        s = self.scenario
        if s.dies <= now < s.heals:
            return False, s.refused
        factor = s.slowdown if s.normal <= now < s.dies else 1.0
        if self.at < s.heals <= now:
            self.line = 0.0  # it was started anew
        per_second = s.capacity / factor
        self.line = max(0.0, self.line - (now - self.at) * per_second)
        self.at = now
        wait = self.line / per_second
        if wait > 2 * s.timeout:
            return False, s.refused  # its line is full
        self.line += 1.0
        seconds = wait + s.call * factor * (0.5 + self.rng.random())
        if seconds > s.timeout:
            return False, s.timeout
        # who is being served when it dies finds out at the end
        return not now < s.dies <= now + seconds, seconds


_ARRIVES, _DUE, _ENDS, _FREE, _LOOKS = range(5)


def simulate(scenario: Scenario, contestant: Contestant) -> Measures:
    """Let the fleet of one contestant meet the scenario; the same seed gives the same figures."""
    return _Fleet(scenario, contestant).run()


class _Fleet:
    def __init__(self, scenario: Scenario, contestant: Contestant) -> None:
        self.scenario, self.contestant = scenario, contestant
        self.rng = random.Random(scenario.seed)
        self.dependency = _Dependency(scenario, self.rng)
        self.measures = Measures(int(scenario.end))
        self.queue: deque[Message] = deque()
        processes = max(1, scenario.workers // scenario.per_process)
        tokens = [worker % processes for worker in range(scenario.workers)]
        self.rng.shuffle(tokens)
        #: The process of each worker that has nothing to do; of those that take no messages it stands in ``parked``.
        self.idle: deque[int] = deque(tokens)
        self.parked = [0] * processes
        self.number = itertools.count()
        self.events: list[tuple[float, int, int, Any]] = []
        self.away = 0  # messages that wait for their time

    def at(self, when: float, kind: int, data: Any = None) -> None:
        """Put down what happens at a moment."""
        heapq.heappush(self.events, (when, next(self.number), kind, data))

    def run(self) -> Measures:
        """Run until the end."""
        self.at(0.0, _ARRIVES)
        if self.contestant.looks:
            for process in range(len(self.parked)):
                self.at(self.rng.random(), _LOOKS, process)
        act = {_ARRIVES: self.arrives, _DUE: self.due, _ENDS: self.ends, _FREE: self.free, _LOOKS: self.looks}
        end, events, second = float(self.measures.seconds), self.events, 0
        while events[0][0] < end:
            now, _, kind, data = heapq.heappop(events)
            while second < int(now):
                self.measures.waiting[second] = len(self.queue) + self.away
                second += 1
            act[kind](now, data)
        self.measures.waiting[second:] = [len(self.queue) + self.away] * (self.measures.seconds - second)
        return self.measures

    def arrives(self, now: float, _: None) -> None:
        """A task is published."""
        self.queue.append(Message(str(self.measures.published), now, 0, 0, None))
        self.measures.published += 1
        self.at(now + self.rng.expovariate(self.scenario.rate), _ARRIVES)
        self.dispatch(now)

    def due(self, now: float, message: Message) -> None:
        """A message has waited for its time."""
        self.away -= 1
        self.queue.append(message)
        self.dispatch(now)

    def dispatch(self, now: float) -> None:
        """Bring messages and idle workers together."""
        queue, idle, pauses = self.queue, self.idle, self.contestant.pauses
        while queue and idle:
            process = idle.popleft()
            if pauses(process):
                self.parked[process] += 1
            else:
                self.start(queue.popleft(), process, now)

    def start(self, message: Message, process: int, now: float) -> None:
        """One worker has one message."""
        second, measures = int(now), self.measures
        holder = str(next(self.number))
        delay = self.contestant.admit(message, holder, process, now)
        measures.asks[second] += 1
        if delay is not None:
            measures.refused[second] += 1
            measures.deferrals += 1
            message.deferrals += 1
            self.later(message, now + self.scenario.overhead + delay)
            self.at(now + self.scenario.overhead, _FREE, process)
            return
        measures.calls[second] += 1
        measures.firsts[second] += not message.attempts
        succeeds, seconds = self.dependency.call(now)
        self.at(now + self.scenario.overhead + seconds, _ENDS, (message, holder, process, succeeds))

    def later(self, message: Message, when: float) -> None:
        """A message waits for its time."""
        self.away += 1
        self.at(when, _DUE, message)

    def ends(self, now: float, data: tuple[Message, str, int, bool]) -> None:
        """A call has ended."""
        message, holder, process, succeeded = data
        delay = self.contestant.ended(message, holder, succeeded, now)
        if succeeded:
            self.measures.goodput[int(now)] += 1
        elif delay is None:
            self.measures.exhausted[int(now)] += 1
        else:
            message.attempts, message.deferrals, message.waited = message.attempts + 1, 0, delay
            self.later(message, now + delay)
        self.free(now, process)

    def free(self, now: float, process: int) -> None:
        """A worker has nothing to do any more."""
        self.idle.append(process)
        self.dispatch(now)

    def looks(self, now: float, process: int) -> None:
        """A process sees how things are."""
        self.measures.looks[int(now)] += 1
        self.at(now + self.contestant.look(process, now), _LOOKS, process)
        if self.parked[process] and not self.contestant.pauses(process):
            self.idle.extend([process] * self.parked[process])
            self.parked[process] = 0
            self.dispatch(now)
