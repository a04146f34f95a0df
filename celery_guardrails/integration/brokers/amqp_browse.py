"""Looking through a queue of RabbitMQ: what is not taken goes back where it was.

Letters are read by a consumer, which RabbitMQ serves several times as fast as single gets, and whose letters it returns to a
quorum queue in their order. (Those of more than 32 gets come back in any order, seen on 3.10: a get is a consumer of its own to a
quorum queue, and the order of consumers is that of an Erlang map, which is sorted up to 32 entries only.)
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from amqp import exceptions as amqp_errors

from ...errors import DeadLetterError, LettersReturned
from ...policy.delivery import RawMessage
from ...ports import QueuedLetter
from .amqp_declare import major_version
from .amqp_wire import make_wire, set_aside

__all__ = ["Browse", "translated"]

#: Deliveries after which a letter is renewed on RabbitMQ 4: there a quorum queue drops a message at its 20th return unless its
#: arguments say otherwise, each browse is a return, and the queue may be older than we are or a quorum queue by default.
_WORN = 10
#: Letters that the first consumer may be sent unacknowledged. Each further one may be sent twice as many: a
#: look at the first letters returns few others, and a hundred thousand held letters take a dozen consumers.
_FIRST_WINDOW = 32
_LAST_WINDOW = 32_768
#: Letters in memory above which nothing more is read before one is taken.
_HEARD = 500
#: Seconds without a delivery before the queue is asked how many it has, and before one that has none is believed in.
_PAUSE = 0.2
_END = 1.0
#: Seconds in which letters that are put back are waited for.
_BACK = 1.0


class Browse:
    """One look through a queue, on a channel and a connection of its own.

    Args:
        connection: connected; released at the end.
        queue: name.
        ahead: whether letters may be held that were not yielded yet; else each is got when it is asked for.
        timeout: seconds that RabbitMQ has for the next letter.
        renew: whether a letter that was looked at often is replaced by a copy, see :data:`_WORN`.
    """

    def __init__(self, connection: Any, queue: str, *, ahead: bool, timeout: float, renew: bool = True) -> None:
        self._connection = connection
        self._queue = queue
        self._ahead = ahead
        self._timeout = timeout
        self._renewing = renew
        self._buffer: deque[Any] = deque()
        self._consumer = ""
        self._consumers = 0
        self._window = 0
        self._held = 0
        self._held_by_consumer = 0
        self._first_tag = 0
        self._last_tag = 0
        self._closing = False
        self.channel = connection.channel()
        # By default py-amqp hands out a text where the encoding allows: not what was on the wire.
        self.channel.auto_decode = False

    def letters(self) -> Iterator[QueuedLetter]:
        """Yield the messages that are ready now, oldest first.

        Raises:
            DeadLetterError: RabbitMQ refused or did not answer.
        """
        what = f"browse queue {self._queue!r}"
        try:
            with translated(what):
                waiting = self._count()
                by_get = not (self._ahead and waiting and self._may_be_consumed())
            while waiting > 0:
                with translated(what):
                    found = self.channel.basic_get(self._queue) if by_get else self._next(waiting)
                    if found is None:
                        return
                    self._held += by_get
                    if self._is_worn(found):
                        self._renew(found)  # it comes again at the end
                        continue
                waiting -= 1
                yield QueuedLetter(_raw(found), Handle(self, found.delivery_tag))
        finally:
            self._give_back()

    def take(self, tag: int) -> None:
        """Remove a letter that was yielded.

        Raises:
            LettersReturned: RabbitMQ has closed the channel and put the letter back.
        """
        # RabbitMQ answers nothing to an ack, also not to one on a channel that it has closed: so what it has said is heard first.
        with contextlib.suppress(TimeoutError):
            while len(self._buffer) < _HEARD:
                self._connection.drain_events(timeout=0)
        self.channel.basic_ack(tag)
        self._held -= 1
        if tag >= self._first_tag:
            self._held_by_consumer -= 1

    # -- how ----------------------------------------------------------------------------------------------------------

    def _count(self) -> int:
        try:
            return int(self.channel.queue_declare(self._queue, passive=True).message_count)
        except amqp_errors.NotFound:
            return 0

    def _may_be_consumed(self) -> bool:
        """Whether the queue outlives its last consumer; RabbitMQ tells by what it refuses in a declaration.

        It compares durability first, then ``auto_delete``, then the arguments.
        """
        channel = self._connection.channel()
        try:
            channel.queue_declare(self._queue, durable=True, auto_delete=False)
        except amqp_errors.PreconditionFailed as exc:
            return "inequivalent arg 'x-" in str(exc)
        except amqp_errors.ChannelError:
            return False
        channel.close()
        return True

    def _next(self, waiting: int) -> Any:
        """Return the next delivery of so many; None where nothing is left."""
        began = time.monotonic()
        while not self._buffer:
            if self._held_by_consumer >= self._window:
                self._consume(waiting)
            try:
                self._connection.drain_events(timeout=_PAUSE)
            except TimeoutError:
                passed = time.monotonic() - began
                ready = self._count()
                if not self._buffer and passed >= _END and not ready:
                    return None
                if not self._buffer and passed >= self._timeout:
                    raise DeadLetterError(f"{ready} letters are ready, and none has come for {passed:.0f} s") from None
        return self._buffer.popleft()

    def _consume(self, waiting: int) -> None:
        """Let RabbitMQ send more, by another consumer: the limit of a quorum queue is one of each consumer, and never changes."""
        if self._consumer:
            self.channel.basic_cancel(self._consumer)
        self._consumers += 1
        self._consumer = f"browse-{self._consumers:04d}"
        self._window = min(max(_FIRST_WINDOW, 2 * self._window), _LAST_WINDOW, waiting)
        self._held_by_consumer = 0
        self._first_tag = self._last_tag + 1
        self.channel.basic_qos(0, self._window, False)
        self.channel.basic_consume(self._queue, consumer_tag=self._consumer, callback=self._delivered, on_cancel=self._cancelled)

    def _delivered(self, found: Any) -> None:
        self._last_tag = found.delivery_tag
        self._held += 1
        self._held_by_consumer += 1
        if not self._closing or self._is_worn(found):
            self._buffer.append(found)

    def _cancelled(self, tag: str) -> None:
        raise DeadLetterError(f"RabbitMQ has ended the consumer: the queue {self._queue!r} was deleted or has moved")

    def _is_worn(self, found: Any) -> bool:
        """Whether a few more browses would make RabbitMQ 4 drop the message; see :data:`_WORN`."""
        if not self._renewing:
            return False
        count = (found.properties.get("application_headers") or {}).get("x-delivery-count")
        return isinstance(count, int) and count >= _WORN and major_version(self.channel) >= 4

    def _renew(self, found: Any) -> None:
        """Replace a message by a copy that was never delivered: first the copy, confirmed, then the ack."""
        message = _raw(found)
        headers = {name: value for name, value in message.headers.items() if name != "x-delivery-count"}
        self.channel.basic_publish(
            make_wire(message, headers, set_aside(message.properties, headers)), exchange="", routing_key=self._queue
        )
        self.take(found.delivery_tag)

    def _give_back(self) -> None:
        """Return what was not taken, by closing the channel: a nack would put it to the end of a quorum queue (seen on 3.10).

        RabbitMQ says that the channel is closed before a quorum queue has what it held. Who looks next shall find it, so it is
        waited for.
        """
        self._closing = True
        with contextlib.suppress(Exception):
            if self._consumer:
                self.channel.basic_cancel(self._consumer)  # or py-amqp warns of each letter that comes in while the channel closes
                for found in filter(self._is_worn, list(self._buffer)):  # what was sent and not looked at is returned as well
                    self._renew(found)
        self._buffer.clear()
        with contextlib.suppress(Exception):
            expected = self._count() + self._held if self._held > 0 else 0
            self.channel.close()
            self._wait_for(expected)
        with contextlib.suppress(Exception):
            self._connection.release()

    def _wait_for(self, expected: int) -> None:
        """Return when the queue has so many messages ready, or after a second: others may take some meanwhile."""
        end = time.monotonic() + _BACK
        channel = self._connection.channel() if expected else None
        while channel and channel.queue_declare(self._queue, passive=True).message_count < expected and time.monotonic() < end:
            time.sleep(0.005)


@dataclass(frozen=True)
class Handle:
    """Where a letter was found."""

    browse: Browse
    tag: int

    @property
    def channel(self) -> Any:
        """The channel that holds it."""
        return self.browse.channel


def _raw(found: Any) -> RawMessage:
    properties: dict[str, Any] = dict(found.properties)
    headers: Mapping[str, Any] = properties.pop("application_headers", None) or {}
    return RawMessage(
        body=bytes(found.body or b""),  # of an empty body py-amqp makes a text
        content_type=properties.pop("content_type", None),
        content_encoding=properties.pop("content_encoding", None),
        headers=headers,
        properties=properties,
        exchange=found.delivery_info["exchange"],
        routing_key=found.delivery_info["routing_key"],
    )


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise every error as one of ours: kombu's and py-amqp's have no common base, and a dying connection raises AttributeError."""
    try:
        yield
    except DeadLetterError:
        raise
    except amqp_errors.PreconditionFailed as exc:
        raise (LettersReturned if "timed out" in str(exc) else DeadLetterError)(f"{what}: {exc!r}") from exc
    except Exception as exc:
        raise DeadLetterError(f"{what}: {exc!r}") from exc
