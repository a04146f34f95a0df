"""A process killed, or somebody else in the middle, at one operation of a broker in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery_guardrails.testing.memory_broker import MemoryBroker

__all__ = ["Killed", "killed_at", "meanwhile"]


class Killed(BaseException):
    """kill -9: nobody but the test catches it."""


@contextmanager
def killed_at(broker: MemoryBroker, at: str | int) -> Iterator[None]:
    """Raise :class:`Killed` from the broker, and live on behind the block.

    Args:
        broker: that is spoken to.
        at: name of the operation, as ``"before take"``, or its number, from 0; who is dead is so at all that follow.
    """
    steps = iter(range(at)) if isinstance(at, int) else None

    def die(point: str) -> None:
        if next(steps, None) is None if steps is not None else point == at:
            raise Killed(point)

    with _heard(broker, die):
        yield


@contextmanager
def meanwhile(broker: MemoryBroker, point: str, do: Callable[[], object]) -> Iterator[None]:
    """Do something once, in the middle of the next operation of that name."""

    def interrupt(now: str) -> None:
        if now == point:
            broker._on_operation = before
            do()

    before = broker._on_operation
    with _heard(broker, interrupt):
        yield


@contextmanager
def _heard(broker: MemoryBroker, by: Callable[[str], None]) -> Iterator[None]:
    before = broker._on_operation
    broker._on_operation = by
    try:
        yield
    finally:
        broker._on_operation = before
