"""Renews the leases of everything that runs in this worker, in one call, from its main process.

A child that holds the GIL for seconds cannot renew its own lease; the main process can.
"""

from __future__ import annotations

import time
from typing import Any

from celery import bootsteps
from celery.worker import state as worker_state
from celery.worker.consumer import Tasks

from ..integration import overtaken, stopping
from ..integration.app import ensure_guardrails
from ..integration.mainstate import state
from ..integration.solitude import solitude
from ..policy.suspicion import QUARANTINE
from . import holding  # noqa: F401 - what is imported answers control commands
from .background import Background

__all__ = ["Renewal"]


class Renewal(bootsteps.StartStopStep):
    """Extends leases, and on Redis also the visibility of the messages that this worker holds."""

    label = "guardrails renewal"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._background = Background("guardrails-renewal", self._round)
        # A thread of its own: a broker that carries nothing and says nothing must not hold up the leases, which are in the store.
        self._visibility = Background("guardrails-visibility", self._extend_visibility)
        self._qos: Any = None

    def start(self, c: Any) -> None:
        """Start with the consumer; after a reconnect the threads run already."""
        state.consumer, state.taking = c, True
        self._give_back(getattr(c.task_consumer.channel, "qos", None))
        self._background.start()
        if hasattr(self._rails.broker, "touch"):
            self._visibility.start()

    def _give_back(self, qos: Any) -> None:
        """On Redis, put back what the connection held that broke.

        kombu does so when it closes the channel, which fails while the server is away (virtual/base.py,
        ``restore_unacked_once``): the messages would wait for the visibility timeout, an hour by default. What still
        runs in a child is delivered a second time by it; the key's lease sees to that.
        """
        lost = self._qos
        if lost is not None and lost is not qos and hasattr(qos, "restore_by_tag"):
            for tag in tuple(lost._delivered):
                qos.restore_by_tag(tag, leftmost=True)
        self._qos = qos

    def stop(self, c: Any) -> None:
        """Only note it: running tasks are waited for after the consumer has stopped, and keep their leases."""
        state.taking = False

    def shutdown(self, c: Any) -> None:
        """End the threads: the pool is gone."""
        self._background.stop()
        self._visibility.stop()

    def _round(self) -> float:
        lease = self._rails.settings.lease_seconds
        self._prune()
        guard = self._rails.main_guard
        leases = [(r.delivery.key, holder) for holder, r in list(state.live.items())]
        for (_, holder), held in zip(leases, guard.store.renew(self._with_quarantine(leases), lease), strict=False):
            if not held:  # overtaken, or it has not begun or has ended meanwhile: the child finds out which
                overtaken.mark(holder)
        self._hold_slots(lease)
        guard.skew = guard.store.now() - guard.clock.now()
        state.renewed = time.monotonic()
        return lease / 3

    def _with_quarantine(self, leases: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Add the lease of the quarantine, if one of these holders is in there; last, so that nobody is told of its loss."""
        suspect = solitude.in_quarantine()
        return [*leases, (QUARANTINE, suspect)] if suspect in state.live else leases

    def _hold_slots(self, lease: float) -> None:
        slots = [(request.resource, holder) for holder, request in list(state.live.items()) if request.resource is not None]
        if slots:
            self._rails.resource_store.hold(slots, lease)

    def _prune(self) -> None:
        for holder, request in list(state.live.items()):
            # what a cold shutdown cancels is not active any more, and still has a lease to give back
            if request not in worker_state.active_requests and (request.acknowledged or not stopping.is_stopping()):
                state.live.pop(holder, None)

    def _extend_visibility(self) -> float:
        """Tell kombu's Redis transport that this worker still holds its messages; returns the seconds until it is due again."""
        often = self._rails.settings.lease_seconds / 3
        consumer = state.task_consumer
        touch = getattr(self._rails.broker, "touch", None)
        channel = getattr(consumer, "channel", None)
        delivered = getattr(getattr(channel, "qos", None), "_delivered", None)
        if touch is None or channel is None or delivered is None:
            return often
        touch(list(delivered))
        if getattr(state.consumer, "hub", None) is None:
            # Without an event loop (gevent, eventlet) kombu sweeps when a poll finds nothing to read, and an idle worker always
            # finds the end of its waiting (redis.py, ``MultiChannelPoller.get``): what dead workers held would never come back.
            channel.qos.restore_visible(num=channel.unacked_restore_limit, interval=1)
        return min(often, float(getattr(channel, "visibility_timeout", None) or 3600) / 3)
