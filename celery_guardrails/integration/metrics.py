"""What is counted: the closed set of metrics, and what each event adds to which of them.

No client library here: pool processes count, too, and only who shows the numbers needs to know Prometheus
(:mod:`celery_guardrails.contrib.prometheus`).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import events
from ..events import Event
from ..policy.deadletter import REASONS
from ..policy.suspicion import CROWDED, QUARANTINED

__all__ = ["COUNTER", "GAUGE", "HISTOGRAM", "METRICS", "OTHER", "SUM", "Key", "Measures", "Metric"]

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
#: What stands for a name that is none of the app's: a message may name any task, and a label must not grow with what is sent.
OTHER = "other"
#: The part of a histogram that is no bucket.
SUM = "sum"

#: Seconds. From a task that does nothing to one that runs as long as the soft limits that people set.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0)
#: Runs whose beginning is remembered. Not every run has an event at its end.
_MOST_RUNS = 4096
#: Characters of a label: what a pool process sends must fit into one atomic write to a pipe.
_LONGEST = 200
#: Why a message goes back (policy/verdict.py and those that it asks).
_WHYS = frozenset(
    {
        *("store away", "held", "lease lost", "crashed", QUARANTINED, CROWDED),
        *("breaker", "budget", "slots", "rate"),
        *("stopped", "deadline", "time is up"),
    }
)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        kind: :data:`COUNTER`, :data:`GAUGE` or :data:`HISTOGRAM`.
        help: what it says, in one line.
        labels: besides ``namespace``.
        buckets: upper bounds, of a histogram.
    """

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Key(NamedTuple):
    """One number: of a histogram, one of several.

    Args:
        metric: name, without prefix and without the ``_total`` of counters.
        labels: values, in the order of the metric's labels.
        part: "" but of a histogram, there the number of a bucket or :data:`SUM`.
    """

    metric: str
    labels: tuple[str, ...] = ()
    part: str = ""


#: All that is shown, by name. What events say is only ever added to, so that processes can count for each other.
METRICS = {
    "tasks_started": Metric(COUNTER, "Runs that began", ("task",)),
    "tasks_completed": Metric(COUNTER, "Runs whose completion is on record", ("task",)),
    "tasks_replayed": Metric(COUNTER, "Messages answered with the stored result of a completed key", ("task",)),
    "tasks_retried": Metric(COUNTER, "Attempts that failed and wait for the next one", ("task",)),
    "tasks_handed_back": Metric(COUNTER, "Messages that went back without a charge", ("task", "why")),
    "dead_letters": Metric(COUNTER, "Messages that were dead-lettered", ("task", "queue", "reason")),
    "task_crashes": Metric(COUNTER, "Runs whose process vanished", ("task",)),
    "tasks_quarantined": Metric(COUNTER, "Runs that began in quarantine", ("task",)),
    "leases_taken_over": Metric(COUNTER, "Runs that took over the lease of one that had vanished", ("task",)),
    "leases_lost": Metric(COUNTER, "Runs whose lease another one took over meanwhile", ("task",)),
    "task_leaks": Metric(COUNTER, "Times that a task was named because its runs leave something behind", ("task", "kind")),
    "task_overruns": Metric(COUNTER, "Runs that went beyond their limit and that nothing ended", ("task",)),
    "tasks_overrunning": Metric(GAUGE, "Runs that are beyond their limit now", ("task",)),
    "tasks_abandoned": Metric(COUNTER, "Runs that ended with their process at the end of the drain time", ("task",)),
    "results_not_kept": Metric(COUNTER, "Completions that were recorded without their result"),
    "store_failures": Metric(COUNTER, "Calls that the store did not answer", ("operation",)),
    "breaker_condition": Metric(GAUGE, "1 for the condition that the breaker was last seen in", ("resource", "condition")),
    "task_duration_seconds": Metric(HISTOGRAM, "How long runs took that completed", ("task",), _BUCKETS),
    # What the worker's main process says of itself when somebody asks.
    "ready": Metric(GAUGE, "Whether the worker takes messages, as /readyz says"),
    "leases_held": Metric(GAUGE, "Leases that the worker renews"),
    "lease_renewal_age_seconds": Metric(GAUGE, "Seconds since leases were last renewed"),
    "drain_seconds_left": Metric(GAUGE, "Seconds of the drain time that are left, while the worker stops"),
    "drained_messages": Metric(COUNTER, "What became of the messages that the worker held when it was told to stop", ("outcome",)),
}


class Measures:
    """Says what an event adds to which number; one per process, since it remembers when runs began.

    Args:
        tasks: names that may be a label.
        queues: the same for queues.
        now: a clock that only goes forward, in seconds.
    """

    def __init__(self, tasks: Container[str], queues: Container[str], now: Callable[[], float] = time.monotonic) -> None:
        self._tasks = tasks
        self._queues = queues
        self._now = now
        self._begun: dict[tuple[str, str], float] = {}
        self._over: set[tuple[str, str]] = set()
        self._breakers: dict[str, str] = {}
        self._of: dict[type, Callable[[Any], Iterator[tuple[Key, float]]]] = {
            events.Started: self._started,
            events.Completed: self._completed,
            events.Replayed: lambda event: self._one("tasks_replayed", event),
            events.Retrying: lambda event: self._settled("tasks_retried", event),
            events.HandedBack: self._handed_back,
            events.DeadLettered: self._dead,
            events.Crashed: lambda event: self._one("task_crashes", event),
            events.Quarantined: lambda event: self._one("tasks_quarantined", event),
            events.LeaseTaken: lambda event: self._settled("leases_lost", event),
            events.TaskLeaked: lambda event: self._one("task_leaks", event, event.kind.replace(" ", "_")),
            events.StillRunning: self._still_running,
            events.Overran: self._not_over,
            events.Abandoned: self._abandoned,
            events.ResultNotKept: lambda _: iter([(Key("results_not_kept"), 1.0)]),
            events.StoreFailed: lambda event: iter([(Key("store_failures", (event.operation,)), 1.0)]),
            events.BreakerMoved: self._moved,
            # What became of the messages is shown while they are waited for: at this event the process ends, and nobody asks any more.
            events.Drained: lambda _: iter(()),
        }

    def __call__(self, event: Event) -> list[tuple[Key, float]]:
        """Return what is to be added."""
        return list(self._of[type(event)](event))

    def _task(self, name: str) -> str:
        return name[:_LONGEST] if name in self._tasks else OTHER

    def _one(self, metric: str, event: Any, *labels: str) -> Iterator[tuple[Key, float]]:
        yield Key(metric, (self._task(event.task), *labels)), 1.0

    def _started(self, event: events.Started) -> Iterator[tuple[Key, float]]:
        while len(self._begun) >= _MOST_RUNS:
            self._begun.pop(next(iter(self._begun)), None)
        self._begun[event.task_id, event.key] = self._now()
        if event.takeover:
            yield from self._one("leases_taken_over", event)
        yield from self._one("tasks_started", event)

    def _completed(self, event: events.Completed) -> Iterator[tuple[Key, float]]:
        yield from self._one("tasks_completed", event)
        begun = self._begun.pop((event.task_id, event.key), None)
        if begun is None:
            return
        seconds, name, labels = self._now() - begun, "task_duration_seconds", (self._task(event.task),)
        yield Key(name, labels, str(bisect_left(METRICS[name].buckets, seconds))), 1.0
        yield Key(name, labels, SUM), seconds

    def _settled(self, metric: str, event: Any, *labels: str) -> Iterator[tuple[Key, float]]:
        self._begun.pop((event.task_id, event.key), None)
        return self._one(metric, event, *labels)

    def _handed_back(self, event: events.HandedBack) -> Iterator[tuple[Key, float]]:
        return self._settled("tasks_handed_back", event, event.why if event.why in _WHYS else OTHER)

    def _dead(self, event: events.DeadLettered) -> Iterator[tuple[Key, float]]:
        letter = event.certificate
        self._begun.pop((letter.task_id, letter.key or ""), None)
        queue = event.queue[:_LONGEST] if event.queue in self._queues else OTHER
        reason = letter.reason if letter.reason in REASONS else OTHER
        yield Key("dead_letters", (self._task(letter.task), queue, reason)), 1.0

    def _still_running(self, event: events.StillRunning) -> Iterator[tuple[Key, float]]:
        if (event.task_id, event.key) not in self._over:
            self._over.add((event.task_id, event.key))
            yield from self._one("task_overruns", event)
            yield from self._one("tasks_overrunning", event)

    def _not_over(self, event: Any) -> Iterator[tuple[Key, float]]:
        if (event.task_id, event.key) in self._over:
            self._over.discard((event.task_id, event.key))
            yield Key("tasks_overrunning", (self._task(event.task),)), -1.0

    def _abandoned(self, event: events.Abandoned) -> Iterator[tuple[Key, float]]:
        yield from self._one("tasks_abandoned", event)
        yield from self._not_over(event)

    def _moved(self, event: events.BreakerMoved) -> Iterator[tuple[Key, float]]:
        before = self._breakers.get(event.resource)
        self._breakers[event.resource] = event.condition
        if before != event.condition:
            if before is not None:
                yield Key("breaker_condition", (event.resource, before)), -1.0
            yield Key("breaker_condition", (event.resource, event.condition)), 1.0
