"""The figures of the demo, counted from outside: the gateway's SQLite file, the broker, Celery's result backend.

Nothing here asks celery-guardrails for a number, and nothing imports it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from kombu.connection import Connection

#: Seconds around an answer in which a kill counts as in between: on a busy machine a dying process still holds its connection
#: for a moment, and a living one needs a moment to write the answer down.
WRITING_DOWN = 0.5

# -- the gateway ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GatewayFigures:
    """What the gateway's ledger says."""

    charges: Mapping[int, int]  # order -> number of charges
    amount: int  # cents that moved
    calls: int
    repeated: int  # calls for an order that was charged already
    unanswered: int  # ... of which nobody had had an answer yet
    cut_off: int  # ... of which the one who had it was killed within WRITING_DOWN
    needless_for: tuple[int, ...]  # ... the orders of the others
    overlaps: int  # two calls for one order at the same time
    down_calls: Mapping[int, int]  # order -> calls while the gateway was down
    answers: Mapping[str, int]

    @property
    def charged(self) -> set[int]:
        """Return the orders that were charged at least once."""
        return set(self.charges)

    @property
    def needless(self) -> int:
        """Return the calls for an order of which a living worker had been told that it is charged."""
        return len(self.needless_for)

    @property
    def doubled(self) -> int:
        """Return the charges beyond the first of an order."""
        return sum(self.charges.values()) - len(self.charges)


class GatewayLedger:
    """Reads the SQLite file while the gateway writes it."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)

    def charged(self) -> int:
        """Return the number of orders charged, cheaply."""
        return int(self._db.execute("SELECT count(DISTINCT order_id) FROM charges").fetchone()[0])

    def last_call(self) -> float:
        """Return the unix time of the last call, 0 if there was none."""
        return float(self._db.execute("SELECT coalesce(max(at), 0) FROM calls").fetchone()[0])

    def figures(self, victims: Mapping[int, float]) -> GatewayFigures:
        """Count everything; ``victims`` are the callers that were killed on purpose, and when (unix time)."""
        run = self._db.execute
        told: dict[int, list[tuple[float, int]]] = {}
        for order, ended, caller in run("SELECT order_id, ended, caller FROM calls WHERE answer LIKE '200%' AND delivered"):
            told.setdefault(order, []).append((ended, caller))
        kinds: dict[str, list[int]] = {"unanswered": [], "cut off": [], "needless": []}
        for order, at in run("SELECT order_id, at FROM calls WHERE charged_before"):
            knew = [(ended, caller) for ended, caller in told.get(order, ()) if ended <= at]
            cut = all(abs(victims.get(caller, 0.0) - ended) <= WRITING_DOWN for ended, caller in knew)
            kinds["unanswered" if not knew else "cut off" if cut else "needless"].append(order)
        return GatewayFigures(
            charges=dict(run("SELECT order_id, count(*) FROM charges GROUP BY order_id")),
            amount=int(run("SELECT coalesce(sum(amount), 0) FROM charges").fetchone()[0]),
            calls=int(run("SELECT count(*) FROM calls").fetchone()[0]),
            repeated=sum(map(len, kinds.values())),
            unanswered=len(kinds["unanswered"]),
            cut_off=len(kinds["cut off"]),
            needless_for=tuple(kinds["needless"]),
            overlaps=int(
                run(
                    "SELECT count(*) FROM calls a JOIN calls b ON a.order_id = b.order_id AND a.id < b.id"
                    " WHERE a.delivered AND b.at < a.ended"
                ).fetchone()[0]
            ),
            down_calls=dict(run("SELECT order_id, count(*) FROM calls WHERE down GROUP BY order_id")),
            answers=dict(run("SELECT coalesce(answer, 'never answered'), count(*) FROM calls GROUP BY 1 ORDER BY 2 DESC")),
        )


# -- the broker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letter:
    """A message found in a queue."""

    body: bytes
    headers: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """Return why it is dead."""
        certificate = self.headers.get("guardrails")
        return str(certificate.get("reason", "?")) if isinstance(certificate, Mapping) else "?"

    @property
    def error(self) -> str:
        """Return the class of the error without its module, or ""."""
        certificate = self.headers.get("guardrails")
        return str(certificate.get("error", "")).rsplit(".", 1)[-1] if isinstance(certificate, Mapping) else ""

    @property
    def task(self) -> str:
        """Return the name of the task."""
        return str(self.headers.get("task", ""))

    @property
    def order_id(self) -> int | None:
        """Return the order it is about, or None where that cannot be read."""
        try:
            args, kwargs, _ = json.loads(self.body)
            return int(args[0] if args else kwargs["order_id"])
        except (ValueError, TypeError, KeyError, IndexError):
            return None


class Queues(ABC):
    """Looks into the broker's queues without taking anything out."""

    def __init__(self, queue: str, namespace: str) -> None:
        self.queue = queue
        self.dead = f"{queue}.dead"
        self.namespace = namespace

    @abstractmethod
    def ready(self, queue: str) -> int:
        """Return the number of messages ready in a queue."""

    @abstractmethod
    def delayed(self) -> int:
        """Return the number of messages that wait for their time in the broker."""

    @abstractmethod
    def taken(self) -> int | None:
        """Return the number of messages that workers hold unacknowledged, or None where the broker does not say."""

    @abstractmethod
    def letters(self, queue: str) -> list[Letter]:
        """Return the messages of a queue."""

    @abstractmethod
    def clean(self) -> None:
        """Delete every queue of this run."""


class RedisQueues(Queues):
    """Kombu's lists in Redis, read as they are.

    In a database that was empty everything is deleted at the end, in another one what has this run's name.
    """

    def __init__(self, url: str, queue: str, namespace: str) -> None:
        super().__init__(queue, namespace)
        self._redis: Any = redis.Redis.from_url(for_redis_py(url), socket_timeout=5)
        try:
            self._was_empty = int(self._redis.dbsize()) == 0
        except redis.RedisError as error:
            raise OSError(str(error)) from error

    def ready(self, queue: str) -> int:
        """See the base class."""
        return int(self._redis.llen(queue))

    def taken(self) -> int | None:
        """See the base class."""
        return int(self._redis.hlen("unacked"))

    def delayed(self) -> int:
        """See the base class."""
        return int(self._redis.zcard(f"{self.namespace}:delayed"))

    def letters(self, queue: str) -> list[Letter]:
        """See the base class."""
        found = []
        for item in self._redis.lrange(queue, 0, -1):
            message = json.loads(item)
            encoded = message["properties"].get("body_encoding") == "base64"
            body = base64.b64decode(message["body"]) if encoded else str(message["body"]).encode()
            found.append(Letter(body, message.get("headers") or {}))
        return found

    def clean(self) -> None:
        """See the base class."""
        if self._was_empty:
            self._redis.flushdb()
            return
        run = self.queue.rpartition("-")[2]
        for key in list(self._redis.scan_iter(match=f"*{run}*", count=1000)):
            self._redis.delete(key)


class AmqpQueues(Queues):
    """RabbitMQ through AMQP alone: what is ready it tells, what is unacknowledged it does not."""

    #: The queues with a TTL in which delayed messages wait, one a binary digit of the delay; all apps of a vhost share them.
    LEVELS = tuple(f"guardrails.delay.quorum.{level:02d}" for level in range(24))
    #: Deleted at the end, unless they were there before.
    SHARED = ("celeryev", "celery.pidbox", "reply.celery.pidbox", "guardrails.delay.deliver", "guardrails.delay.unrouted", *LEVELS)

    def __init__(self, url: str, queue: str, namespace: str, dead_letter_exchange: str = "") -> None:
        super().__init__(queue, namespace)
        self._exchange = dead_letter_exchange
        self._connection: Any = Connection(url, connect_timeout=5)
        self._connection.ensure_connection(max_retries=1)
        self._channel: Any = None
        self._found = {name for name in self.SHARED if self._exists(name)}

    def _exists(self, exchange: str) -> bool:
        channel = self._connection.channel()
        try:
            channel.exchange_declare(exchange, "topic", passive=True)
        except self._connection.channel_errors:
            return False
        channel.close()
        return True

    def ready(self, queue: str) -> int:
        """See the base class."""
        try:
            if self._channel is None:
                self._channel = self._connection.channel()
            return int(self._channel.queue_declare(queue, passive=True).message_count)
        except self._connection.channel_errors:  # no such queue: RabbitMQ has closed the channel
            self._channel = None
            return 0

    def taken(self) -> int | None:
        """See the base class."""
        return None

    def delayed(self) -> int:
        """See the base class."""
        if not self.ready(self.LEVELS[0]) and self._channel is None:
            return 0
        return sum(self.ready(level) for level in self.LEVELS)

    def letters(self, queue: str) -> list[Letter]:
        """See the base class."""
        channel, found = self._connection.channel(), []
        try:
            while (message := channel.basic_get(queue)) is not None:
                body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
                found.append(Letter(body, dict(message.headers or {})))
        except self._connection.channel_errors:
            pass
        finally:
            channel.close()  # what was looked at and not acknowledged goes back to its place
        return found

    def clean(self) -> None:
        """See the base class."""
        queues, exchanges = [self.queue, self.dead], [self.queue, self._exchange]
        for name in self.SHARED:
            if name not in self._found and not (name.startswith("guardrails.") and self.ready(name)):
                exchanges.append(name)
                queues.append(name)
        for delete, names in (("queue_delete", queues), ("exchange_delete", exchanges)):
            for name in filter(None, names):
                with contextlib.suppress(*self._connection.channel_errors), self._connection.channel() as channel:
                    getattr(channel, delete)(name)
        self._connection.release()


# -- everything together ----------------------------------------------------------------------------------------


@dataclass
class Accepted:
    """What the broker has taken from the publisher: one task id for each confirmed publish."""

    tasks: dict[str, int] = field(default_factory=dict)  # task id -> order
    orders: dict[int, int] = field(default_factory=dict)  # order -> amount
    garbage: list[bytes] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True)
class Figures:
    """The state of the day at one moment."""

    accepted: Accepted
    gateway: GatewayFigures
    letters: list[Letter]
    waiting: int
    delayed: int
    taken: int | None
    finished: Mapping[str, int]  # state in the result backend -> messages
    endless: Mapping[str, int]  # task id -> order, of messages without a result
    failed: set[int]  # orders of which a message has FAILURE in the result backend

    @property
    def dead(self) -> dict[int, set[str]]:
        """Return orders with a dead letter that were not charged, with the reasons."""
        found: dict[int, set[str]] = {}
        for letter in self.letters:
            if letter.order_id in self.accepted.orders and letter.order_id not in self.gateway.charges:
                found.setdefault(letter.order_id, set()).add(letter.reason)
        return found

    @property
    def missing(self) -> set[int]:
        """Return orders that were accepted and are neither charged nor dead-lettered."""
        return set(self.accepted.orders) - self.gateway.charged - set(self.dead)

    @property
    def garbage_kept(self) -> int:
        """Return how many of the garbage messages lie in the dead letter queue byte for byte."""
        bodies = Counter(letter.body for letter in self.letters)
        return sum(1 for body in self.accepted.garbage if bodies[body])

    def reasons(self) -> list[tuple[str, str, int, int]]:
        """Return reason, error, letters and orders of the dead letters."""
        groups: dict[tuple[str, str], list[Letter]] = {}
        for letter in self.letters:
            groups.setdefault((letter.reason, letter.error), []).append(letter)
        return [
            (reason, error, len(found), len({letter.order_id for letter in found} & self.accepted.orders.keys()))
            for (reason, error), found in sorted(groups.items(), key=lambda item: -len(item[1]))
        ]


def for_redis_py(url: str) -> str:
    """Return Celery's URL of a Redis as redis-py spells it."""
    return url.replace("redis+socket://", "unix://").replace("?virtual_host=", "?db=")


def result_states(url: str, task_ids: Iterable[str]) -> dict[str, str]:
    """Return the state of each task that has ended, from Celery's result backend."""
    ids = list(task_ids)
    if not ids:
        return {}
    with redis.Redis.from_url(for_redis_py(url), socket_timeout=5) as client:
        values: Any = client.mget([f"celery-task-meta-{task_id}" for task_id in ids])
    states = {task_id: json.loads(value)["status"] for task_id, value in zip(ids, values, strict=True) if value}
    return {task_id: state for task_id, state in states.items() if state in ("SUCCESS", "FAILURE")}
