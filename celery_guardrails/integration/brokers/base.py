"""What both brokers share: their connection, their fork safety, and what of a message may be published again."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from kombu.common import Broadcast

from ...config import Settings
from ...policy.deadletter import DeathCertificate
from ...policy.delivery import DEAD_LETTER_HEADER, ORIGINAL_PREFIX, TRAVEL_HEADER, RawMessage, of_one_delivery
from ...ports import Move, Moved, QueuedLetter

__all__ = ["KombuBroker", "body_bytes", "dead_headers", "letter_headers", "live_headers", "without_history"]

#: Sender-selected distribution: RabbitMQ would copy the message to these queues a second time.
_ROUTING_HEADERS = frozenset({"CC", "BCC"})

SessionT = TypeVar("SessionT")


def body_bytes(message: RawMessage) -> bytes:
    """Return the body as bytes, also where py-amqp's ``auto_decode`` has made a text of it."""
    body: Any = message.body
    if isinstance(body, str):
        return body.encode(message.content_encoding or "utf-8")
    return bytes(body)


def live_headers(message: RawMessage) -> dict[str, Any]:
    """Return the headers for a message that is to be consumed again, without those that belong to its last delivery."""
    return {name: value for name, value in message.headers.items() if not of_one_delivery(name) and name not in _ROUTING_HEADERS}


def letter_headers(message: RawMessage) -> dict[str, Any]:
    """Return the headers for a copy in a dead letter queue: all that it has, but none that would make copies elsewhere."""
    headers = {name: value for name, value in message.headers.items() if name not in _ROUTING_HEADERS}
    for name in _ROUTING_HEADERS & message.headers.keys():
        headers[ORIGINAL_PREFIX + name.lower()] = message.headers[name]
    return headers


def dead_headers(message: RawMessage, certificate: DeathCertificate) -> dict[str, Any]:
    """Return the headers for a dead letter: all of the original, and why it is dead."""
    return {**letter_headers(message), DEAD_LETTER_HEADER: certificate.to_header()}


def without_history(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers without the attempts that failed before: the very same where they tell of none."""
    travel = headers.get(TRAVEL_HEADER)
    if not isinstance(travel, Mapping) or "history" not in travel:
        return headers
    return {**headers, TRAVEL_HEADER: {name: value for name, value in travel.items() if name != "history"}}


class KombuBroker(ABC, Generic[SessionT]):
    """A broker of a Celery app; thread-safe, and safe to carry over a fork.

    Args:
        app: the Celery app.
        settings: ours.
        timeout: seconds any single operation may take.
    """

    #: See :class:`~celery_guardrails.ports.Broker`: enough that the broker's answers are waited for once in many letters.
    move_limit = 100

    def __init__(self, app: Any, settings: Settings, *, timeout: float = 10.0) -> None:
        self.app = app
        self.settings = settings
        self.timeout = timeout
        self._sessions: dict[int, SessionT] = {}

    @abstractmethod
    def _new_session(self) -> SessionT:
        """Return a session of this process, not connected yet."""

    def _abandon(self, session: SessionT) -> None:
        """Let go of a session that the parent process owns, without a word to the broker."""

    def _session(self) -> SessionT:
        # By pid and not by a fork hook: a lock that another thread held at the fork stays locked for ever in the child,
        # so the child gets a session, and with it a lock, of its own.
        pid = os.getpid()
        session = self._sessions.get(pid)
        if session is None:
            session = self._sessions.setdefault(pid, self._new_session())
            for owner in [owner for owner in list(self._sessions) if owner != pid]:
                if (inherited := self._sessions.pop(owner, None)) is not None:
                    self._abandon(inherited)
        return session

    def _open_connection(self, **transport_options: Any) -> Any:
        """Return a connected :class:`kombu.Connection` that belongs to nobody else's pool."""
        timeout = min(self.app.conf.broker_connection_timeout or self.timeout, self.timeout)
        connection = self.app.connection_for_write(transport_options=transport_options, heartbeat=0, connect_timeout=timeout)
        try:
            # At least once over the failover list; kombu takes max_retries=0 for "for ever".
            connection.ensure_connection(max_retries=max(1, len(connection.alt) - 1), interval_start=0, interval_step=0.1, timeout=timeout)
        except BaseException:
            connection.release()
            raise
        return connection

    @property
    def namespace(self) -> str:
        """Prefix of keys of ours."""
        return self.settings.namespace or self.app.main or "celery"

    def dead_letter_queue(self, queue: str) -> str:
        """Return the name of the dead letter queue of a task queue."""
        return self.settings.dead_letter_queue.format(queue=queue)

    def queues(self) -> Mapping[str, str]:
        """Return the task queues that the app knows, each with the name of its dead letter queue."""
        known = self.app.amqp.queues
        declared = {**known, **known.consume_from}
        return {queue.name: self.dead_letter_queue(queue.name) for queue in declared.values() if not isinstance(queue, Broadcast)}

    @abstractmethod
    def delay(self, message: RawMessage, queue: str, seconds: float) -> None:
        """Put the message into ``queue`` after ``seconds``; it waits in the broker."""

    @abstractmethod
    def send(self, message: RawMessage, queue: str) -> None:
        """Put the message into ``queue`` now."""

    @abstractmethod
    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        """Put the message, with the certificate as its header, into the dead letter queue of ``queue``."""

    @abstractmethod
    def restore_letter(self, message: RawMessage, queue: str) -> None:
        """Put a dead letter, as it was found, into the dead letter queue of ``queue``."""

    @abstractmethod
    def declare(self, queues: Iterable[str] | None = None) -> None:
        """Declare what dead letters and delays of these queues (default: all the app knows) need; for a worker's start."""

    @abstractmethod
    def depth(self, queue: str) -> int:
        """Return the number of messages that wait in ``queue``; 0 where there is no such queue."""

    @abstractmethod
    def exists(self, queue: str) -> bool:
        """Whether there is such a queue: something waits in it, or somebody has declared it."""

    @abstractmethod
    def browse(self, queue: str, *, ahead: bool = True) -> Iterator[QueuedLetter]:
        """Yield the messages of a queue in order; those not taken when the iterator is closed stay where they were."""

    @abstractmethod
    def take(self, letter: QueuedLetter) -> None:
        """Remove a letter that the running :meth:`browse` yielded."""

    @abstractmethod
    def move(self, moves: Sequence[Move]) -> list[Moved]:
        """Publish each message and remove its letter, never the other way round; what became of each, in the order given."""

    @abstractmethod
    def close(self) -> None:
        """Close connections of this process; the next use opens new ones."""
