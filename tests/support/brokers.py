"""The broker that a test runs on, one face for both kinds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kombu.connection import Connection
from kombu.message import Message

from .rabbitmq import RabbitNode
from .redis import RedisServer

#: kombu keeps one Redis list for each priority step besides the plain one.
_PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")


@dataclass
class BrokerUnderTest:
    """A broker URL of the test's own, and what a test asks of a broker.

    Args:
        kind: ``"redis"`` or ``"amqp"``.
        url: a database or a virtual host that nobody else uses.
        server: our own server behind it, or None where the environment named one.
    """

    kind: str
    url: str
    server: RedisServer | RabbitNode | None
    used: list[str] = field(default_factory=list)

    def connection(self) -> Connection:
        """Return a new connection; use it as a context manager."""
        return Connection(self.url, connect_timeout=5)

    def depth(self, queue: str) -> int:
        """Return the messages ready in a queue, not those that a worker holds; 0 where there is no such queue."""
        with self.connection() as connection:
            channel = connection.default_channel
            if self.kind == "redis":
                return sum(int(channel.client.llen(queue + step)) for step in _PRIORITIES)
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0

    def purge(self, *queues: str) -> None:
        """Empty queues that exist."""
        with self.connection() as connection:
            for queue in queues:
                if self.kind == "redis":
                    connection.default_channel.client.delete(*(queue + step for step in _PRIORITIES))
                elif self.exists(queue):
                    connection.default_channel.queue_purge(queue)

    def exists(self, queue: str) -> bool:
        """Whether there is such a queue; on Redis: whether something is in it."""
        if self.kind == "redis":
            return self.depth(queue) > 0
        with self.connection() as connection:
            try:
                connection.default_channel.queue_declare(queue, passive=True)
            except connection.channel_errors:
                return False
            return True

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return (ready, held by consumers) of every queue; on Redis what is held counts under ``"(unacked)"``.

        On RabbitMQ this calls rabbitmqctl, which takes a second.
        """
        if self.kind == "redis":
            with self.connection() as connection:
                client = connection.default_channel.client
                names = [name.decode() for name in client.keys("*") if client.type(name) == b"list"]
                sizes = {name: (int(client.llen(name)), 0) for name in names}
                return {**sizes, "(unacked)": (0, int(client.hlen("unacked")))}
        if not isinstance(self.server, RabbitNode):
            raise RuntimeError("only a private node tells the sizes of its queues")
        columns = ("name", "messages_ready", "messages_unacknowledged")
        listed = json.loads(self.server.ctl("list_queues", "-p", self.vhost, *columns, "--formatter", "json"))
        return {row["name"]: (int(row["messages_ready"]), int(row["messages_unacknowledged"])) for row in listed}

    @property
    def vhost(self) -> str:
        """Name of the virtual host, or number of the database."""
        return urlsplit(self.url).path[1:] or "/"

    def publish_raw(self, queue: str, body: bytes | str, **properties: object) -> None:
        """Put a message of any content into a queue: what another program might have sent."""
        # An existing queue is taken as it is: declared again with other arguments it would refuse.
        missing = self.kind == "amqp" and not self.exists(queue)
        with self.connection() as connection, connection.Producer() as producer:
            if missing:
                producer.channel.queue_declare(queue, durable=True, auto_delete=False)
            producer.publish(body, routing_key=queue, exchange="", **properties)

    def push_garbage(self, queue: str, item: bytes) -> None:
        """Put bytes that are no message at all where Redis keeps its messages."""
        if self.kind != "redis":
            raise RuntimeError("only Redis has no message format of its own")
        with self.connection() as connection:
            connection.default_channel.client.lpush(queue, item)

    def drain(self, queue: str, limit: int = 10_000) -> list[Message]:
        """Take all ready messages out of a queue and return them, their bodies as bytes."""
        taken: list[Message] = []
        with self.connection() as connection:
            channel = connection.default_channel
            while len(taken) < limit:
                try:
                    message = channel.basic_get(queue)
                except connection.channel_errors:
                    break
                if message is None:
                    break
                channel.basic_ack(message.delivery_tag)
                if isinstance(message.body, str):  # the AMQP client decodes what says it is text
                    message.body = message.body.encode()
                taken.append(message)
        return taken

    def clean(self) -> None:
        """Delete the queues named in ``used`` from a server that is not ours; ours forgets with the session."""
        if self.server is not None:
            return
        deadline = time.monotonic() + 5
        with self.connection() as connection:
            for queue in self.used:
                if time.monotonic() < deadline:
                    connection.channel().queue_delete(queue)
