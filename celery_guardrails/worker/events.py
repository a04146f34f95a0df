"""Has the worker's events published without confirms: its main process must not wait for a broker that takes no messages."""

from __future__ import annotations

import contextlib
from typing import Any

from celery import bootsteps

__all__ = ["UnconfirmedEvents"]


#: Seconds that RabbitMQ has to answer to the end of the connection. It never does while it is out of disk or memory.
_FAREWELL = 2.0


class UnconfirmedEvents(bootsteps.StartStopStep):
    """Leaves the guard's publisher confirms out of one connection, that of events and heartbeats.

    Celery publishes ``worker-heartbeat`` every two seconds from the event loop of the main process (worker/heartbeat.py), and with
    confirms py-amqp waits for the answer without end (channel.py, ``basic_publish_confirm``). RabbitMQ gives none while it is out of
    disk or memory: nothing would be acknowledged any more, and SIGTERM not heard. Events are transient; nobody misses one.
    """

    label = "guardrails events"

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._consumer = c
        # Celery uses it for events only (worker/consumer/events.py)
        c.connection_for_write = self._connect

    def start(self, c: Any) -> None:
        """Nothing: Celery connects."""

    def stop(self, c: Any) -> None:
        """Bound the time that Celery waits when it closes the connection, now or after a reconnect."""
        with contextlib.suppress(Exception):  # of other transports, or not connected
            c.event_dispatcher.connection.connection.sock.settimeout(_FAREWELL)

    def _connect(self, heartbeat: Any = None) -> Any:
        c = self._consumer
        return c.ensure_connected(c.app.connection_for_write(heartbeat=heartbeat, transport_options={"confirm_publish": False}))
