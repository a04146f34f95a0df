"""Stops consuming a queue while the one resource that it serves lets nobody in: the backlog stays with the broker.

What a worker takes meanwhile it could only hand back, message after message, and the whole queue would pass through the
delays again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.consumer import Tasks

from .. import events
from ..integration import stopping
from ..integration.app import ensure_guardrails
from ..integration.mainstate import state
from ..integration.translate import remember_tags
from ..policy.resource import BREAKER, SLOTS, ResourceView
from .background import Background

__all__ = ["Pausing", "must_pause", "sole_resources"]

logger = get_logger(__name__)

#: Seconds between two looks at the resources: while all is well, and while a queue is paused or a breaker is not closed.
_CALM, _ALERT = 1.0, 0.5
#: Seconds after a queue is consumed again: a half-open breaker wants one execution, not all that this worker can take.
_SOON = 0.1


def sole_resources(app: Any) -> dict[str, str]:
    """Return the queues that serve one resource only, by the tasks that the app knows and routes there; queue → resource."""
    found: dict[str, set[str | None]] = {}
    for task in list(app.tasks.values()):
        if task.name.startswith("celery."):
            continue
        resource = task.guard_options.resource if getattr(task, "guarded", False) else None
        found.setdefault(_queue_of(app, task), set()).add(resource)
    return {queue: name for queue, (name, *others) in found.items() if queue and name and not others}


def _queue_of(app: Any, task: Any) -> str:
    options = {name: getattr(task, name) for name in ("queue", "exchange", "routing_key") if getattr(task, name, None)}
    try:
        queue = app.amqp.router.route(options, task.name, (), {}, task_type=task).get("queue")
    except Exception as exc:  # noqa: BLE001 - a project's own router, which may want to see arguments
        logger.debug("no one can say without its arguments where %s is published to: %r", task.name, exc)
        return ""
    return str(getattr(queue, "name", queue) or "")


def must_pause(now: ResourceView, before: ResourceView | None) -> bool:
    """Whether a first attempt could not begin soon.

    A resource whose slots are full is no reason while they change hands: somebody has to be waiting for the next one. It is
    one where all are full of long tasks.
    """
    if now.why == SLOTS:
        return before is not None and before.why == SLOTS and before.entered == now.entered
    if now.why == BREAKER:
        return True
    return now.wait >= _ALERT


class Pausing(bootsteps.StartStopStep):
    """Looks at the resources of this worker's tasks from a thread; what is done to the consumer is done in the main one."""

    label = "guardrails pausing"
    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._rails = ensure_guardrails(c.app)
        self._background = Background("guardrails-pausing", self._round)
        self._consumer = c
        self._sole: dict[str, str] = {}
        self._views: dict[str, ResourceView] = {}
        #: Queue → what the consumer had for it.
        self._paused: dict[str, Any] = {}

    def start(self, c: Any) -> None:
        """Start with the consumer, which consumes everything again after a reconnect."""
        self._paused.clear()
        used = {task.guard_options.resource for task in list(c.app.tasks.values()) if getattr(task, "guarded", False)} - {None}
        if used:
            self._sole = sole_resources(c.app)
            self._background.start()

    def stop(self, c: Any) -> None:
        """Stop with the consumer."""
        self._background.stop()

    def _round(self) -> float:
        views = {view.name: view for view in self._rails.resources()}
        self._report(views)
        consuming = {queue.name for queue in getattr(self._consumer.task_consumer, "queues", ())} | set(self._paused)
        wanted = set()
        for queue in consuming:
            name = self._sole.get(queue)
            # what really came from a queue counts as well: a task may be published anywhere
            if name is None or name not in views or state.serves.get(queue, {name}) != {name}:
                continue
            if must_pause(views[name], self._views.get(name)):
                wanted.add(queue)
        self._views = views
        if wanted != set(self._paused):
            self._consumer.call_soon(self._apply, wanted, views)
        if set(self._paused) - wanted:
            return _SOON
        return _ALERT if wanted or any(view.why for view in views.values()) else _CALM

    def _report(self, views: Mapping[str, ResourceView]) -> None:
        for name, view in views.items():
            before = self._views.get(name)
            if (before is None and view.why == BREAKER) or (before is not None and before.condition is not view.condition):
                self._rails.emit(events.BreakerMoved(name, view.condition.value, view.forced, view.until))

    def _apply(self, wanted: set[str], views: Mapping[str, ResourceView]) -> None:
        """Pause what is wanted, resume the rest; in the thread that has the connection."""
        consumer = self._consumer.task_consumer
        if consumer is None or stopping.is_stopping():
            return
        for queue in wanted - set(self._paused):
            entity = next((found for found in consumer.queues if found.name == queue), None)
            if entity is not None:
                self._paused[queue] = entity
                remember_tags(consumer)
                consumer.cancel_by_queue(queue)
                view = views[self._sole[queue]]
                logger.warning("queue %s is not consumed: resource %r lets nobody in (%s)", queue, view.name, view.why)
        for queue in set(self._paused) - wanted:
            entity = self._paused.pop(queue)
            if queue in self._consumer.app.amqp.queues.consume_from:  # nobody has cancelled it meanwhile (`celery control`)
                consumer.add_queue(entity)
                consumer.consume()
                logger.info("queue %s is consumed again", queue)
