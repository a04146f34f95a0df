"""RabbitMQ: every publish mandatory and confirmed, delays in levels of TTL queues."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from amqp import Message
from amqp import exceptions as amqp_errors
from kombu.common import Broadcast

from ...errors import DeadLetterError
from ...policy.deadletter import DeathCertificate
from ...policy.delivery import DEAD_LETTER_HEADER, ORIGINAL_PREFIX, RawMessage
from ...ports import QueuedLetter
from . import delays
from .amqp_declare import count_ready, ensure_dead_letters, ensure_queue, major_version
from .amqp_session import Missing, Session
from .base import KombuBroker, body_bytes, dead_headers, letter_headers, live_headers, without_history

__all__ = ["AmqpBroker"]

logger = logging.getLogger("celery_guardrails.broker")

#: Properties of AMQP that travel with a copy; the content type and encoding and the headers are set apart.
_PROPERTIES = frozenset(name for name, _ in Message.PROPERTIES) - {"content_type", "content_encoding", "application_headers"}
#: Properties a waiting or dead copy cannot carry: an expiration would expire it, RabbitMQ refuses a user_id that is not the
#: connection's own, a transient message would not outlive a restart of the broker.
_UNSAFE_PROPERTIES = ("expiration", "user_id", "delivery_mode")
#: Seconds for which a binding that was made is believed in. Its queue may be deleted and declared again meanwhile.
_BINDING_TRUST = 10.0
#: Deliveries after which a letter is renewed on RabbitMQ 4: there a quorum queue drops a message at its 20th return unless its
#: arguments say otherwise, each browse is a return, and the queue may be older than we are or a quorum queue by default.
_WORN = 10
#: Traceback and message of a certificate are cut to so many characters until the headers fit a frame.
_CUTS = (4096, 512, 0)
#: Bytes of the headers' frame that a live message's history leaves free, for the certificate it may get one day.
_CERTIFICATE_ROOM = 24_576


class AmqpBroker(KombuBroker[Session]):
    """The broker port on RabbitMQ through py-amqp."""

    def _new_session(self) -> Session:
        return Session(self._connect, self.timeout)

    def _abandon(self, session: Session) -> None:
        session.abandon()

    def _connect(self) -> Any:
        connection = self._open_connection(confirm_publish=True)
        # The timeout of every read and write from here on; queue.declare and its like take none of their own.
        connection.connection.sock.settimeout(self.timeout)
        return connection

    # -- publishing

    def send(self, message: RawMessage, queue: str) -> None:
        """Put the message into ``queue`` now, through the default exchange; declare the queue where it is missing."""
        properties = {"delivery_mode": 2, **{k: v for k, v in message.properties.items() if v is not None and k != "user_id"}}
        headers = live_headers(message)
        session = self._session()

        def operation() -> None:
            wire = _live_wire(message, headers, properties, session)
            _publish_or_repair(session, wire, ("", queue), lambda: self._ensure_queue(session, queue))

        session.run(f"send to queue {queue!r}", operation)

    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        """Put the message into the dead letter queue of ``queue``, through the DLX; declare both where missing."""
        headers = dead_headers(message, certificate)
        properties = _set_aside(message.properties, headers)
        what = f"dead-letter from queue {queue!r}"
        session = self._session()

        def repair() -> None:
            self._ensure_dead_letters(session, queue)

        def operation() -> None:
            wire = _fitting(message, headers, properties, certificate, session.header_limit())
            _publish_or_repair(session, wire, (self.settings.dead_letter_exchange, queue), repair)

        session.run(what, operation)

    def restore_letter(self, message: RawMessage, queue: str) -> None:
        """Put a dead letter, as it was found, into the dead letter queue of ``queue``, through the DLX; declare both where missing."""
        headers = letter_headers(message)
        wire = _wire(message, headers, _set_aside(message.properties, headers))
        session = self._session()

        def operation() -> None:
            target = (self.settings.dead_letter_exchange, queue)
            _publish_or_repair(session, wire, target, lambda: self._ensure_dead_letters(session, queue))

        session.run(f"restore a dead letter of queue {queue!r}", operation)

    def delay(self, message: RawMessage, queue: str, seconds: float) -> None:
        """Put the message into ``queue`` after ``seconds``, rounded up to a quarter of a second, at most 48 days.

        Once this returns the message is safe in a durable queue; with ``guardrails_delay_queue_type = "quorum"`` each hop
        from level to level is confirmed as well.
        """
        if seconds <= delays.TICK:
            self.send(message, queue)
            return
        headers = live_headers(message)
        properties = _set_aside(message.properties, headers)
        session = self._session()

        def operation() -> None:
            wire = _live_wire(message, headers, properties, session)
            self._ensure_delivery(session, queue)
            target = delays.address(self.settings.delay_queue_type, delays.ticks(seconds), queue)
            _publish_or_repair(session, wire, target, lambda: self._declare_levels(session))

        session.run(f"delay for queue {queue!r}", operation)

    # -- declaring

    def declare(self, queues: Iterable[str] | None = None) -> None:
        """Declare delay levels, DLX and DLQs, and bind the queues that exist to the delivery of delays."""
        session = self._session()
        names = list(self.queues() if queues is None else queues)

        def operation() -> None:
            self._declare_levels(session)
            for queue in names:
                self._ensure_dead_letters(session, queue)
                with contextlib.suppress(amqp_errors.NotFound):
                    self._bind_delivery(session, queue)

        session.run("declare", operation)
        self._redirect_unrouted({delays.queue_word(name): name for name in names})

    def _declare_levels(self, session: Session) -> None:
        kind = self.settings.delay_queue_type
        ensure_queue(session.scratch, delays.UNROUTED, quorum=kind == "quorum")
        with session.scratch() as channel:
            delays.declare_levels(channel, kind)

    def _ensure_delivery(self, session: Session, queue: str) -> None:
        """See to it that the target queue exists and gets what arrives for it."""
        if time.monotonic() - session.bound.get(queue, float("-inf")) < _BINDING_TRUST:
            return
        try:
            self._bind_delivery(session, queue)
        except amqp_errors.NotFound:
            self._ensure_queue(session, queue)
            self._declare_levels(session)
            self._bind_delivery(session, queue)

    def _bind_delivery(self, session: Session, queue: str) -> None:
        with session.scratch() as channel:
            channel.queue_bind(queue, delays.DELIVER, delays.binding_key(queue))
        session.bound[queue] = time.monotonic()

    def _ensure_queue(self, session: Session, queue: str) -> None:
        """Declare a task queue, as Celery would, but only where there is none."""
        if count_ready(session.scratch, queue) is not None:
            return
        known = self.app.amqp.queues
        entity = known.aliases.get(queue) or known.get(queue)
        if entity is None or isinstance(entity, Broadcast):
            entity = known.new_missing(queue)
        try:
            with session.scratch() as channel:
                entity.bind(channel).declare()
        except amqp_errors.PreconditionFailed:
            if count_ready(session.scratch, queue) is None:  # another process was not just quicker
                raise

    def _ensure_dead_letters(self, session: Session, queue: str) -> None:
        ensure_dead_letters(
            session.scratch,
            exchange=self.settings.dead_letter_exchange,
            queue=queue,
            dead=self.dead_letter_queue(queue),
            quorum=self.app.conf.get("task_default_queue_type") == "quorum",
        )

    def _redirect_unrouted(self, words: Mapping[str, str]) -> None:
        """Send what waited for a queue that was deleted, now that it is there again."""
        if not self.depth(delays.UNROUTED):
            return
        others: Counter[str] = Counter()
        for letter in self.browse(delays.UNROUTED):
            word = letter.message.routing_key.split(".", delays.LEVELS)[-1]
            if word in words:
                self.send(letter.message, words[word])
                self.take(letter)
            else:
                others[word] += 1
        for word, count in others.items():
            logger.warning("%d delayed messages wait in %s for queue %r, which is not consumed here", count, delays.UNROUTED, word)

    # -- reading

    def depth(self, queue: str) -> int:
        """Return the number of messages that are ready in ``queue``; 0 where there is no such queue."""
        session = self._session()
        return session.run(f"depth of queue {queue!r}", lambda: count_ready(session.scratch, queue)) or 0

    def browse(self, queue: str) -> Iterator[QueuedLetter]:
        """Yield the messages that are ready at the start, oldest first, one at a time in memory.

        They are held unacknowledged, on a connection of its own, until the iterator is closed: then RabbitMQ puts those not
        taken back where they were.
        """
        with _translated(f"browse queue {queue!r}"):
            connection = self._connect()
            channel = connection.channel()
        try:
            # By default py-amqp hands out a text where the encoding allows: not what was on the wire.
            channel.auto_decode = False
            with _translated(f"browse queue {queue!r}"):
                try:
                    waiting = channel.queue_declare(queue, passive=True).message_count
                except amqp_errors.NotFound:
                    return
            while waiting > 0:
                with _translated(f"browse queue {queue!r}"):
                    found = channel.basic_get(queue)
                    if found is None:
                        return
                    if _is_worn(found):
                        _renew(channel, queue, found)  # it comes again at the end
                        continue
                waiting -= 1
                yield QueuedLetter(_raw(found), _Handle(channel, found.delivery_tag))
        finally:
            _give_back(channel, connection)

    def take(self, letter: QueuedLetter) -> None:
        """Remove a letter that the running :meth:`browse` yielded."""
        handle: _Handle = letter.handle
        with _translated("take a letter"):
            handle.channel.basic_ack(handle.tag)

    def close(self) -> None:
        """Close the connection of this process; the next use opens another."""
        self._session().close()


@dataclass(frozen=True)
class _Handle:
    channel: Any
    tag: int


def _publish_or_repair(session: Session, wire: Any, target: tuple[str, str], repair: Callable[[], None]) -> None:
    try:
        session.publish(wire, *target)
    except Missing:
        repair()
        session.publish(wire, *target)


def _set_aside(properties: Mapping[str, Any], headers: dict[str, Any]) -> dict[str, Any]:
    """Return the properties for a copy that waits or is dead; note what it cannot carry in ``guardrails-original-*`` headers."""
    kept = {name: value for name, value in properties.items() if name not in _UNSAFE_PROPERTIES}
    kept["delivery_mode"] = 2
    for name in _UNSAFE_PROPERTIES:
        value = properties.get(name)
        if value is not None and value != kept.get(name):
            headers[ORIGINAL_PREFIX + name.replace("_", "-")] = value
    return kept


def _wire(message: RawMessage, headers: Mapping[str, Any], properties: Mapping[str, Any]) -> Any:
    return Message(
        body_bytes(message),
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        application_headers=dict(headers),
        **{name: value for name, value in properties.items() if name in _PROPERTIES},
    )


def _live_wire(message: RawMessage, headers: dict[str, Any], properties: Mapping[str, Any], session: Session) -> Any:
    """Return the message, without its history where its own headers leave no room for that."""
    wire = _wire(message, headers, properties)
    short = without_history(headers)
    if short is headers or len(wire._serialize_properties()) <= session.header_limit() - _CERTIFICATE_ROOM:
        return wire
    return _wire(message, short, properties)


def _fitting(message: RawMessage, headers: dict[str, Any], properties: Mapping[str, Any], certificate: DeathCertificate, limit: int) -> Any:
    """Return the dead letter with as much as fits: the history goes first, then the certificate's text is cut.

    RabbitMQ closes the connection on more.
    """
    wire = _wire(message, headers, properties)
    if len(wire._serialize_properties()) > limit:
        headers = without_history(headers)
        wire = _wire(message, headers, properties)
    for cut in _CUTS:
        if len(wire._serialize_properties()) <= limit:
            break
        short = replace(certificate, traceback=certificate.traceback[-cut:] if cut else "", message=certificate.message[:cut])
        wire = _wire(message, {**headers, DEAD_LETTER_HEADER: short.to_header()}, properties)
    return wire


def _raw(found: Any) -> RawMessage:
    properties = dict(found.properties)
    return RawMessage(
        body=bytes(found.body or b""),  # of an empty body py-amqp makes a text
        content_type=properties.pop("content_type", None),
        content_encoding=properties.pop("content_encoding", None),
        headers=properties.pop("application_headers", None) or {},
        properties=properties,
        exchange=found.delivery_info["exchange"],
        routing_key=found.delivery_info["routing_key"],
    )


def _is_worn(found: Any) -> bool:
    """Whether a few more browses would make RabbitMQ 4 drop the message; see :data:`_WORN`."""
    count = (found.properties.get("application_headers") or {}).get("x-delivery-count")
    return isinstance(count, int) and count >= _WORN and major_version(found.channel) >= 4


def _renew(channel: Any, queue: str, found: Any) -> None:
    """Replace a message by a copy that was never delivered: first the copy, confirmed, then the ack."""
    message = _raw(found)
    headers = {name: value for name, value in message.headers.items() if name != "x-delivery-count"}
    channel.basic_publish(_wire(message, headers, _set_aside(message.properties, headers)), exchange="", routing_key=queue)
    channel.basic_ack(found.delivery_tag)


def _give_back(channel: Any, connection: Any) -> None:
    """Return what was not taken, by closing the channel: a nack would put it to the end of a quorum queue (seen on 3.10)."""
    with contextlib.suppress(Exception):
        channel.close()
    with contextlib.suppress(Exception):
        connection.release()


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # kombu's and py-amqp's errors have no common base, and a dying connection raises AttributeError
        raise DeadLetterError(f"{what}: {exc!r}") from exc
