"""Redis: a message is never in the worker's main process alone.

kombu's transport (redis.py, ``_brpop_start`` and ``_brpop_read``, seen in 5.5 and 5.7) pops with BRPOP and writes the
message among the unacknowledged afterwards, from the worker. A main process that is killed in between takes the only copy with
it, and "in between" is long: Redis answers a waiting BRPOP at once, whatever the worker is busy with. With two busy workers
17 kills of a main process lost 5 messages; so does one SIGSTOP, one publish, one SIGKILL, every time.

Here a script takes and writes in one step. A script cannot wait, so a worker with nothing to do waits by moving the
list's last element onto its own end (BLMOVE): that waits until there is one, and leaves it where it is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from celery.utils.log import get_logger

__all__ = ["take_safely"]

logger = get_logger(__name__)

_TAKE = (Path(__file__).parent / "take.lua").read_text(encoding="utf-8")
#: Seconds that a worker waits on its first list before it looks at all of them again (other queues, other priorities).
_WAIT = 0.25
#: Seconds that kombu's lock on the restore sweep lives on after a worker was killed in mid-sweep. Its own 300 keep what all
#: killed workers held from coming back for as long. Two sweeps at once do no harm: each restore is a transaction.
_SWEEP_LOCK = 10
#: Redis that has BLMOVE.
_NEEDED = (6, 2)


def take_safely(channel: Any) -> None:
    """Make a channel of kombu's Redis transport take messages safely; any other channel is left alone."""
    if not (hasattr(channel, "_brpop_start") and hasattr(channel, "unacked_index_key")):
        return
    if channel.unacked_mutex_expire == type(channel).unacked_mutex_expire:
        channel.unacked_mutex_expire = _SWEEP_LOCK
    if not _has_blmove(channel):
        logger.warning(
            "this Redis is older than 6.2: a message that the broker has just handed to a worker is lost "
            "when the worker's main process is killed in that moment; use Redis 6.2 or Valkey"
        )
        return
    _Taker(channel)


def _has_blmove(channel: Any) -> bool:
    with channel.conn_or_acquire() as client:
        version = str(client.info("server").get("redis_version", "0"))
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2]) >= _NEEDED


class _Taker:
    """Turns the BRPOP that kombu sends into what does not lose: what is sent, and what is read, changes; when does not."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._client = channel.client
        self._waiting = False
        self._send_plainly: Any = None
        self._parse = self._client.parse_response
        self._start = channel._brpop_start
        self._client.parse_response = self._read
        channel._brpop_start = self._begin

    def _begin(self, timeout: float | None = None) -> Any:
        connection = self._client.connection
        if connection.__dict__.get("send_command") != self._send:  # another connection than the last time
            self._send_plainly, self._waiting = connection.send_command, False
            connection.send_command = self._send
        return self._start(timeout)

    def _send(self, *command: Any, **options: Any) -> Any:
        if command[0] != "BRPOP":
            return self._send_plainly(*command, **options)
        lists, prefix = command[1:-1], self._channel.global_keyprefix
        if self._waiting:
            return self._send_plainly("BLMOVE", lists[0], lists[0], "RIGHT", "RIGHT", _WAIT)
        unacked = (prefix + self._channel.unacked_index_key, prefix + self._channel.unacked_key)
        # EVAL and not EVALSHA: a restarted server has forgotten its scripts, and here nobody could ask again.
        return self._send_plainly("EVAL", _TAKE, 2 + len(lists), *unacked, *lists, time.time())

    def _read(self, connection: Any, command: Any, **options: Any) -> Any:
        if command != "BRPOP":
            return self._parse(connection, command, **options)
        if self._waiting:
            self._waiting = False
            self._parse(connection, "BLMOVE", **options)
            return None  # as if BRPOP had timed out: kombu asks again, and then it is taken
        answer = self._parse(connection, "EVAL", **options)
        if not answer:
            self._waiting = True
            return None
        key, item = answer
        return key[len(self._channel.global_keyprefix.encode()) :], item
