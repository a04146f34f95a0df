"""What the doctor judges by: plain values, collected by :mod:`celery_guardrails.integration.examination`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AppFacts", "Facts", "LetterFacts", "QueueFacts", "RabbitFacts", "RedisFacts", "StoreFacts", "TaskFacts"]


@dataclass(frozen=True)
class TaskFacts:
    """One task of the app.

    Args:
        name: of the task.
        guarded: whether the guard is around it.
        late: acknowledged when it has ended, not when it is taken.
        requeues_losses: goes back to its queue when its process dies, as often as it likes (plain tasks).
        rejects_failures: a failure or a time limit rejects the message instead of acknowledging it (plain tasks).
        limit: seconds after which it is ended, hard limit before soft; None without.
        loops: its code uses ``resume()``, so it hands over.
        retention: seconds its completion is remembered.
        longest_wait: seconds between two of its attempts at most.
        waits: seconds that all its attempts may wait together, up to its deadline.
        queue: where it is routed; None where that cannot be told.
        atomic_refused: why the store cannot run it, or None.
        resource_refused: why its resource is none, or None.
    """

    name: str
    guarded: bool = True
    late: bool = True
    requeues_losses: bool = False
    rejects_failures: bool = False
    limit: float | None = None
    loops: bool = False
    retention: float = 86400.0
    longest_wait: float = 600.0
    waits: float = 1623.0
    queue: str | None = None
    atomic_refused: str | None = None
    resource_refused: str | None = None


@dataclass(frozen=True)
class AppFacts:
    """What the configuration says.

    Args:
        broker: kind of the broker: ``"redis"``, ``"amqp"`` or another driver's name.
        broker_url: without its password.
        settings_prefix: what stands before a setting's name in a settings module (``"CELERY_"``), or None: ``app.conf.``.
        guards_by_default: the app's own task class is guarded.
        versions: of the libraries, (major, minor, patch).
        lease_seconds, hand_over_seconds, max_crashes, dead_letter_exchange, delay_kind: settings of ours.
        transport_options: ``broker_transport_options`` is set.
        confirms: RabbitMQ confirms what Celery publishes.
        persistent: messages survive a restart of the broker.
        publish_retries: ``task_publish_retry``.
        prefetch: ``worker_prefetch_multiplier``.
        accepts_pickle: those of ``accept_content`` and ``result_accept_content`` that allow it.
        result_expires: seconds that the result backend keeps a result; None for ever.
        visibility_timeout: seconds (Redis).
        sweep_seconds: that kombu lets pass between two looks for messages of dead workers (Redis).
    """

    broker: str = "amqp"
    broker_url: str = "amqp://"
    settings_prefix: str | None = None
    guards_by_default: bool = False
    versions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lease_seconds: float = 60.0
    hand_over_seconds: float | None = 1200.0
    max_crashes: int = 3
    dead_letter_exchange: str = "guardrails.dlx"
    delay_kind: str = "quorum"
    transport_options: bool = False
    confirms: bool = True
    persistent: bool = True
    publish_retries: bool = True
    prefetch: int = 4
    accepts_pickle: tuple[str, ...] = ()
    result_expires: float | None = 86400.0
    visibility_timeout: float = 3600.0
    sweep_seconds: float = 100.0

    def assign(self, name: str, value: Any) -> str:
        """Return the line that sets a setting of Celery's or ours."""
        if self.settings_prefix is None:
            return f"app.conf.{name} = {value!r}"
        return f"{self.settings_prefix}{name.upper()} = {value!r}"

    def assign_option(self, name: str, value: Any) -> str:
        """Return the line that sets one of ``broker_transport_options`` and leaves the others."""
        whole = "app.conf.broker_transport_options" if self.settings_prefix is None else f"{self.settings_prefix}BROKER_TRANSPORT_OPTIONS"
        others = f"**{whole}, " if self.transport_options else ""
        return f'{whole} = {{{others}"{name}": {value!r}}}'


@dataclass(frozen=True)
class QueueFacts:
    """A queue of RabbitMQ.

    Args:
        name: of the queue.
        exists: whether there is one.
        arguments: that it was declared with; None where the broker does not say.
        durable: survives a restart of the broker.
        auto_delete: goes with its last consumer.
        policy: what policies add, by their own names (``dead-letter-exchange``); None where that is not known.
    """

    name: str
    exists: bool = True
    arguments: Mapping[str, Any] | None = field(default_factory=dict)
    durable: bool = True
    auto_delete: bool = False
    policy: Mapping[str, Any] | None = None

    @property
    def known(self) -> bool:
        """Whether it is there and its arguments can be judged."""
        return self.exists and self.arguments is not None

    @property
    def quorum(self) -> bool:
        """Whether it is a quorum queue."""
        return bool(self.get("x-queue-type") == "quorum")

    def get(self, argument: str) -> Any:
        """Return what holds: the argument, or else the policy's."""
        found = (self.arguments or {}).get(argument)
        return found if found is not None else (self.policy or {}).get(argument.removeprefix("x-"))


@dataclass(frozen=True)
class RabbitFacts:
    """What RabbitMQ has.

    Args:
        version: (major, minor); zeros where it does not say.
        vhost: of the app.
        queues: the app's task queues, each with its dead letter queue.
        exchanges: those that queues name as DLX, and whether they are there.
        levels: the queues that delayed messages pass.
        expected_levels: what ours are declared with, by name.
    """

    version: tuple[int, int] = (3, 10)
    vhost: str = "/"
    queues: tuple[tuple[QueueFacts, QueueFacts], ...] = ()
    exchanges: Mapping[str, bool] = field(default_factory=dict)
    levels: tuple[QueueFacts, ...] = ()
    expected_levels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RedisFacts:
    """One server of Redis or Valkey, as ``INFO`` tells of it.

    Args:
        roles: what it is to the app: ``"broker"``, ``"store"``, or both.
        address: for people.
        run_id: one server, whichever way it was reached.
        version: (major, minor).
        policy: ``maxmemory-policy``.
        maxmemory: bytes; 0 for no limit.
        used: bytes.
        persists: whether a restart finds the data again; None where that is not known (``CONFIG`` is forbidden).
        refuses_writes: why it does, or None.
        replicas: that are connected.
        waits_for_replicas: ``min-replicas-to-write`` is set.
    """

    roles: tuple[str, ...]
    address: str = "127.0.0.1:6379"
    run_id: str = ""
    version: tuple[int, ...] = (7, 0)
    policy: str = "noeviction"
    maxmemory: int = 0
    used: int = 0
    persists: bool | None = True
    refuses_writes: str | None = None
    replicas: int = 0
    waits_for_replicas: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"Redis {self.address} ({' and '.join(self.roles)})"


@dataclass(frozen=True)
class StoreFacts:
    """The store of leases and completion records.

    Args:
        url: without its password.
        error: why it cannot be used, or None.
        one_process: only the process that opened it sees it.
        latency: seconds of a round trip.
        skew: seconds that its clock is ahead of this host's.
    """

    url: str
    error: str | None = None
    one_process: bool = False
    latency: float = 0.0
    skew: float = 0.0


@dataclass(frozen=True)
class LetterFacts:
    """The dead letters of one queue.

    Args:
        queue: the dead letter queue.
        count: letters that wait there.
        oldest: ISO 8601, or None.
    """

    queue: str
    count: int
    oldest: str | None = None


@dataclass(frozen=True)
class Facts:
    """All that is known.

    Args:
        app: the configuration.
        tasks: of the app, without Celery's own.
        broker_error: why the broker cannot be asked, or None.
        broker_unfit: the same for good: its transport is none that the guard can use.
        rabbit: None where the broker is no RabbitMQ, or away.
        redis: servers that are broker or store.
        store: None where it was not asked.
        letters: None where they could not be counted.
    """

    app: AppFacts = field(default_factory=AppFacts)
    tasks: tuple[TaskFacts, ...] = ()
    broker_error: str | None = None
    broker_unfit: str | None = None
    rabbit: RabbitFacts | None = None
    redis: tuple[RedisFacts, ...] = ()
    store: StoreFacts | None = None
    letters: tuple[LetterFacts, ...] = ()
