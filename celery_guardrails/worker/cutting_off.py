"""The end of a worker whose tasks run in its own process (threads, gevent, solo) and outlast the drain time.

Nothing can stop such a task but the end of the process. So the process ends, and in this order: first whatever a worker has to
do at its end, while the leases are still held and renewed; then the leases are given back; then, on Redis, the messages, in one
transaction; and the process is gone. RabbitMQ takes the messages back when it sees the connection close, which is later still.
What a body does in the milliseconds between is what it does when a machine loses power: the fence is for that.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.apps import worker as worker_app
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.utils.json import loads

from ..integration import overtaken
from ..integration.app import Guardrails
from ..integration.mainstate import state
from ..integration.request import GuardedRequest
from .listing import listed

__all__ = ["CutOff", "live"]

logger = get_logger(__name__)

#: Seconds for what others do at the end of a worker: receivers of ``worker_shutdown``, functions of ``atexit``.
_FAREWELL = 5.0
#: Seconds between two looks at tasks that must not be cut off.
_LOOK = 0.2
#: Seconds in which the main thread notices that it shall stop, unless it is blocked: a gevent worker drains events for two
#: seconds, and once more when it has noticed (worker/loops.py, ``synloop``).
_NOTICE = 8.0
_SOLO = "celery.concurrency.solo"


def live() -> list[Any]:
    """Return the requests whose bodies run and whose messages go back when they are stopped."""
    return [request for request in list(state.live.values()) if not request.acknowledged]


class CutOff:
    """Ends the process.

    Args:
        w: the worker.
        rails: of its app.
    """

    def __init__(self, w: Any, rails: Guardrails) -> None:
        self._worker = w
        self._rails = rails
        #: Whether this is how the worker ends.
        self.begun = False

    def __call__(self, report: Callable[[], None]) -> None:
        """Do not return, unless everything that runs has ended by itself meanwhile.

        Args:
            report: writes the last line of the log.
        """
        while any(not _goes_back(request) for request in listed(worker_state.active_requests)):
            time.sleep(_LOOK)  # a task without a guard may be acknowledged already: Celery waits for it, and so do we
        if type(self._worker.pool).__module__ != _SOLO:
            self._wait_for_the_consumer()
        if not live():
            return
        self.begun = True
        for request in live():
            logger.warning(
                "%s[%s] is cut off and handed back: it still runs, the drain time is over, and only the end of this process stops it",
                request.name,
                request.id,
            )
        _keep_messages()
        farewell = threading.Thread(target=self._farewell, name="guardrails-farewell", daemon=True)
        farewell.start()
        farewell.join(_FAREWELL)
        left = live()
        for _ in left:
            state.tally.count("abandoned")
        report()
        _flush()
        for request in left:
            overtaken.mark(request.delivery.holder)
            with contextlib.suppress(Exception):  # whatever a store raises: the others' leases are still to be given back
                request.surrender()
        try:
            _acknowledge_the_finished()
            _return_messages()
        finally:
            os._exit(self._worker.exitcode or 0)

    def _wait_for_the_consumer(self) -> None:
        """Wait until nothing is taken from the broker any more, or what is handed back would come again.

        The main thread may notice a signal late, or never, when it waits for a place in a full pool or runs a task itself: then
        it does not take anything either.
        """
        end = time.monotonic() + _NOTICE
        while state.taking and time.monotonic() < end:
            time.sleep(_LOOK / 4)

    def _farewell(self) -> None:
        signals.worker_shutdown.send(sender=self._worker)
        if getattr(self._worker, "pidlock", None):
            self._worker.pidlock.release()
        atexit.unregister(worker_app._reload_current_worker)  # a SIGHUP's: it would start anew before the leases are given back
        atexit._run_exitfuncs()


def _goes_back(request: Any) -> bool:
    return isinstance(request, GuardedRequest) and not request.acknowledged


def _acknowledge_the_finished() -> None:
    """Send the acknowledgements that an event loop would send if it had not ended."""
    hub: Any = getattr(state.consumer, "hub", None)
    for callback in list(hub._pop_ready()) if hasattr(hub, "_pop_ready") else ():
        if getattr(getattr(callback, "fun", None), "__name__", "") in ("ack_log_error", "reject_log_error"):
            with contextlib.suppress(Exception):
                callback()


def _redis_channel() -> Any:
    channel: Any = getattr(state.task_consumer, "channel", None)
    return channel if hasattr(getattr(channel, "qos", None), "restore_by_tag") else None


def _keep_messages() -> None:
    """On Redis, keep kombu from returning messages at the exit of the interpreter: the leases are still held then."""
    channel = _redis_channel()
    if channel is not None:
        channel.qos.restore_at_shutdown = False


def _return_messages() -> None:
    """On Redis, put back what this worker holds: nobody else would before the visibility timeout."""
    channel = _redis_channel()
    if channel is None:
        return
    qos = channel.qos
    with channel.conn_or_acquire() as client:
        tags = list(qos._delivered)
        with client.pipeline(transaction=False) as pipe:
            for tag in tags:
                pipe.hget(qos.unacked_key, tag)
            found = pipe.execute()
        with client.pipeline() as pipe:
            for tag, held in zip(tags, found, strict=True):
                if held:  # not acknowledged meanwhile
                    message, exchange, routing_key = loads(held)
                    qos._remove_from_indices(tag, pipe)
                    channel._do_restore_message(message, exchange, routing_key, pipe, leftmost=True)
            pipe.execute()


def _flush() -> None:
    for handler in logging.getLogger().handlers + logging.getLogger("celery").handlers:
        with contextlib.suppress(Exception):
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
