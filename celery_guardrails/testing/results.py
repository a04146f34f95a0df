"""A result backend in memory, which never waits: in a test nothing happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from celery import states

from ..errors import GuardrailsError

if TYPE_CHECKING:
    KeyValueStoreBackend: Any = object  # Celery says nothing of its types
else:
    from celery.backends.base import KeyValueStoreBackend

__all__ = ["MemoryResults"]


class MemoryResults(KeyValueStoreBackend):  # type: ignore[misc]
    """Celery's key-value backend on a dictionary, with its serializer, its chord counters and all."""

    supports_native_join = True
    implements_incr = True
    thread_safe = True

    def __init__(self, app: Any) -> None:
        self._values: dict[Any, Any] = {}
        super().__init__(app)

    def get(self, key: Any) -> Any:
        """See Celery."""
        return self._values.get(key)

    def mget(self, keys: Iterable[Any]) -> list[Any]:
        """See Celery."""
        return [self._values.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """See Celery."""
        self._values[key] = value

    def delete(self, key: Any) -> None:
        """See Celery."""
        self._values.pop(key, None)

    def incr(self, key: Any) -> int:
        """See Celery."""
        count: int = int(self._values.get(key, 0)) + 1
        self._values[key] = count
        return count

    def as_uri(self, include_password: bool = False) -> str:
        """See Celery."""
        return "memory://"

    def _ensure_not_eager(self) -> None:
        """What is kept here comes from tasks that were delivered."""

    def wait_for(self, task_id: str, *_: Any, **__: Any) -> Any:
        """Return what has become of a task.

        Raises:
            GuardrailsError: it has not ended yet, and will not while somebody waits.
        """
        meta = self.get_task_meta(task_id)
        if meta["status"] not in states.READY_STATES:
            raise GuardrailsError(
                f"the task {task_id} has not ended (it is {meta['status']}): harness.drain() first, then ask for its result"
            )
        return meta

    def get_many(self, task_ids: Iterable[str], *args: Any, **options: Any) -> Iterator[Any]:
        """Yield what has become of tasks.

        Raises:
            GuardrailsError: one of them has not ended yet.
        """
        wanted = list(task_ids)
        for task_id in wanted:
            self.wait_for(task_id)
        yield from super().get_many(wanted, *args, **options)

    def ended(self) -> Iterator[str]:
        """Yield the ids of the tasks that have ended."""
        for key in list(self._values):
            if key.startswith(self.task_keyprefix):
                task_id = self._strip_prefix(key)
                if self.get_task_meta(task_id)["status"] in states.READY_STATES:
                    yield task_id
