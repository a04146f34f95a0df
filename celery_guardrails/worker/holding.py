"""Tells an audit what this worker holds: RabbitMQ does not show it, and on Redis nobody shows who runs."""

from __future__ import annotations

from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import inspect_command

from ..integration.mainstate import state as main_state
from ..integration.translate import queue_of
from .listing import listed

__all__ = ["holding"]

#: A control command is called with something else by the name of ``state``.
_main = main_state


@inspect_command(name="guardrails_holding", visible=False)
def holding(state: Any) -> dict[str, Any]:
    """Answer ``guardrails audit``: the queues that are consumed, and of each message in hand task id, key, queue and whether it runs."""
    consumer = _main.task_consumer
    # both: of two deliveries of one task id Celery's table of requests has the last one only
    requests = {id(request): request for request in [*list(worker_state.requests.values()), *listed(worker_state.reserved_requests)]}
    return {
        "queues": [queue.name for queue in getattr(consumer, "queues", None) or ()],
        "held": [_told(request) for request in requests.values() if not request.acknowledged],
    }


def _told(request: Any) -> list[Any]:
    delivery = getattr(request, "delivery", None)
    key = request.id if delivery is None else delivery.key
    queue = queue_of(request.message, _main.task_consumer) if delivery is None else delivery.queue
    return [request.id, key, queue, request in worker_state.active_requests]
