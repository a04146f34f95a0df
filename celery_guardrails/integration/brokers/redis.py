"""Redis and Valkey: kombu's lists for what is ready, a sorted set of our own for what waits."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import redis
from kombu.utils.json import dumps

from ...errors import DeadLetterError, PublishFailed
from ...policy.deadletter import DeathCertificate
from ...policy.delivery import RawMessage
from ...ports import Backlog, FoundMessage, Move, Moved, QueuedLetter
from ...stores.redis.vitals import vitals
from .base import KombuBroker, body_bytes, dead_headers, letter_headers, live_headers
from .redis_look import TRANSPORT_PROPERTIES, backlog, delayed_pages, held_pages, lengths, raw_of

__all__ = ["RedisBroker"]

logger = logging.getLogger("celery_guardrails.broker")

T = TypeVar("T")

#: Connections of one process; more threads than that take turns instead of meeting redis-py's "Too many connections".
_CONNECTIONS = 8
#: Messages read at a time while browsing.
_PAGE = 50
#: Milliseconds by which a due message that cannot be moved is put off.
_PUT_OFF = 60_000
_SCRIPTS = {name: (Path(__file__).parent / f"{name}.lua").read_text(encoding="utf-8") for name in ("move", "park", "pump", "touch")}


class _Session:
    """Connection, channel and client of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(_CONNECTIONS)
        self.link: _Link | None = None


class _Link:
    """A connected kombu channel, which knows keys and formats, and a plain client on its pool, which knows no prefix."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.channel: Any = connection.channel()
        # Not the channel's own client: with a global_keyprefix it rewrites the commands it knows, and of a script only the first key.
        self.client: Any = redis.Redis(connection_pool=self.channel.pool)
        self.scripts = {name: self.client.register_script(text) for name, text in _SCRIPTS.items()}
        self.declared: set[str] = set()
        self.declaring = threading.Lock()

    def key(self, name: str) -> str:
        return f"{self.channel.global_keyprefix}{name}"

    def list_key(self, queue: str, priority: Any = None) -> str:
        step = self.channel._get_message_priority({"properties": {"priority": priority}})
        return self.key(self.channel._q_for_pri(queue, step))

    def list_keys(self, queue: str) -> list[str]:
        return [self.key(self.channel._q_for_pri(queue, step)) for step in self.channel.priority_steps]


class RedisBroker(KombuBroker[_Session]):
    """The broker port on Redis through kombu's transport (redis, rediss, redis+socket, sentinel)."""

    def _new_session(self) -> _Session:
        return _Session()

    def _link(self, session: _Session) -> _Link:
        link = session.link
        if link is None:
            with session.lock:
                link = session.link
                if link is None:
                    link = session.link = _Link(self._open_connection(**self._transport_options()))
        return link

    def _transport_options(self) -> dict[str, Any]:
        # kombu's default is to wait for ever for an answer.
        given = self.app.conf.broker_transport_options or {}
        options = {name: given.get(name) or self.timeout for name in ("socket_timeout", "socket_connect_timeout")}
        return {**options, "max_connections": 2 * _CONNECTIONS}

    def _run(self, what: str, operation: Callable[[_Link], T], error: type[Exception] = PublishFailed) -> T:
        """Run an operation; once more on a new connection where the old one was broken or leads to a replica now."""
        session = self._session()
        if not session.slots.acquire(timeout=2 * self.timeout):
            raise error(f"{what}: other threads have kept all connections busy for {2 * self.timeout:g} s")
        try:
            fresh = session.link is None
            try:
                return operation(self._link(session))
            except redis.TimeoutError:
                raise
            except (redis.ConnectionError, redis.ReadOnlyError):
                if fresh:
                    raise
                self._drop(session)
            return operation(self._link(session))
        except error:
            raise
        except Exception as exc:
            raise error(f"{what}: {exc!r}") from exc
        finally:
            session.slots.release()

    def _drop(self, session: _Session) -> None:
        with session.lock:
            link, session.link = session.link, None
        if link is not None:
            with contextlib.suppress(Exception):
                link.connection.release()

    # -- publishing

    def send(self, message: RawMessage, queue: str) -> None:
        """Put the message into ``queue`` now."""

        def operation(link: _Link) -> None:
            key, payload = self._payload(link, message, live_headers(message), ("", queue), queue)
            _push(link, key, payload)

        self._run(f"send to queue {queue!r}", operation)

    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        """Put the message into the dead letter queue of ``queue``, and see to it that stock tools find it there."""
        self._put_dead(message, dead_headers(message, certificate), queue, f"dead-letter from queue {queue!r}")

    def restore_letter(self, message: RawMessage, queue: str) -> None:
        """Put a dead letter, as it was found, into the dead letter queue of ``queue``."""
        self._put_dead(message, letter_headers(message), queue, f"restore a dead letter of queue {queue!r}")

    def _put_dead(self, message: RawMessage, headers: Mapping[str, Any], queue: str, what: str) -> None:
        exchange, dead = self.settings.dead_letter_exchange, self.dead_letter_queue(queue)

        def operation(link: _Link) -> None:
            self._declare_dead_letters(link, queue)
            key, payload = self._payload(link, message, headers, (exchange, queue), dead)
            _push(link, key, payload)

        self._run(what, operation)

    def dead_letter_raw(self, payload: bytes, queue: str, certificate: DeathCertificate) -> None:
        """Dead-letter an item of a list that is no message of kombu's: its bytes become the body of one that is."""
        message = RawMessage(payload, "application/octet-stream", "binary", {}, {}, "", queue)
        self.dead_letter(message, queue, certificate)

    def delay(self, message: RawMessage, queue: str, seconds: float) -> None:
        """Put the message into ``queue`` after ``seconds``; :meth:`pump`, called by any worker of the app, moves it."""
        if seconds <= 0:
            self.send(message, queue)
            return

        def operation(link: _Link) -> None:
            key, payload = self._payload(link, message, live_headers(message), ("", queue), queue)
            # 32 characters, in the order of publishing where two fall due in the same millisecond
            member = f"{time.time_ns():020d}{uuid.uuid4().hex[:12]}{key}"
            link.scripts["park"](keys=self._delayed_keys(link), args=[member, payload, math.ceil(seconds * 1000)])

        self._run(f"delay for queue {queue!r}", operation)

    def pump(self, limit: int = 1000) -> tuple[int, int]:
        """Move at most ``limit`` due messages to their queues.

        Returns:
            How many were moved, and the milliseconds until the next one is due (-1 where none waits).
        """

        def operation(link: _Link) -> tuple[int, int]:
            moved, wait, failure = link.scripts["pump"](keys=self._delayed_keys(link), args=[limit, _PUT_OFF])
            if failure:
                logger.error("a delayed message could not be moved to its queue, next try in %d s: %s", _PUT_OFF // 1000, failure)
            return int(moved), int(wait)

        return self._run("pump delayed messages", operation)

    def touch(self, tags: Iterable[str]) -> int:
        """Start the visibility timeout of these live deliveries anew; return how many the broker still knew."""
        known = list(tags)
        if not known:
            return 0

        def operation(link: _Link) -> int:
            return int(link.client.eval(_SCRIPTS["touch"], 1, link.key(link.channel.unacked_index_key), *known))

        return self._run("touch", operation)

    def delayed(self, queue: str | None = None) -> int:
        """Return the number of messages that wait for their time, for one queue or for all."""

        def operation(link: _Link) -> int:
            index = self._delayed_keys(link)[0]
            if queue is None:
                return int(link.client.zcard(index))
            targets = {key.encode() for key in link.list_keys(queue)}
            return sum(member[32:] in targets for member, _ in link.client.zscan_iter(index, count=1000))

        return self._run("count delayed messages", operation)

    def _delayed_keys(self, link: _Link) -> list[str]:
        index = link.key(f"{self.namespace}:delayed")
        return [index, f"{index}:messages"]

    def _payload(
        self, link: _Link, message: RawMessage, headers: Mapping[str, Any], address: tuple[str, str], queue: str
    ) -> tuple[str, str]:
        """Return the key of the list and the item, as kombu's transport would make it but for the body.

        The body is always base64, also where ``body_encoding`` is switched off: then kombu would put raw bytes in JSON.
        The address is what kombu restores an unacknowledged message by: of a live one the queue itself, as the original
        exchange might lead to other queues, too.
        """
        channel = link.channel
        properties = {name: value for name, value in message.properties.items() if name not in TRANSPORT_PROPERTIES}
        item = channel.prepare_message(
            body_bytes(message),
            priority=properties.get("priority"),
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=dict(headers),
            properties=properties,
        )
        channel._inplace_augment_message(item, *address)
        body, encoding = channel.encode_body(body_bytes(message), "base64")
        item["body"] = body
        item["properties"]["body_encoding"] = encoding
        return link.list_key(queue, properties.get("priority")), dumps(item)

    # -- declaring

    def declare(self, queues: Iterable[str] | None = None) -> None:
        """Bind the dead letter queues of these queues to the DLX."""
        names = list(self.queues() if queues is None else queues)

        def operation(link: _Link) -> None:
            for queue in names:
                self._declare_dead_letters(link, queue)

        self._run("declare", operation)

    def _declare_dead_letters(self, link: _Link, queue: str) -> None:
        """Bind the DLQ, or kombu would lose a dead letter that somebody consumed and did not acknowledge."""
        if queue in link.declared:
            return
        exchange, dead = self.settings.dead_letter_exchange, self.dead_letter_queue(queue)
        with link.declaring:  # kombu's state of exchanges is not made for threads
            link.channel.exchange_declare(exchange, "direct", durable=True)
            link.channel.queue_declare(dead, durable=True)
            link.channel.queue_bind(dead, exchange, queue)
        link.declared.add(queue)

    # -- reading

    def depth(self, queue: str) -> int:
        """Return the number of messages in ``queue``, all priorities; 0 where there is no such queue."""
        return self._run(f"depth of queue {queue!r}", lambda link: sum(lengths(link, link.list_keys(queue))))

    def exists(self, queue: str) -> bool:
        """Whether something waits in ``queue``, or somebody has declared it, as every worker does that consumes it.

        An empty queue is nothing on Redis; what is left of it is kombu's table of the exchange that has its name.
        """

        def look(link: _Link) -> bool:
            binding = link.key(link.channel.keyprefix_queue % queue)
            return bool(link.client.exists(binding, *link.list_keys(queue)))

        return self._run(f"look for queue {queue!r}", look)

    def backlog(self, queues: Iterable[str]) -> Backlog:
        """See :class:`~celery_guardrails.ports.OpenBroker`."""
        names = list(queues)
        return self._run("count messages", lambda link: backlog(link, self._delayed_keys(link)[0], names))

    def delayed_messages(self) -> Iterator[FoundMessage]:
        """See :class:`~celery_guardrails.ports.OpenBroker`."""
        return self._paged("look at delayed messages", lambda link: delayed_pages(link, *self._delayed_keys(link)))

    def held_messages(self) -> Iterator[FoundMessage]:
        """See :class:`~celery_guardrails.ports.OpenBroker`."""
        return self._paged("look at unacknowledged messages", held_pages)

    def _paged(self, what: str, read: Callable[[_Link], Iterator[list[FoundMessage]]]) -> Iterator[FoundMessage]:
        # Not page by page through _run: a scan that broke off cannot go on, and its rest must not pass for nothing.
        link = self._run(what, lambda link: link)
        try:
            for page in read(link):
                yield from page
        except (redis.RedisError, OSError) as exc:
            raise PublishFailed(f"{what}: {exc!r}") from exc

    def browse(self, queue: str, *, ahead: bool = True) -> Iterator[QueuedLetter]:
        """Yield the messages that are in the queue at the start, by priority, then oldest first; none is removed by it.

        What other processes take meanwhile may make it pass over letters. It holds nothing, whether ``ahead`` or not.
        """
        what = f"browse queue {queue!r}"
        keys = self._run(what, lambda link: link.list_keys(queue), DeadLetterError)
        counts = self._run(what, lambda link: lengths(link, keys), DeadLetterError)
        for key, length in zip(keys, counts, strict=True):
            walk = _Walk(key)
            while walk.seen < length:
                page = self._page(what, walk, length)
                if not page:
                    break
                for item in page:
                    yield QueuedLetter(raw_of(item), _Handle(walk, item))

    def _page(self, what: str, walk: _Walk, length: int) -> list[bytes]:
        # Counted from the right, where the oldest are: new ones come in on the left and leave these indexes alone.
        start = walk.seen - walk.gone
        count = min(_PAGE, length - walk.seen)
        page: list[bytes] = self._run(
            what, lambda link: list(link.client.lrange(walk.key, -(start + count), -(start + 1))), DeadLetterError
        )
        page.reverse()
        walk.seen += len(page)
        return page

    def take(self, letter: QueuedLetter) -> None:
        """Remove a letter that the running :meth:`browse` yielded.

        Raises:
            DeadLetterError: somebody else took it meanwhile.
        """
        handle: _Handle = letter.handle
        removed = self._run("take a letter", lambda link: int(link.client.lrem(handle.walk.key, -1, handle.item)), DeadLetterError)
        handle.walk.gone += 1
        if not removed:
            raise DeadLetterError(f"the letter is no longer in {handle.walk.key!r}: somebody else took it")

    def move(self, moves: Sequence[Move]) -> list[Moved]:
        """Put each message in the place of its letter: one atomic step each, in one round trip for all.

        A letter that somebody else took is not sent a second time. Where the connection broke before the answers came, the
        letters that are found to be gone were moved by that very call.
        """
        tries = 0

        def operation(link: _Link) -> list[Any]:
            nonlocal tries
            tries += 1
            pipeline = link.client.pipeline(transaction=False)
            for move in moves:
                walk, item = move.letter.handle.walk, move.letter.handle.item
                key, payload = self._payload(link, move.message, live_headers(move.message), ("", move.queue), move.queue)
                link.scripts["move"](keys=[walk.key, key], args=[item, payload], client=pipeline)
            return list(pipeline.execute(raise_on_error=False))

        try:
            answers = self._run(f"move {len(moves)} letters", operation)
        except PublishFailed as exc:
            return [Moved(False, False, exc)] * len(moves)
        return [_moved(move.letter.handle, answer, tries) for move, answer in zip(moves, answers, strict=True)]

    def vitals(self) -> dict[str, Any]:
        """Return how the server is, as :func:`~celery_guardrails.stores.redis.vitals.vitals` has it.

        Raises:
            PublishFailed: it does not answer.
        """
        return self._run("ask how the server is", lambda link: vitals(link.client))

    def close(self) -> None:
        """Close the connections of this process; the next use opens others."""
        self._drop(self._session())


@dataclass
class _Walk:
    key: str
    seen: int = 0
    #: Of those seen, how many are not in the list any more, whoever took them: the others move up by so many.
    gone: int = 0


@dataclass(frozen=True)
class _Handle:
    walk: _Walk = field(repr=False)
    item: bytes = field(repr=False)


def _moved(handle: _Handle, answer: Any, tries: int) -> Moved:
    if isinstance(answer, Exception):
        return Moved(False, False, PublishFailed(f"Redis did not move the message: {answer}"))
    handle.walk.gone += 1
    if answer or tries > 1:
        return Moved(True, True)
    return Moved(False, True, DeadLetterError(f"the letter is no longer in {handle.walk.key!r}: somebody else took it"))


def _push(link: _Link, key: str, payload: str) -> None:
    if not link.client.lpush(key, payload):
        raise PublishFailed(f"Redis did not put the message into {key!r}")
