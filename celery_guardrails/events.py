"""What happens, as values: logs, metrics and Sentry listen to these and to nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

from .policy.deadletter import DeathCertificate

__all__ = [
    "Abandoned",
    "BreakerMoved",
    "Completed",
    "Crashed",
    "DeadLettered",
    "Drained",
    "Event",
    "HandedBack",
    "LeaseTaken",
    "Listener",
    "Overran",
    "Replayed",
    "ResultNotKept",
    "Retrying",
    "Started",
    "StillRunning",
    "StoreFailed",
    "TaskLeaked",
]


@dataclass(frozen=True)
class Started:
    """The body is about to run."""

    task: str
    task_id: str
    key: str
    attempt: int
    fence: int
    takeover: bool


@dataclass(frozen=True)
class Completed:
    """The completion is recorded."""

    task: str
    task_id: str
    key: str
    attempt: int


@dataclass(frozen=True)
class Replayed:
    """A completed key was met again: the stored result was returned, the body did not run."""

    task: str
    task_id: str
    key: str


@dataclass(frozen=True)
class Retrying:
    """An attempt failed and the message waits for the next one (seconds in ``delay``)."""

    task: str
    task_id: str
    key: str
    attempt: int
    delay: float
    error: str
    rule: str


@dataclass(frozen=True)
class HandedBack:
    """The message goes back without a charge, for ``delay`` seconds."""

    task: str
    task_id: str
    key: str
    delay: float
    why: str


@dataclass(frozen=True)
class DeadLettered:
    """The message is in the dead letter queue."""

    queue: str
    certificate: DeathCertificate


@dataclass(frozen=True)
class Crashed:
    """The process that ran the task vanished."""

    task: str
    task_id: str
    key: str
    crashes: int


@dataclass(frozen=True)
class Quarantined:
    """The task was running in so many workers that vanished, with others beside it; now it runs alone, if they have ended."""

    task: str
    task_id: str
    key: str
    suspicions: int
    alone: bool


@dataclass(frozen=True)
class LeaseTaken:
    """The lease was taken over by another execution while this one ran."""

    task: str
    task_id: str
    key: str


@dataclass(frozen=True)
class BreakerMoved:
    """A worker has noticed that the breaker of a resource is in another condition (unix time in seconds in ``until``)."""

    resource: str
    condition: str
    forced: bool
    until: float


@dataclass(frozen=True)
class ResultNotKept:
    """The result could not be kept with the completion record."""

    task_id: str
    why: str


@dataclass(frozen=True)
class StoreFailed:
    """The store did not answer."""

    operation: str
    error: str


@dataclass(frozen=True)
class TaskLeaked:
    """Several runs of a task have left something behind in their process that still lives.

    Args:
        task: its name.
        task_id: of the last of these runs.
        kind: ``"threads"``, ``"child processes"``, ``"open files"`` or ``"memory"``.
        amount: how many live; of memory, the bytes that were added.
        runs: of the task in this process that left them.
        names: of the last few: threads, programs with their pids, paths and addresses; never arguments or contents.
        recycled: this process is replaced, now that the task has finished.
        text: all this in words.
    """

    task: str
    task_id: str
    kind: str
    amount: int
    runs: int
    names: tuple[str, ...]
    recycled: bool
    text: str


@dataclass(frozen=True)
class StillRunning:
    """A task runs on beyond its limit and nothing ends it; its lease is kept. Told again at twice the time, and so on.

    Args:
        task: its name.
        task_id: its id.
        key: its key.
        seconds: that it has run.
        limit: in seconds: the soft limit, or what else should have ended it.
        where: the innermost lines of its thread, file and function only; ``unknown`` where nobody can see.
    """

    task: str
    task_id: str
    key: str
    seconds: float
    limit: float
    where: str


@dataclass(frozen=True)
class Overran:
    """What was reported as :class:`StillRunning` has ended, after so many seconds."""

    task: str
    task_id: str
    key: str
    seconds: float
    limit: float


@dataclass(frozen=True)
class Abandoned:
    """The drain time is over and a task still runs in a pool that cannot end it: the process ends, and the message goes back."""

    task: str
    task_id: str
    key: str
    seconds: float
    where: str


@dataclass(frozen=True)
class Drained:
    """A worker that was told to stop ends, after ``seconds``; what became of the messages that it held.

    ``finished`` by themselves, ``checkpointed`` and handed back by themselves, ``handed_back`` unbegun or stopped at the end of
    the drain time, ``abandoned`` in the middle by a process that ended (threads, gevent, solo): these go back as well.
    """

    finished: int
    checkpointed: int
    handed_back: int
    abandoned: int
    seconds: float


Event = Union[
    Abandoned,
    Started,
    Completed,
    Replayed,
    Retrying,
    HandedBack,
    DeadLettered,
    Crashed,
    Quarantined,
    LeaseTaken,
    BreakerMoved,
    Overran,
    ResultNotKept,
    StillRunning,
    StoreFailed,
    TaskLeaked,
    Drained,
]
Listener = Callable[[Event], None]
