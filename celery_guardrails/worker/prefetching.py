"""After a reconnect Celery raises the prefetch count step by step: in the thread that has the connection, not in a task's."""

from __future__ import annotations

import threading
from typing import Any

from celery import bootsteps
from celery.worker.consumer import Tasks

__all__ = ["Prefetching"]


class Prefetching(bootsteps.StartStopStep):
    """Has ``basic.qos`` sent by the consumer's own thread only.

    A worker that is connected again while tasks run takes fewer messages first, and Celery 5.4 to 5.7 raises that count by one task
    with each acknowledgement that follows (worker/consumer/consumer.py, ``create_task_handler`` and
    ``_restore_prefetch_count_after_connection_restart``). The acknowledgement itself is left to the event loop where there is one, the
    count is not: it is raised where the task has ended, in a thread of the threads pool or a greenlet of gevent's. That one sends
    ``basic.qos`` and reads the answer from the socket that the consumer reads as well.

    On threads the lock that the prefetch count has is taken off it (consumer.py, ``Evloop.patch_all``), so the consumer sends a
    ``basic.qos`` of its own at the same time, and py-amqp remembers one waiter for an answer (abstract_channel.py, ``wait``): of
    two that wait, one gets it, and the other waits without end. Where that is the consumer, its worker takes no message any more;
    where it is the pool's thread, the pool has one thread less, and two readers may take one frame apart. On gevent the
    second reader is an error, which may end the worker.

    So the count is raised when the consumer's loop comes round, for guarded and plain tasks alike.
    """

    label = "guardrails prefetching"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._thread: int | None = None
        self._consumer = c
        self._restore = c._restore_prefetch_count_after_connection_restart
        c._restore_prefetch_count_after_connection_restart = self._restore_in_its_thread

    def start(self, c: Any) -> None:
        """Note whose thread the connection is; nothing has come over it yet."""
        self._thread = threading.get_ident()

    def stop(self, c: Any) -> None:
        """Nothing to stop."""

    def _restore_in_its_thread(self, *ended: Any) -> None:
        if threading.get_ident() == self._thread:
            self._restore(*ended)
        else:
            self._consumer.call_soon(self._restore, *ended)
