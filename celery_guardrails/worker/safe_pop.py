"""Redis: a message is never in the worker's main process alone.

kombu's transport (redis.py, ``_brpop_start`` and ``_brpop_read``, seen in 5.5 and 5.7) pops with BRPOP and writes the
message among the unacknowledged afterwards, from the worker. A main process that is killed in between takes the only copy with
it, and "in between" is long: Redis answers a waiting BRPOP at once, whatever the worker is busy with. With two busy workers
17 kills of a main process lost 5 messages; so does one SIGSTOP, one publish, one SIGKILL, every time.

Here a script takes and writes in one step. A script cannot wait, so a worker with nothing to do waits by moving the
list's last element onto its own end (BLMOVE): that waits until there is one, and leaves it where it is.

What is noted already kombu need not note again, and an ack is one small script instead of a transaction: so taking and
acknowledging cost the main process less than in plain Celery, which makes up for what the guard costs it (docs/benchmarks.md).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from celery.utils.log import get_logger
from kombu.transport import virtual

from ..stores.redis.scripts import Scripts

__all__ = ["take_safely"]

logger = get_logger(__name__)


def _script(name: str) -> str:
    """Return a script without its comments: it travels with every message."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.strip() for line in lines if not line.strip().startswith("--"))


_TAKE, _ACK = _script("take.lua"), _script("ack.lua")
#: Seconds that a worker waits on its first list before it looks at all of them again (other queues, other priorities).
_WAIT = 0.25
#: Seconds that kombu's lock on the restore sweep lives on after a worker was killed in mid-sweep. Its own 300 keep what all
#: killed workers held from coming back for as long. Two sweeps at once do no harm: each restore is a transaction.
_SWEEP_LOCK = 10
#: Seconds after which a worker compares its clock with Redis' again.
_CLOCK_CHECK = 60.0
#: Redis that has BLMOVE.
_NEEDED = (6, 2)


def take_safely(channel: Any) -> None:
    """Make a channel of kombu's Redis transport take messages safely; any other channel is left alone."""
    if not (hasattr(channel, "_brpop_start") and hasattr(channel, "unacked_index_key")):
        return
    _close_without_a_broker(channel.qos)
    _sweep_by_the_servers_clock(channel)
    if channel.unacked_mutex_expire == type(channel).unacked_mutex_expire:
        channel.unacked_mutex_expire = _SWEEP_LOCK
    if not _has_blmove(channel):
        logger.warning(
            "this Redis is older than 6.2: a message that the broker has just handed to a worker is lost "
            "when the worker's main process is killed in that moment; use Redis 6.2 or Valkey"
        )
        return
    _Taker(channel)


def _close_without_a_broker(qos: Any) -> None:
    """Keep the end of a connection from being the end of the worker.

    A channel that is closed gives back what it holds. With the server away that fails, and kombu looks over it; but where
    reading a last answer has failed before, Celery closes the channel a second time, when its transport has been taken
    apart, and then it fails with an AttributeError that ends the worker (celery/worker/consumer/consumer.py,
    ``on_connection_error_after_connected``; kombu 5.7, redis.py, ``close``). What is held is given back after the reconnect
    (:mod:`.renewal`).
    """
    restore = qos.restore_unacked_once

    def restore_if_possible(*args: Any, **options: Any) -> None:
        try:
            restore(*args, **options)
        except Exception as exc:  # noqa: BLE001 - whatever a half closed connection raises
            logger.warning("the broker is away, so what this worker holds is given back after the reconnect (%r)", exc)

    qos.restore_unacked_once = restore_if_possible


def _sweep_by_the_servers_clock(channel: Any) -> None:
    """Have this worker find what dead workers held by Redis' clock.

    kombu notes and sweeps by the clock of whichever worker does it: one whose clock is an hour ahead takes away what others
    work on, one whose clock is behind leaves what others held for an hour more. Our scripts note by the server's clock.
    """
    qos, sweep, timeout = channel.qos, channel.qos.restore_visible, channel.visibility_timeout
    ahead, measured = 0.0, -_CLOCK_CHECK

    def restore_visible(*args: Any, **options: Any) -> Any:
        nonlocal ahead, measured
        if time.monotonic() - measured >= _CLOCK_CHECK:
            with channel.conn_or_acquire() as client:
                seconds, microseconds = client.time()
            ahead, measured = time.time() - seconds - microseconds / 1e6, time.monotonic()
        qos.visibility_timeout = timeout + ahead
        try:
            return sweep(*args, **options)
        finally:
            qos.visibility_timeout = timeout

    qos.restore_visible = restore_visible


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
        qos = channel.qos
        self._noted = ""
        self._note_plainly = qos.append
        self._acks = Scripts(self._client, {"ack": _ACK})
        qos.append, qos.ack = self._note, self._ack

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
        return self._send_plainly("EVAL", _TAKE, 2 + len(lists), *unacked, *lists)

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
        key, item, tag = answer
        self._noted = tag.decode()
        return key[len(self._channel.global_keyprefix.encode()) :], item

    def _note(self, message: Any, delivery_tag: str) -> None:
        """Remember that a message is unacknowledged, here and, unless the script has done so, in Redis."""
        noted, self._noted = self._noted, ""
        if noted and noted == delivery_tag:
            virtual.QoS.append(self._channel.qos, message, delivery_tag)
        else:
            self._note_plainly(message, delivery_tag)

    def _ack(self, delivery_tag: str) -> None:
        prefix, qos = self._channel.global_keyprefix, self._channel.qos
        self._acks.run("ack", prefix + qos.unacked_key, prefix + qos.unacked_index_key, delivery_tag)
        virtual.QoS.ack(qos, delivery_tag)
