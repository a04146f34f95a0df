"""Waiting for a condition, never for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two questions, when they have been asked for two seconds.
_SELDOM = 0.1


def eventually(
    condition: Callable[[], T],
    timeout: float = 15.0,
    *,
    every: float = 0.02,
    because: str | Callable[[], object] = "",
    ignoring: tuple[type[BaseException], ...] = (),
) -> T:
    """Return the first true answer of ``condition``.

    An ``AssertionError`` in the condition counts as "not yet", as do the errors in ``ignoring``.

    Args:
        condition: asked until its answer is true.
        timeout: seconds.
        every: seconds between two questions at first; later they are asked less often, the others need the processor.
        because: what to say (or a callable that looks at what to say) when the time is up.
        ignoring: further errors that mean "not yet".

    Raises:
        AssertionError: when the time is up; it shows the last answer or error.
    """
    begun = time.monotonic()
    deadline = begun + timeout
    not_yet: tuple[type[BaseException], ...] = (AssertionError, *ignoring)
    while True:
        last: object
        cause: BaseException | None = None
        try:
            answer = condition()
            if answer:
                return answer
            last = answer
        except not_yet as error:
            last, cause = error, error
        if time.monotonic() >= deadline:
            reason = because() if callable(because) else because
            name = getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"not within {timeout:g} s: {reason or name} (last: {last!r})") from cause
        waited = time.monotonic() - begun
        time.sleep(max(every, min(waited / 20, _SELDOM)))


def consistently(condition: Callable[[], object], seconds: float = 1.0, *, every: float = 0.05, because: str = "") -> None:
    """Check that ``condition`` stays true for a while: the only way to see that something does *not* happen.

    Raises:
        AssertionError: at the first false answer.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if not answer:
            name = getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"did not stay true for {seconds:g} s: {because or name} (answer: {answer!r})")
        time.sleep(every)
