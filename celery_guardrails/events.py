"""What happens, as values: logs, metrics and Sentry listen to these and to nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

from .policy.deadletter import DeathCertificate

__all__ = [
    "BreakerMoved",
    "Completed",
    "Crashed",
    "DeadLettered",
    "Event",
    "HandedBack",
    "LeaseTaken",
    "Listener",
    "Replayed",
    "ResultNotKept",
    "Retrying",
    "Started",
    "StoreFailed",
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


Event = Union[
    Started,
    Completed,
    Replayed,
    Retrying,
    HandedBack,
    DeadLettered,
    Crashed,
    LeaseTaken,
    BreakerMoved,
    ResultNotKept,
    StoreFailed,
]
Listener = Callable[[Event], None]
