"""Lua scripts on connections of our own.

redis-py's way of a command (pool, telemetry, retry closures, script object) takes about 90 µs of CPU, three times the
command itself, and a guarded task has two of them; ``python -m benchmarks.costs`` shows it. So scripts are sent on
connections that are kept here, with no more of redis-py than its connection class: which knows TLS, passwords, unix
sockets, Sentinel and reconnecting.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .runner import refused_write

__all__ = ["Scripts"]

#: Seconds before the one repetition.
_PAUSE = 0.05


class Scripts:
    """Runs scripts by name, each on one key; safe among threads and after a fork.

    A lost or slow connection is replaced and the script repeated once: the first command after a server's restart
    meets a dead connection, and every script here may be repeated. So is it where the server has become a replica: the
    name may lead to another by now.

    Args:
        client: says where to connect and how.
        texts: of the scripts, by name.
    """

    def __init__(self, client: redis.Redis, texts: dict[str, str]) -> None:
        pool = client.connection_pool
        self._connect: Callable[[], Any] = lambda: pool.connection_class(**pool.connection_kwargs)
        self._texts = texts
        self._shas = {name: client.register_script(text).sha for name, text in texts.items()}
        # A stack: what one thread used last is the warmest, and a connection belongs to one call at a time.
        self._idle: deque[Any] = deque()
        self._pid = os.getpid()

    def run(self, name: str, key: str, *args: Any) -> Any:
        """Return what the script answers.

        Raises:
            redis.exceptions.RedisError: the server is away, or refuses.
        """
        try:
            return self.once(name, key, *args)
        except (RedisConnectionError, RedisTimeoutError, OSError):
            pass
        except ResponseError as exc:
            if not refused_write(exc):
                raise
        self.close()  # what became of one connection became of the others
        time.sleep(_PAUSE)
        return self.once(name, key, *args)

    def sha(self, name: str) -> str:
        """Return the digest by which the server knows a script."""
        return self._shas[name]

    def text(self, name: str) -> str:
        """Return a script."""
        return self._texts[name]

    def close(self) -> None:
        """Close the idle connections; the next script opens another."""
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while True:
                self._idle.pop().disconnect()

    def once(self, name: str, key: str, *args: Any) -> Any:
        """As :meth:`run`, without the repetition."""
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()  # the parent's connections stay the parent's
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
            # Not left to the first command: that would not ask the sentinels (redis-py 8, ``connect_check_health``).
            connection.connect()
        command = [_packed(("EVALSHA", self._shas[name], 1, key, *args))]
        try:
            connection.send_packed_command(command)
            try:
                answer = connection.read_response()
            except NoScriptError:
                connection.send_command("SCRIPT LOAD", self._texts[name])
                connection.read_response()
                connection.send_packed_command(command)
                answer = connection.read_response()
        except BaseException:
            # Also a soft time limit's: an answer that nobody has read must not be the next command's.
            connection.disconnect()
            raise
        self._idle.append(connection)
        return answer


def _packed(command: tuple[Any, ...]) -> bytes:
    """Return a command as the protocol has it (RESP, arrays of bulk strings): redis-py's own way takes five times as long."""
    parts = [part if type(part) is bytes else str(part).encode() for part in command]
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))
