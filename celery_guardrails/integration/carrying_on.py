"""What comes after a guarded task is published with patience: the next step of its chain, its callbacks, the body of its chord.

Celery publishes these when the body has returned and tries three times, for about a second (celery/app/amqp.py 5.7,
``_retry_publish``). A broker that is restarted takes longer, and then the chain ends there, or the chord is marked as failed and
forgotten (celery/backends/redis.py, ``on_chord_part_return``): no delivery of the member that comes later can begin its body again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import _state

from .running import running_now

__all__ = ["patient_policy"]

#: Times that are tried again, at intervals of a second at most: as long as a completion waits for the store. The body has had its
#: effect, and while its broker is away this process has nothing else to do. A drain time that is over ends the wait.
_TIMES = 600


def patient_policy(default: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the retry policy to publish with, or None where Celery's own is right.

    Args:
        default: the app's ``task_publish_retry_policy``.
        given: that of this publish.
    """
    if not _carries_on():
        return None
    wanted = {**default, **(given or {})}
    times = wanted.get("max_retries")
    if times is not None and times >= _TIMES:
        return None
    return {**wanted, "max_retries": _TIMES}


def _carries_on() -> bool:
    """Whether a guarded task is the current one, and its body is over."""
    task = _state.get_current_worker_task()
    if task is None or not getattr(task, "guarded", False) or running_now.get() is not None:
        return False
    request = task.request
    return bool(request.id) and not request.called_directly and not request.is_eager
