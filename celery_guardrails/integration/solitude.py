"""Where one of a worker's tasks can be alone: a lock that all of its pool processes, or threads, share.

Tasks run under a shared lock; one in quarantine (:mod:`celery_guardrails.policy.suspicion`) wants an exclusive one. It is the
kernel's lock on a file without a name, so a process that is killed leaves nothing locked. The kernel counts by process, so the
threads of one are counted here. A small table, shared with the main process like that of :mod:`.stopping`, says who is in
quarantine, or wants to be: nobody else starts meanwhile, and the main process renews its lease. Plain Celery tasks know nothing of
this room; the main process goes in for them (:mod:`celery_guardrails.worker.doorkeeper`).
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import threading
import time

if sys.platform != "win32":
    import fcntl

__all__ = ["Solitude", "solitude"]

#: Seconds between two looks at whether the others have left.
_LOOK = 0.05
#: Characters of a holder, and the bytes behind them: others are kept out; several may run at a time.
_HOLDER, _CLOSED, _SHARED = 16, slice(16, 17), slice(17, 18)
_WHO = slice(0, 17)
_NOBODY = b"\0" * 17


class Solitude:
    """See :class:`~celery_guardrails.ports.Room`. Until it is opened it is nobody's, and a guard must do without."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 18)
        self._file: int | None = None
        self._begin()
        if hasattr(os, "register_at_fork"):
            # the main process may be inside when it forks, for a plain task: the kernel's lock stays with it, and so must this
            os.register_at_fork(after_in_child=self._begin)
        self.opened = False

    def _begin(self) -> None:
        self._mutex = threading.Lock()
        self._inside: set[str] = set()
        self._alone = ""

    def open(self, concurrency: int) -> None:
        """Begin with nobody inside, in the worker's main process before it forks; ``concurrency`` tasks may run at a time."""
        self._begin()
        self._page[_WHO] = _NOBODY
        self.share(concurrency > 1)
        self.opened = True
        if self._file is None and sys.platform != "win32":
            if hasattr(os, "memfd_create"):
                self._file = os.memfd_create("guardrails-solitude")
            else:
                with tempfile.TemporaryFile() as file:
                    self._file = os.dup(file.fileno())

    def share(self, shared: bool) -> None:
        """Say to all processes whether several tasks may run at a time."""
        self._page[_SHARED] = b"\1" if shared else b"\0"

    def shared(self) -> bool:
        """See :class:`~celery_guardrails.ports.Room`."""
        return self._page[_SHARED] != b"\0"

    def enter(self, holder: str) -> bool:
        """See :class:`~celery_guardrails.ports.Room`."""
        with self._mutex:
            if self._alone or self._closed() or not self._join(holder):
                return False
            if self._closed():  # whoever closed it waits for those who are inside
                self._part(holder)
                return False
            return True

    def alone(self, holder: str, seconds: float) -> bool:
        """See :class:`~celery_guardrails.ports.Room`."""
        end = time.monotonic() + seconds
        with self._mutex:
            self._part(holder)
            self._page[_WHO] = holder.encode().ljust(_HOLDER, b"\0")[:_HOLDER] + b"\1"
        while True:
            with self._mutex:
                if not self._inside and self._lock(exclusive=True):
                    self._alone = holder
                    return True
                if time.monotonic() >= end:
                    self._page[_CLOSED] = b"\0"
                    self._join(holder)
                    return False
            time.sleep(_LOOK)

    def leave(self, holder: str) -> bool:
        """See :class:`~celery_guardrails.ports.Room`."""
        with self._mutex:
            if self._alone == holder:
                self._alone = ""
                self._unlock()
            self._part(holder)
            if self.in_quarantine() != holder:
                return False
            self._page[_WHO] = _NOBODY
            return True

    def in_quarantine(self) -> str:
        """Return the holder that is in quarantine in this worker, alone or not, or an empty text."""
        return self._page[:_HOLDER].rstrip(b"\0").decode()

    def _closed(self) -> bool:
        return self._page[_CLOSED] != b"\0"

    def _join(self, holder: str) -> bool:
        if not self._inside and not self._lock(exclusive=False):
            return False
        self._inside.add(holder)
        return True

    def _part(self, holder: str) -> None:
        if holder in self._inside:
            self._inside.discard(holder)
            if not self._inside:
                self._unlock()

    def _lock(self, *, exclusive: bool) -> bool:
        if self._file is None or sys.platform == "win32":
            return True
        try:
            fcntl.lockf(self._file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self) -> None:
        if self._file is not None and sys.platform != "win32":
            fcntl.lockf(self._file, fcntl.LOCK_UN)


#: That of this worker.
solitude = Solitude()
