"""SIGTERM: what this worker has taken and not begun goes back at once, not when the tasks that run have ended."""

from __future__ import annotations

import contextlib
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.common import ignore_errors

from ..integration import stopping
from ..integration.mainstate import state
from ..integration.request import GuardedRequest

__all__ = ["GivingBack", "give_back"]

logger = get_logger(__name__)


class GivingBack(bootsteps.StartStopStep):
    """Stops consuming and returns prefetched and delayed messages to their queues, where other workers take them.

    Celery keeps them until its connection closes, after the last task: for the whole drain time. A step of the worker: when the
    consumer's own steps are told, Celery has forgotten what it held (consumer.py, ``on_close``).
    """

    label = "guardrails giving back"

    def start(self, w: Any) -> None:
        """Nothing to start."""

    def stop(self, w: Any) -> None:
        """Nothing to stop."""

    def terminate(self, w: Any) -> None:
        """Nothing to stop."""

    def close(self, w: Any) -> None:
        """The worker begins to stop: its pool is not drained yet."""
        consumer = w.consumer
        stopping.set_stopping()
        if getattr(consumer, "task_consumer", None) is not None:
            self._give_all_back(consumer)
        state.taking = False

    def _give_all_back(self, c: Any) -> None:
        ignore_errors(c, c.task_consumer.cancel)  # first, or they come again
        _read_what_was_asked_for(c.task_consumer.channel)
        semaphore = getattr(c.controller, "semaphore", None)
        if semaphore is not None:  # before a task is heard to have ended, and one that waits gets its place in the pool
            semaphore.clear()
        hear = getattr(getattr(c.pool, "_pool", None), "hear", None)
        if hear is not None:  # what has begun stays; a process says so before it looks whether the worker is stopping
            hear()
        executor = getattr(c.pool, "executor", None)
        if executor is not None:  # of the threads pool, which is handed all that is prefetched
            executor.shutdown(wait=False, cancel_futures=True)
        for request in list(worker_state.requests.values()):
            # what came over a connection that was lost may be with another worker by now; before 5.7 Celery keeps it in this table
            if request.message.channel is c.task_consumer.channel and not _begun(request, queued_in_pool=executor is not None):
                give_back(c, request)


def give_back(c: Any, request: Any) -> None:
    """Return the message of a request that has not begun to its queue, at once."""
    entry = getattr(request, "_eta_timer_entry", None)
    if entry is not None:
        c.timer.cancel(entry)
    # not request.reject(): it leaves the sending to an event loop that has ended
    if isinstance(request, GuardedRequest) and request.return_afresh():
        request.message.ack_log_error(logger, c.connection_errors)
    else:
        request.acknowledged = True
        request.message.reject_log_error(logger, c.connection_errors, requeue=True)
        state.tally.count("handed_back")
    worker_state.task_ready(request)


def _read_what_was_asked_for(channel: Any) -> None:
    """On Redis, read the answer to the last request for a message: nobody consumes any more, so kombu puts it back."""
    if getattr(channel, "_in_poll", None):
        with contextlib.suppress(Exception):  # queue.Empty: there was none; anything else: the server is away
            channel._brpop_read()


def _begun(request: Any, queued_in_pool: bool) -> bool:
    if request.acknowledged or request in worker_state.active_requests:
        return True
    if getattr(request, "_apply_result", None) is None:
        return False  # the pool has not seen it
    # A guarded task that a thread takes out of the pool's queue in this moment will not run its body: it looks whether the worker
    # is stopping. A plain one would, beside the message that went back.
    return not (queued_in_pool and isinstance(request, GuardedRequest))
