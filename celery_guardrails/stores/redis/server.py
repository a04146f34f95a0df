"""Records on one server: named by its address, or found through sentinels."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from .runner import FAILURES, Head, heads_of, refused_write, script_texts
from .scripts import Scripts
from .urls import Mode, Place
from .vitals import vitals

__all__ = ["Server"]

T = TypeVar("T")

#: Seconds for which what the sentinels said is believed.
_ASK_EVERY = 1.0


class Server:
    """A :class:`~.runner.Runner` on one server.

    With sentinels every new connection asks them for the master (redis-py, ``sentinel.py``). After a failover the old
    master closes its connections or refuses to write, and either makes us connect anew; but one that lives takes writes
    for some ten seconds more before it is told, and they are lost. So the sentinels are asked every second besides.

    Args:
        client: of redis-py, bytes in and out.
        sentinel: where the client's connections ask for their server.
        service: the sentinels' name for it.
    """

    together = True

    def __init__(self, client: redis.Redis, sentinel: Sentinel | None = None, service: str = "") -> None:
        self._client = client
        self._sentinel = sentinel
        self._service = service
        self._scripts = Scripts(client, script_texts())
        self.run = self._scripts.run if sentinel is None else self._run_on_master
        self._master: tuple[str, int] | None = None
        self._ask_at = 0.0

    @classmethod
    def at(cls, place: Place) -> Server:
        """Return the server at a place; it is connected to with the first call.

        Raises:
            ValueError, TypeError, redis.exceptions.RedisError: the options are not redis-py's.
        """
        options = dict(place.options)
        sentinel: Sentinel | None = None
        if place.mode is Mode.SENTINEL:
            secure = options.pop("connection_class", None) is not None
            options["retry"] = Retry(NoBackoff(), 0)  # redis-py's own repetition goes to the old address: see _twice
            sentinel = Sentinel(place.nodes, min_other_sentinels=place.min_other_sentinels, sentinel_kwargs=dict(place.sentinel))
            client: redis.Redis = sentinel.master_for(place.service, **options, **({"ssl": True} if secure else {}))
            pools = [client.connection_pool, sentinel.sentinels[0].connection_pool]
        else:
            client = redis.Redis(connection_pool=redis.ConnectionPool(**options))
            pools = [client.connection_pool]
        for pool in pools:  # redis-py looks at the options when it connects, which is too late to name the setting
            pool.connection_class(**pool.connection_kwargs)
        return cls(client, sentinel, place.service)

    def run_many(self, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """See :class:`~.runner.Runner`; one round trip."""
        return self._twice(lambda: self._run_many(name, calls))

    def _run_many(self, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        sha, answers = self._scripts.sha(name), []
        for _ in range(3):  # refused by the old master, unknown to the new one, done
            pipeline = self._client.pipeline(transaction=False)
            for key, *args in calls:
                pipeline.evalsha(sha, 1, key, *args)
            answers = pipeline.execute(raise_on_error=False)
            if any(isinstance(answer, NoScriptError) for answer in answers):  # a restarted server has forgotten its scripts
                self._client.script_load(self._scripts.text(name))
            elif any(refused_write(answer) for answer in answers):
                self._client.connection_pool.disconnect()
            else:
                break
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def heads(self, pattern: str) -> Iterator[list[Head]]:
        """See :class:`~.runner.Runner`."""
        return heads_of(self._client, pattern)

    def delete(self, key: str) -> int:
        """See :class:`~.runner.Runner`."""
        return int(self._twice(lambda: self._client.delete(key)))

    def time(self) -> tuple[int, int]:
        """See :class:`~.runner.Runner`."""
        seconds, microseconds = self._twice(self._client.time)
        return int(seconds), int(microseconds)

    def ping(self) -> None:
        """See :class:`~.runner.Runner`."""
        self._twice(self._client.ping)

    def vitals(self) -> list[dict[str, Any]]:
        """See :class:`~.runner.Runner`."""
        return [self._twice(lambda: vitals(self._client))]

    def close(self) -> None:
        """See :class:`~.runner.Runner`."""
        self._scripts.close()
        clients = [self._client, *(self._sentinel.sentinels if self._sentinel is not None else ())]
        for client in clients:
            with contextlib.suppress(*FAILURES):
                client.connection_pool.disconnect()

    def _twice(self, call: Callable[[], T]) -> T:
        """Repeat a call whose connection was lost, on a connection that asks the sentinels anew.

        Without sentinels redis-py repeats it itself. With them it would connect to the address that it had before
        (redis-py 8, ``connect_check_health``), where a former master may just be starting again, empty and as a master.
        """
        self._follow_master()
        try:
            return call()
        except (RedisConnectionError, RedisTimeoutError):
            if self._sentinel is None:
                raise
            self._client.connection_pool.disconnect(inuse_connections=False)
            return call()

    def _run_on_master(self, name: str, key: str, *args: Any) -> Any:
        self._follow_master()
        return self._scripts.run(name, key, *args)

    def _follow_master(self) -> None:
        """Leave the connections behind that go to a former master."""
        now = time.monotonic()
        if self._sentinel is None or now < self._ask_at:
            return
        self._ask_at = now + _ASK_EVERY
        try:
            master = self._sentinel.discover_master(self._service)
        except FAILURES:
            self._ask_at = now + 10 * _ASK_EVERY  # what goes on without them need not wait for them
            return
        if self._master not in (None, master):
            self._scripts.close()
            self._client.connection_pool.disconnect(inuse_connections=False)
        self._master = master
