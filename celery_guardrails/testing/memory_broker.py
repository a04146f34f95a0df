"""A broker in memory, with the semantics of RabbitMQ's that the guard relies on."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice

from ..errors import DeadLetterError, PublishFailed
from ..policy.deadletter import DeathCertificate
from ..policy.delivery import DEAD_LETTER_HEADER, RawMessage
from ..ports import Backlog, Broker, Clock, Depth, FoundMessage, Move, Moved, QueuedLetter
from .clock import FakeClock

__all__ = ["MemoryBroker"]

_WINDOW = 256


class MemoryBroker(Broker):
    """Queues in memory; delayed messages become ready as the clock says.

    One process, any number of threads. Like RabbitMQ it puts a message that is given back where it was, keeps a queue
    for each name that a message is sent to, and refuses to lose what it has confirmed.

    Args:
        queues: the task queues that the app knows.
        dead_letter_queue: name of the dead letter queue of a task queue, with ``{queue}`` in it.
        clock: says when a delayed message is due.
        on_operation: called before and after each publish and each take, with ``"before send"``, ``"after send"``,
            ``"before take"`` and so on: raise from it to break the broker, or to die, at that very point.
        move_limit: letters that are moved at once: all are sent, then all are taken, as on RabbitMQ.
    """

    def __init__(
        self,
        queues: Iterable[str] = ("celery",),
        *,
        dead_letter_queue: str = "{queue}.dead",
        clock: Clock | None = None,
        on_operation: Callable[[str], None] | None = None,
        move_limit: int = 1,
    ) -> None:
        self.move_limit = move_limit
        self._names = {queue: dead_letter_queue.replace("{queue}", queue) for queue in queues}
        self._template = dead_letter_queue
        self._clock = clock or FakeClock()
        self._on_operation = on_operation or (lambda _: None)
        self._lock = threading.RLock()
        self._numbers = count(1)
        self._ready: dict[str, dict[int, RawMessage]] = {}
        self._held: dict[int, tuple[str, RawMessage]] = {}
        self._delayed: list[tuple[float, int, str, RawMessage]] = []
        self._closed = False

    # -- ports.Broker -----------------------------------------------------------------------------------------

    def delay(self, message: RawMessage, queue: str, seconds: float) -> None:
        """Put the message into ``queue`` after ``seconds`` of the clock.

        Raises:
            PublishFailed: the broker is closed.
        """
        self._operation("before delay")
        with self._lock:
            due = self._clock.now() + max(0.0, seconds)
            heapq.heappush(self._delayed, (due, next(self._numbers), queue, message))
        self._on_operation("after delay")

    def send(self, message: RawMessage, queue: str) -> None:
        """Put the message at the end of ``queue``.

        Raises:
            PublishFailed: the broker is closed.
        """
        self._operation("before send")
        self._put(replace(message, exchange="", routing_key=queue), queue)
        self._on_operation("after send")

    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        """Put the message, with the certificate as its header, at the end of the dead letter queue of ``queue``.

        Raises:
            PublishFailed: the broker is closed.
        """
        self._operation("before dead_letter")
        self._put(message.with_headers(**{DEAD_LETTER_HEADER: certificate.to_header()}), self.dead_letter_queue(queue))
        self._on_operation("after dead_letter")

    def restore_letter(self, message: RawMessage, queue: str) -> None:
        """Put a dead letter, as it was found, at the end of the dead letter queue of ``queue``.

        Raises:
            PublishFailed: the broker is closed.
        """
        self._operation("before restore_letter")
        self._put(message, self.dead_letter_queue(queue))
        self._on_operation("after restore_letter")

    def depth(self, queue: str) -> int:
        """Return the number of messages that are ready in ``queue``; 0 where there is no such queue."""
        with self._lock:
            self._release_due()
            return len(self._ready.get(queue, ()))

    def exists(self, queue: str) -> bool:
        """Whether the app knows it, or a message was sent to it."""
        with self._lock:
            return queue in self._names or queue in self._ready

    def queues(self) -> Mapping[str, str]:
        """Return the task queues with their dead letter queues."""
        return dict(self._names)

    def browse(self, queue: str, *, ahead: bool = True) -> Iterator[QueuedLetter]:
        """Yield the messages of a queue in order, also those that come in meanwhile; nothing is moved, nothing held."""
        last = 0
        while True:
            with self._lock:
                self._release_due()
                entries = self._ready.get(queue, {})
                window = list(islice((number for number in entries if number > last), _WINDOW))
            if not window:
                return
            for last in window:
                message = self._ready.get(queue, {}).get(last)
                if message is not None:
                    yield QueuedLetter(message, (queue, last))

    def take(self, letter: QueuedLetter) -> None:
        """Remove a letter.

        Raises:
            DeadLetterError: it is gone already.
        """
        self._operation("before take")
        queue, number = letter.handle
        with self._lock:
            if self._ready.get(queue, {}).pop(number, None) is None:
                raise DeadLetterError(f"the letter is not in {queue!r} any more: somebody else has taken it")
        self._on_operation("after take")

    def move(self, moves: Sequence[Move]) -> list[Moved]:
        """Send all messages, then take the letters of those that were sent; what became of each, in the order given."""
        errors: list[Exception | None] = []
        for move in moves:
            try:
                self.send(move.message, move.queue)
            except PublishFailed as exc:
                errors.append(exc)
            else:
                errors.append(None)
        return [Moved(False, False, error) if error else self._taken(move) for move, error in zip(moves, errors, strict=True)]

    def _taken(self, move: Move) -> Moved:
        try:
            self.take(move.letter)
        except Exception as exc:  # noqa: BLE001 - whatever on_operation raises
            return Moved(True, False, exc)
        return Moved(True, True)

    def backlog(self, queues: Iterable[str]) -> Backlog:
        """Return how much there is; it tells what is in hand, as Redis does."""
        with self._lock:
            depths = {queue: Depth(self.depth(queue)) for queue in queues}
            return Backlog(depths, delayed=len(self._delayed), held=len(self._held))

    def delayed_messages(self) -> Iterator[FoundMessage]:
        """Yield what waits for its time."""
        return (FoundMessage(message, queue, due) for due, queue, message in self.delayed())

    def held_messages(self) -> Iterator[FoundMessage]:
        """Yield what is in hand."""
        with self._lock:
            return iter([FoundMessage(message, queue) for queue, message in self._held.values()])

    def close(self) -> None:
        """Refuse everything from now on; the messages stay for the next look."""
        self._closed = True

    # -- what a publisher and a worker do with a broker --------------------------------------------------------

    def declare(self, queue: str) -> None:
        """Make a task queue known."""
        with self._lock:
            self._names.setdefault(queue, self._template.replace("{queue}", queue))

    def put(self, message: RawMessage, queue: str) -> int:
        """Put the message, as it was published, at the end of a task queue.

        Returns:
            Its number, for :meth:`receive`.

        Raises:
            PublishFailed: the broker is closed.
        """
        self._operation("before put")
        self.declare(queue)
        number = self._put(message, queue)
        self._on_operation("after put")
        return number

    def receive(self, queue: str, number: int | None = None) -> tuple[int, RawMessage] | None:
        """Take a message of a queue into hand, or None where it is not there; it is neither ready nor gone.

        Args:
            queue: name.
            number: of the message; None for the first one.

        Returns:
            The delivery's number, for :meth:`ack` and :meth:`requeue`, and the message.
        """
        with self._lock:
            self._release_due()
            entries = self._ready.get(queue)
            chosen = next(iter(entries or ()), None) if number is None else number
            if not entries or chosen is None or chosen not in entries:
                return None
            message = entries.pop(chosen)
            self._held[chosen] = (queue, message)
            return chosen, message

    def ack(self, number: int) -> None:
        """Remove a message in hand for good."""
        with self._lock:
            self._held.pop(number, None)

    def requeue(self, number: int) -> None:
        """Put a message in hand back where it was in its queue, as a broker does for a consumer that vanished."""
        with self._lock:
            held = self._held.pop(number, None)
            if held is not None:
                queue, message = held
                entries = {**self._ready.get(queue, {}), number: message}
                self._ready[queue] = dict(sorted(entries.items()))

    # -- what a test wants to see ---------------------------------------------------------------------------------

    def messages(self, queue: str) -> list[RawMessage]:
        """Return what is ready in a queue, the oldest first."""
        with self._lock:
            self._release_due()
            return list(self._ready.get(queue, {}).values())

    def waiting(self) -> list[tuple[int, str, RawMessage]]:
        """Return number, queue and message of what is ready in the task queues, the oldest first."""
        with self._lock:
            self._release_due()
            found = [(number, queue, message) for queue in self._names for number, message in self._ready.get(queue, {}).items()]
            return sorted(found, key=lambda entry: entry[0])

    def delayed(self) -> list[tuple[float, str, RawMessage]]:
        """Return due time (unix, in seconds), queue and message of what waits for its time, the next one first."""
        with self._lock:
            self._release_due()
            return [(due, queue, message) for due, _, queue, message in sorted(self._delayed, key=lambda entry: entry[:2])]

    def dead_letter_queue(self, queue: str) -> str:
        """Return the name of the dead letter queue of a task queue."""
        return self._names.get(queue) or self._template.replace("{queue}", queue)

    @property
    def next_due(self) -> float | None:
        """Unix time in seconds at which the next delayed message becomes ready, or None where none waits."""
        with self._lock:
            return self._delayed[0][0] if self._delayed else None

    def _operation(self, point: str) -> None:
        if self._closed:
            raise PublishFailed("the broker is closed")
        self._on_operation(point)

    def _put(self, message: RawMessage, queue: str) -> int:
        with self._lock:
            self._release_due()
            number = next(self._numbers)
            self._ready.setdefault(queue, {})[number] = message
            return number

    def _release_due(self) -> None:
        while self._delayed and self._delayed[0][0] <= self._clock.now():
            _, _, queue, message = heapq.heappop(self._delayed)
            self._ready.setdefault(queue, {})[next(self._numbers)] = message
