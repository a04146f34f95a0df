"""One byte that the worker's main process shares with its children: are we stopping?

SIGTERM reaches the main process only, and a prefork child has no channel to hear of it while a task runs. An
anonymous shared mapping, made before the fork, costs nothing to read.
"""

from __future__ import annotations

import mmap

from celery.exceptions import Ignore

__all__ = ["Checkpointed", "is_stopping", "reset", "set_stopping"]

_page = mmap.mmap(-1, 1)


class Checkpointed(Ignore):
    """What Celery sees of a run that saved where it goes on and handed its message back: the main process counts it."""


def set_stopping() -> None:
    """Say that the worker has been told to stop."""
    _page[0:1] = b"\x01"


def reset() -> None:
    """Forget it (a worker starts; tests)."""
    _page[0:1] = b"\x00"


def is_stopping() -> bool:
    """Return whether the worker has been told to stop."""
    return _page[0:1] == b"\x01"
