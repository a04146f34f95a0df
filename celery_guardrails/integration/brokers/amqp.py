"""RabbitMQ: every publish mandatory and confirmed, delays in levels of TTL queues."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from amqp import exceptions as amqp_errors
from kombu.common import Broadcast

from ...errors import DeadLetterError, PublishFailed
from ...policy.deadletter import DeathCertificate
from ...policy.delivery import DEAD_LETTER_HEADER, RawMessage
from ...ports import Backlog, FoundMessage, Move, Moved, QueuedLetter
from . import amqp_look, delays
from .amqp_browse import Browse, Handle, translated
from .amqp_declare import Scratch, count_ready, ensure_dead_letters, ensure_queue
from .amqp_notices import declare_notices, drop_notices, notices_queue
from .amqp_session import Missing, Session
from .amqp_wire import fitting, live_wire, make_wire, set_aside
from .base import KombuBroker, dead_headers, letter_headers, live_headers

__all__ = ["AmqpBroker"]

logger = logging.getLogger("celery_guardrails.broker")

T = TypeVar("T")

#: Seconds for which a binding that was made is believed in. Its queue may be deleted and declared again meanwhile.
_BINDING_TRUST = 10.0


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
        session = self._session()

        def operation() -> None:
            wire = _live(message, session)
            _publish_or_repair(session, wire, ("", queue), lambda: self._ensure_queue(session, queue))

        session.run(f"send to queue {queue!r}", operation)

    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        """Put the message into the dead letter queue of ``queue``, through the DLX; declare both where missing."""
        headers = dead_headers(message, certificate)
        properties = set_aside(message.properties, headers)
        what = f"dead-letter from queue {queue!r}"
        session = self._session()

        def repair() -> None:
            self._ensure_dead_letters(session, queue)

        def operation() -> None:
            wire = fitting(message, headers, properties, certificate, session.header_limit())
            _publish_or_repair(session, wire, (self.settings.dead_letter_exchange, queue), repair)

        session.run(what, operation)

    def restore_letter(self, message: RawMessage, queue: str) -> None:
        """Put a dead letter, as it was found, into the dead letter queue of ``queue``; declare that where missing.

        Through the DLX, but for a letter without our header: it has died before, and nobody is to get notice of it once more.
        """
        headers = letter_headers(message)
        wire = make_wire(message, headers, set_aside(message.properties, headers))
        session = self._session()

        def operation() -> None:
            certified = DEAD_LETTER_HEADER in message.headers
            target = (self.settings.dead_letter_exchange, queue) if certified else ("", self.dead_letter_queue(queue))
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
        properties = set_aside(message.properties, headers)
        session = self._session()

        def operation() -> None:
            wire = live_wire(message, headers, properties, session)
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
        self._declare_notices(session, {name: self.dead_letter_queue(name) for name in names})
        self._redirect_unrouted({delays.queue_word(name): name for name in names})

    def _declare_notices(self, session: Session, queues: Mapping[str, str]) -> None:
        dlx, into = self.settings.dead_letter_exchange, self.notices

        def operation() -> None:
            if into is None:
                drop_notices(session.scratch, dlx, queues)
            else:
                declare_notices(session.scratch, dlx, queues, into, quorum=any(map(self._is_quorum, queues)))

        try:
            session.run("declare notices", operation)
        except PublishFailed as exc:  # a DLX of another type, or no permission: dead letters go on without
            logger.warning("nobody will be told of dead letters that the broker itself makes (guardrails_broker_letters_seconds): %r", exc)

    @property
    def notices(self) -> str | None:
        """Name of the queue that gets a copy of every dead letter without our header; None where nobody asks for them."""
        return None if self.settings.broker_letters_seconds is None else notices_queue(self.namespace)

    def exists(self, queue: str) -> bool:
        """Whether there is such a queue."""
        session = self._session()
        return session.run(f"look for queue {queue!r}", lambda: count_ready(session.scratch, queue)) is not None

    def _is_quorum(self, queue: str) -> bool:
        """Whether a task queue is one, by its own arguments or by the app's default; its dead letter queue is of the same kind."""
        known = self.app.amqp.queues
        entity = known.aliases.get(queue) or known.get(queue)
        own = (getattr(entity, "queue_arguments", None) or {}).get("x-queue-type")
        return bool((own or self.app.conf.get("task_default_queue_type")) == "quorum")

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
            quorum=self._is_quorum(queue),
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

    def browse(self, queue: str, *, ahead: bool = True) -> Iterator[QueuedLetter]:
        """Yield the messages that are ready at the start, oldest first, one at a time in memory.

        They are held unacknowledged, on a connection of its own, until the iterator is closed: then RabbitMQ puts those not
        taken back where they were. With ``ahead`` it holds some more; see :class:`~.amqp_browse.Browse`.
        """
        with translated(f"browse queue {queue!r}"):
            browse = Browse(self._connect(), queue, ahead=ahead, timeout=self.timeout)
        yield from browse.letters()

    def backlog(self, queues: Iterable[str]) -> Backlog:
        """See :class:`~celery_guardrails.ports.OpenBroker`."""
        session, names = self._session(), list(queues)
        return session.run("count messages", lambda: amqp_look.backlog(session.scratch, names, self._is_quorum))

    def delayed_messages(self) -> Iterator[FoundMessage]:
        """See :class:`~celery_guardrails.ports.OpenBroker`; they are held for the moment, and go on late by as much at most."""
        session, words = self._session(), {delays.queue_word(queue): queue for queue in self.queues()}
        return amqp_look.delayed_messages(session.scratch, self._connect, session.run, words, self.timeout)

    def held_messages(self) -> Iterator[FoundMessage]:
        """Nothing: RabbitMQ does not show what consumers hold."""
        return iter(())

    def take(self, letter: QueuedLetter) -> None:
        """Remove a letter that the running :meth:`browse` yielded."""
        handle: Handle = letter.handle
        with translated("take a letter"):
            handle.browse.take(handle.tag)

    def move(self, moves: Sequence[Move]) -> list[Moved]:
        """Publish all messages, wait for all confirms, then remove the letters of those that are confirmed.

        RabbitMQ has no step that does both: a process that is killed in between leaves so many letters in both queues.
        """
        failed = self._send_all([(move.message, move.queue) for move in moves])
        return [Moved(False, False, failed[n]) if n in failed else self._taken(move.letter) for n, move in enumerate(moves)]

    def _taken(self, letter: QueuedLetter) -> Moved:
        try:
            self.take(letter)
        except DeadLetterError as exc:
            return Moved(True, False, exc)
        return Moved(True, True)

    def _send_all(self, messages: Sequence[tuple[RawMessage, str]]) -> dict[int, Exception]:
        """Put each message into its queue, as :meth:`send` does; return by their numbers why some are not there."""
        session = self._session()
        receipts: dict[int, bool] = {}

        def operation() -> None:
            wires = {n: (_live(message, session), "", queue) for n, (message, queue) in enumerate(messages) if n not in receipts}
            session.publish_all(wires, receipts)

        broken: Exception = PublishFailed("RabbitMQ did not confirm it")
        try:
            session.run(f"send {len(messages)} messages", operation)
        except PublishFailed as exc:
            broken = exc
        failed: dict[int, Exception] = {}
        for n, (message, queue) in enumerate(messages):
            confirmed = receipts.get(n)
            if confirmed:
                continue
            failed[n] = broken
            if confirmed is False:  # it was returned or refused, so this is no repetition; it says why, and mends what it can
                try:
                    self.send(message, queue)
                    del failed[n]
                except PublishFailed as exc:
                    failed[n] = exc
        return failed

    def ask(self, look: Callable[[Scratch], T]) -> T:
        """Return what ``look`` finds, given what lends channels that may die.

        Raises:
            PublishFailed: the broker does not answer.
        """
        session = self._session()
        return session.run("look at the broker", lambda: look(session.scratch))

    def close(self) -> None:
        """Close the connection of this process; the next use opens another."""
        self._session().close()


def _live(message: RawMessage, session: Session) -> Any:
    """Return a message as it goes into a task queue."""
    properties = {"delivery_mode": 2, **{k: v for k, v in message.properties.items() if v is not None and k != "user_id"}}
    return live_wire(message, live_headers(message), properties, session)


def _publish_or_repair(session: Session, wire: Any, target: tuple[str, str], repair: Callable[[], None]) -> None:
    try:
        session.publish(wire, *target)
    except Missing:
        repair()
        session.publish(wire, *target)
