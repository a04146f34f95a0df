"""How a look through a broker's queue ends."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["closed_after"]

T = TypeVar("T")


@contextmanager
def closed_after(found: Iterator[T]) -> Generator[Iterator[T], None, None]:
    """Close the broker's iterator at the end, which puts back what was not taken."""
    try:
        yield found
    finally:
        close = getattr(found, "close", None)
        if close is not None:
            close()
