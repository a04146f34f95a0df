"""One AMQP connection of our own: serialised, with a timeout on every answer, replaced when it breaks."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from amqp import exceptions as amqp_errors

from ...errors import PublishFailed
from .amqp_bulk import Bulk, Wire

__all__ = ["Missing", "Session"]

T = TypeVar("T")

#: Seconds after which an unused connection is replaced rather than trusted: it has no heartbeat, and on one that a firewall
#: has forgotten a publish would wait for its whole timeout.
_IDLE = 60.0
#: Seconds the broker has to answer to the end of a connection.
_FAREWELL = 1.0
#: Bytes of a content header frame besides the properties: frame head and end (8), class, weight and body size (12).
_FRAME_OVERHEAD = 20


class Missing(Exception):
    """The exchange, the queue or the binding is not there."""


class Session:
    """A connection, its publishing channel (confirms on) and a scratch channel (may die any time).

    Args:
        connect: returns a connected :class:`kombu.Connection` that asks for confirms.
        timeout: seconds the broker has for an answer.
    """

    def __init__(self, connect: Callable[[], Any], timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._lock = threading.RLock()
        self._connection: Any = None
        self._publishing: Any = None
        self._scratch: Any = None
        self._bulk: Bulk | None = None
        self._returned: list[Exception] = []
        self._used = 0.0
        #: Queues whose binding was seen on this connection, and when (monotonic).
        self.bound: dict[str, float] = {}

    def run(self, what: str, operation: Callable[[], T]) -> T:
        """Run an operation of several calls; once more where an old connection turns out to be broken.

        Raises:
            PublishFailed: for every other failure. Nothing of the connection is kept after one, so that a late answer
                of the broker is never taken for the answer to a later question.
        """
        if not self._lock.acquire(timeout=2 * self._timeout):
            raise PublishFailed(f"{what}: other threads have kept the connection busy for {2 * self._timeout:g} s")
        try:
            if time.monotonic() - self._used > _IDLE:
                self.drop(politely=True)
            fresh = self._connection is None
            try:
                return self._attempt(what, operation)
            except amqp_errors.ConnectionError as exc:
                broken = exc
            except OSError as exc:
                broken = exc
            if fresh or isinstance(broken, TimeoutError):
                raise PublishFailed(f"{what}: {broken!r}") from broken
            try:
                return self._attempt(what, operation)
            except (amqp_errors.ConnectionError, OSError) as exc:
                raise PublishFailed(f"{what}: {exc!r}") from exc
        finally:
            self._lock.release()

    def _attempt(self, what: str, operation: Callable[[], T]) -> T:
        try:
            result = operation()
        except (PublishFailed, Missing) as exc:
            # The channels were dealt with where it was raised.
            raise PublishFailed(f"{what}: {exc}") from exc
        except (amqp_errors.ConnectionError, OSError):
            self.drop()
            raise
        except Exception as exc:
            # pyamqp raises AttributeError and TypeError, too, when the connection goes away under it.
            self.drop()
            raise PublishFailed(f"{what}: {exc!r}") from exc
        except BaseException:
            # A soft time limit is raised anywhere, also between a publish and its confirm.
            self.drop()
            raise
        self._used = time.monotonic()
        return result

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._connect()
            self._used = time.monotonic()
        return self._connection

    def publishing(self) -> Any:
        """Return the channel with confirms."""
        if self._publishing is None:
            channel = self._connected().channel()
            # Without a handler py-amqp raises for a returned message *before* it has read the ack that follows, and the
            # next publish takes that ack for its own (amqp 5.4.2, channel.py, _on_basic_return).
            channel.events["basic_return"].add(self._on_return)
            self._publishing = channel
        return self._publishing

    def _on_return(self, exc: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.append(exc)

    def header_limit(self) -> int:
        """Return the bytes that properties and headers of a message may take: RabbitMQ wants them in one frame."""
        return int(self.publishing().connection.frame_max) - _FRAME_OVERHEAD

    def publish(self, message: Any, exchange: str, routing_key: str) -> None:
        """Publish mandatory and wait for the confirm.

        Raises:
            Missing: nothing routes there, or there is no such exchange.
            PublishFailed: the broker refused the message.
        """
        self._returned.clear()
        channel = self.publishing()
        try:
            channel.basic_publish(message, exchange=exchange, routing_key=routing_key, mandatory=True)
        except amqp_errors.NotFound as exc:
            self._discard(channel)
            self._publishing = None
            raise Missing(f"exchange {exchange!r} does not exist") from exc
        except (amqp_errors.ChannelError, amqp_errors.MessageNacked) as exc:
            self._discard(channel)
            self._publishing = None
            reason = "the broker refused it, as a full queue does" if isinstance(exc, amqp_errors.MessageNacked) else repr(exc)
            raise PublishFailed(reason) from exc
        if self._returned:
            raise Missing(f"exchange {exchange!r} has no route for {routing_key!r}") from self._returned[0]

    def publish_all(self, messages: Mapping[int, Wire], receipts: dict[int, bool]) -> None:
        """Publish many, each mandatory, then wait for all confirms.

        Args:
            messages: by numbers of the caller's.
            receipts: is filled, also where an error is raised: True for what is safe, False for what was returned or refused.
                Of a message that is missing there nobody knows.
        """
        if self._bulk is None:
            self._bulk = Bulk(self._connected().channel(), self._timeout)
        try:
            self._bulk.publish(messages, receipts)
        except BaseException:
            self._bulk = None
            raise

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Any]:
        """Lend a channel for declarations; any error of RabbitMQ closes a channel, and then this one is replaced."""
        if self._scratch is None:
            self._scratch = self._connected().channel()
        channel = self._scratch
        try:
            yield channel
        except amqp_errors.ChannelError:
            self._discard(channel)
            self._scratch = None
            raise

    def _discard(self, channel: Any) -> None:
        with contextlib.suppress(amqp_errors.AMQPError, OSError, AttributeError):
            channel.close()

    def drop(self, *, politely: bool = False) -> None:
        """Forget the connection; politely: with a farewell, or RabbitMQ logs a warning, that may take a second."""
        connection, self._connection, self._publishing, self._scratch, self._bulk = self._connection, None, None, None, None
        self.bound.clear()
        if connection is None:
            return
        with contextlib.suppress(Exception):
            if politely:
                connection.connection.sock.settimeout(_FAREWELL)
                connection.release()
        with contextlib.suppress(Exception):
            connection.collect()

    def close(self) -> None:
        """Close the connection; the next operation opens another."""
        with self._lock:
            self.drop(politely=True)

    def abandon(self) -> None:
        """Let go of a connection that was made before a fork.

        Neither a farewell nor a shutdown of the socket, as py-amqp's ``collect`` does it: both would reach the broker over the
        connection that the parent goes on using.
        """
        connection, self._connection = self._connection, None
        with contextlib.suppress(Exception):
            transport = connection.connection.transport
            sock, transport.sock, transport.connected = transport.sock, None, False
            os.close(sock.detach())
