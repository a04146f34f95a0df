"""What the guard needs of the outside world, as protocols; the implementations live in upper rooms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .policy.breaker import Condition
from .policy.classification import Classification
from .policy.deadletter import DeathCertificate
from .policy.delivery import RawMessage
from .policy.lease import Claim, Record, RecordState, StoredResult
from .policy.resource import Ask, Resource, ResourceView, Tell

__all__ = [
    "Backlog",
    "Broker",
    "Classifier",
    "Clock",
    "CountingStore",
    "Depth",
    "FoundMessage",
    "IdempotencyStore",
    "Move",
    "Moved",
    "OpenBroker",
    "QueuedLetter",
    "ResourceStore",
    "ResultCodec",
    "Room",
    "Transaction",
    "TransactionalStore",
]


class Clock(Protocol):
    """Time and chance, so that tests and simulations can hand in their own."""

    def now(self) -> float:
        """Return unix time in seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def fraction(self) -> float:
        """Return a uniform random number in ``[0, 1)``."""


class IdempotencyStore(Protocol):
    """Leases and completion records; one atomic step and one round trip a method.

    Every method raises :class:`~celery_guardrails.errors.StoreUnavailable` when the store does not answer, and
    nothing else. The store's own clock decides. A holder may repeat any call whose answer was lost.
    The semantics are the functions of :mod:`celery_guardrails.policy.lease`.

    ``ask`` and ``tell`` are for the resource that the task calls, and come only to a store that is a :class:`ResourceStore`
    too. What is asked and told belongs into the same step and the same round trip, where the store can do that.
    """

    def claim(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        lease: float,
        owner: str = "",
        attempts: int = 0,
        beside: bool = False,
        ask: Ask | None = None,
    ) -> Claim:
        """Try to take the lease of ``key`` for ``lease`` seconds; ``attempts`` are those the message knows of.

        ``beside``: others may run beside it, so losing this holder charges no crash but notes a suspicion.

        With ``ask`` the lease is only given if the resource lets the execution in; else the claim is refused and nothing changes.
        """

    def complete(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        fence: int,
        result: StoredResult,
        retention: float,
        tell: Tell | None = None,
    ) -> bool:
        """Mark completed and keep the record ``retention`` seconds; False when another holder has the key."""

    def release(
        self, key: str, *, holder: str, attempts: int = 0, crashes: int = 0, drop: bool = False, tell: Tell | None = None
    ) -> Record | None:
        """Give the lease back and return the record as it then is; None where the lease was not this holder's, or dropped."""

    def reset(self, key: str, *, holder: str | None = None, tell: Tell | None = None) -> bool:
        """Forget the charges of a key that is given up but keep its steps; False where it is not this holder's (None: nobody's)."""

    def renew(self, leases: Iterable[tuple[str, str]], lease: float) -> list[bool]:
        """Extend many leases, given as (key, holder), in one call; False where the lease is not the holder's."""

    def save_step(self, key: str, *, holder: str, name: str, value: StoredResult) -> bool:
        """Remember a recovery point as done; False where the lease is not the holder's any more."""

    def lookup(self, key: str) -> Record | None:
        """Return the record without touching it."""

    def forget(self, key: str) -> bool:
        """Drop the record of a key whatever its state; whether there was one."""

    def leases(self) -> Iterator[tuple[str, Record]]:
        """Yield every key that is leased now, with its record, in no order and without touching any; may take many round trips."""

    def break_lease(self, key: str) -> Record | None:
        """Take the lease from its holder: the fence rises, nothing is charged; the record as it was, None where there was no lease."""

    def prune(self, limit: int) -> int:
        """Delete up to ``limit`` records whose time is over and return how many; 0 where they vanish by themselves."""

    def now(self) -> float:
        """Return unix time in seconds by the store's own clock."""

    def ping(self) -> None:
        """Do nothing, but fail if the store is away."""

    def close(self) -> None:
        """Close connections."""


class Room(Protocol):
    """The place where a worker's tasks run side by side, and where one can be alone.

    ``holder`` is that of a delivery. Nothing here blocks but :meth:`alone`.
    """

    def shared(self) -> bool:
        """Whether several may run at a time; once true it stays so."""

    def enter(self, holder: str) -> bool:
        """Come in to run; False where somebody is alone in there, or wants to be."""

    def alone(self, holder: str, seconds: float) -> bool:
        """Let nobody else in and wait for all others to leave; False where they have not after so long: then it is one of them."""

    def leave(self, holder: str) -> bool:
        """Go, whether inside or not; True where it was or wanted to be alone."""


@runtime_checkable
class ResourceStore(Protocol):
    """What a store has besides that keeps the state of resources for the fleet.

    The semantics are the functions of :mod:`celery_guardrails.policy.resource`; slots are leases of their own. Every method
    raises :class:`~celery_guardrails.errors.StoreUnavailable` when the store does not answer, and nothing else.
    """

    def tell(self, tell: Tell, *, holder: str) -> None:
        """Tell a resource how an execution went, and give its slot back; a slot that was given back already is none."""

    def hold(self, slots: Iterable[tuple[str, str]], lease: float) -> None:
        """Extend many slots, given as (name of the resource, holder), in one call, and the probes that they are."""

    def view(self, resources: Iterable[Resource]) -> list[ResourceView]:
        """Return resources as they stand now, in the order given, in one call, changing nothing."""

    def force(self, name: str, condition: Condition | None, seconds: float) -> None:
        """Put a breaker open or closed for so many seconds; None leaves it to itself again."""


@runtime_checkable
class CountingStore(Protocol):
    """What a store has besides that can say how many records it keeps; without it an audit does not count completions."""

    def census(self) -> Iterator[Mapping[RecordState, int]]:
        """Yield how many live records of users' keys are in each state, a small part of the store at a time; their sums are the answer.

        It holds nothing up and changes nothing. What others write meanwhile may be counted or not.

        Raises:
            StoreUnavailable: the store did not answer.
        """


class Transaction(Protocol):
    """A database transaction in which a task's body runs."""

    def complete(self, key: str, *, holder: str, fingerprint: str | None, fence: int, result: StoredResult, retention: float) -> bool:
        """As :meth:`IdempotencyStore.complete`, but it takes effect when the transaction commits, and only then."""


@runtime_checkable
class TransactionalStore(Protocol):
    """What a store has besides that keeps its records where the tasks' own data is (``atomic=True``)."""

    def transaction(self, database: str | None) -> AbstractContextManager[Transaction]:
        """Begin a transaction: committed when the block ends, rolled back when it raises.

        Args:
            database: what the task's ``atomic`` names, or None for the store's own.

        Raises:
            GuardrailsConfigError: the named database is not the one that holds the records.
        """


class ResultCodec(Protocol):
    """Serialises results as the app's result backend would."""

    def encode(self, value: Any, task_id: str) -> StoredResult:
        """Serialise; a value that cannot be kept gives a result without a value, never an error."""

    def decode(self, result: StoredResult | None) -> Any:
        """Restore the value; None where it was not kept."""

    def pack(self, value: Any) -> StoredResult:
        """Serialise what the guard itself must read again, as JSON, whatever the app's serializer is.

        Raises:
            Exception: of the serializer, where JSON cannot hold it.
        """

    def unpack(self, kept: StoredResult) -> Any:
        """Restore what :meth:`pack` made."""


class Classifier(Protocol):
    """Says what kind of failure an exception is."""

    def __call__(self, exc: BaseException) -> Classification:
        """Classify."""


@dataclass(frozen=True)
class QueuedLetter:
    """A message found in a queue while browsing, not yet taken.

    Args:
        message: byte for byte.
        handle: the broker's own handle, for :meth:`Broker.take`.
        archived: where it lies in an archive: its identifier there, and its state.
    """

    message: RawMessage
    handle: Any
    archived: tuple[str, str] | None = None


@dataclass(frozen=True)
class Move:
    """A letter that is to leave the queue it was found in for another.

    Args:
        letter: that the running :meth:`Broker.browse` yielded.
        message: that takes its place.
        queue: where that goes.
    """

    letter: QueuedLetter
    message: RawMessage
    queue: str


@dataclass(frozen=True)
class Moved:
    """What became of a :class:`Move`.

    Moved is what was sent and taken. Neither: it is where it was. Sent only: it is in both queues. Taken only: it was no longer
    there, for somebody else has taken it, and nothing was sent.

    Args:
        sent: the message is safe in its new queue.
        taken: the letter is out of its old one.
        error: why not both.
    """

    sent: bool
    taken: bool
    error: Exception | None = None


class Broker(Protocol):
    """The few things the guard does with a broker besides what Celery does.

    Every publish is confirmed and, where the broker can, mandatory: it raises
    :class:`~celery_guardrails.errors.PublishFailed` unless the message is safe in its queue.
    """

    #: Letters that one :meth:`move` had best be given at most: where it is no atomic step, a process that is killed in it leaves
    #: so many in both queues.
    move_limit: int

    def delay(self, message: RawMessage, queue: str, seconds: float) -> None:
        """Put the message into ``queue`` after ``seconds``; it waits in the broker."""

    def send(self, message: RawMessage, queue: str) -> None:
        """Put the message into ``queue`` now."""

    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        """Put the message, with the certificate as its header, into the dead letter queue of ``queue``."""

    def restore_letter(self, message: RawMessage, queue: str) -> None:
        """Put a dead letter, as :meth:`browse` has found it, into the dead letter queue of ``queue``."""

    def depth(self, queue: str) -> int:
        """Return the number of messages that wait in ``queue``; 0 where there is no such queue."""

    def exists(self, queue: str) -> bool:
        """Whether there is such a queue: something waits in it, or somebody has declared it."""

    def queues(self) -> Mapping[str, str]:
        """Return the task queues that the app knows, each with the name of its dead letter queue."""

    def browse(self, queue: str, *, ahead: bool = True) -> Iterator[QueuedLetter]:
        """Yield the messages of a queue in order; those not taken when the iterator is closed stay where they were.

        Args:
            queue: name.
            ahead: whether the broker may hold messages that were not asked for yet, and such as come in meanwhile: nobody else
                sees them until the iterator is closed.
        """

    def take(self, letter: QueuedLetter) -> None:
        """Remove a letter that the running :meth:`browse` yielded."""

    def move(self, moves: Sequence[Move]) -> list[Moved]:
        """Publish each message and remove its letter, never the other way round; what became of each, in the order given.

        Raises nothing for a broker that refuses or does not answer: that is told of the letters it befell.
        """

    def close(self) -> None:
        """Close connections."""


@dataclass(frozen=True)
class Depth:
    """A queue from outside.

    Args:
        ready: messages that wait in it for a consumer.
        consumers: that it has; None where the broker does not tell.
        counted: whether to look at a message is to deliver it, and deliveries are counted (a quorum queue).
    """

    ready: int = 0
    consumers: int | None = None
    counted: bool = False


@dataclass(frozen=True)
class Backlog:
    """What a broker has, by its own counts; what it does not tell is None.

    Args:
        queues: the queues that were asked for.
        delayed: messages that wait for their time, of all queues.
        overdue: of these, whose time has come and nobody has moved them.
        overdue_seconds: for how long the first of them.
        held: messages that consumers have and did not acknowledge, of every app that shares the broker.
        unrouted: messages whose time has come and whose queue is not there any more.
    """

    queues: Mapping[str, Depth]
    delayed: int = 0
    overdue: int | None = None
    overdue_seconds: float = 0.0
    held: int | None = None
    unrouted: int = 0


@dataclass(frozen=True)
class FoundMessage:
    """A message that somebody saw in the broker; it is where it was.

    Args:
        message: byte for byte.
        queue: it waits for, or came from; "" where that cannot be told.
        due: unix time in seconds at which its time comes; None where the broker does not tell.
    """

    message: RawMessage
    queue: str = ""
    due: float | None = None


@runtime_checkable
class OpenBroker(Protocol):
    """What a broker has besides that can be audited. Nothing here moves a message.

    Every method raises :class:`~celery_guardrails.errors.PublishFailed` or :class:`~celery_guardrails.errors.DeadLetterError`
    where the broker does not answer.
    """

    def backlog(self, queues: Iterable[str]) -> Backlog:
        """Return how much there is, in few round trips."""

    def delayed_messages(self) -> Iterator[FoundMessage]:
        """Yield what waits for its time, of every queue; those that are farthest from their queue first."""

    def held_messages(self) -> Iterator[FoundMessage]:
        """Yield what consumers hold, if the broker shows it; nothing where :attr:`Backlog.held` is None."""
