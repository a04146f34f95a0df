"""Reads the results of pool processes whole, whatever happens in the middle of one.

A result that is larger than its pipe, as that of most errors is (billiard pickles every frame of the traceback), comes in parts.
Celery forgets the part it has when the connection to the broker is lost (celery/worker/loops.py 5.7, ``hub.reset()``), and takes
the rest for the beginning of another: nothing that this process reports is heard any more, and the worker does not end when it is
told to. Nor does it end where a process is killed while it writes (asynpool.py, ``_flush_outqueue``: the rest is waited for, and
the worker itself holds the other end of the pipe open). In a soak with broker restarts one worker in a hundred was lost to that.
"""

from __future__ import annotations

import os
import pickle
import select
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.pool import TERMINATE
from celery import bootsteps, signals
from celery.concurrency import asynpool
from celery.utils.log import get_logger

from ..integration.stopping import is_stopping
from .forking import begin_alone

__all__ = ["ResultPipes", "SoundAsynPool"]

logger = get_logger(__name__)

#: Seconds that one process is waited for at the end, before the others get their turn.
_PATIENCE = 0.5
_HEADER = 4
#: Results of one process that are read at once, at most: it may go on writing.
_MOST = 256


class _Inbox:
    """What has come of one process's next result; never more than that is taken out of the pipe.

    Args:
        proc: the process.
    """

    def __init__(self, proc: Any) -> None:
        self.proc = proc
        self._parts: list[bytes] = []
        self._missing = _HEADER
        self._in_body = False

    @property
    def torn(self) -> bool:
        """Whether a part of a result is here and the rest is not."""
        return bool(self._parts) or self._in_body

    def receive(self, fd: int) -> tuple[bool, Any]:
        """Read on without waiting; return whether there is a whole result, and it.

        Raises:
            EOFError: the other end is closed.
            OSError: of the pipe.
        """
        while True:
            while self._missing:
                try:
                    part = os.read(fd, self._missing)
                except BlockingIOError:
                    return False, None
                if not part:
                    raise EOFError
                self._parts.append(part)
                self._missing -= len(part)
            whole = b"".join(self._parts)
            self._parts = []
            if self._in_body:
                self._in_body, self._missing = False, _HEADER
                return True, pickle.loads(whole)  # noqa: S301 - from a process that this one has forked
            self._in_body, self._missing = True, int.from_bytes(whole, "big")


class _WholeResults(asynpool.ResultHandler):
    """Keeps what has come of a result beside the event loop, which may be begun anew at any time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inboxes: dict[int, _Inbox] = {}

    def inbox(self, fd: int, proc: Any) -> _Inbox:
        """Return the one of this process; a pipe may be another's next."""
        found = self._inboxes.get(fd)
        if found is None or found.proc is not proc:
            found = self._inboxes[fd] = _Inbox(proc)
        return found

    def _make_process_result(self, hub: Any) -> Callable[[int], None]:
        owners, tell = self.fileno_to_outq, self.on_state_change

        def on_result_readable(fd: int) -> None:
            proc = owners.get(fd)
            if proc is None:
                hub.remove_reader(fd)
                return
            try:
                whole, message = self.inbox(fd, proc).receive(fd)
            except (OSError, EOFError):
                hub.remove_reader(fd)
                return
            if whole and message:
                tell(message)

        return on_result_readable

    def _flush_outqueue(self, fd: int, remove: Callable[[int], Any], process_index: dict[int, Any], on_state_change: Any) -> Any:
        """Celery calls it at the end, again and again, until there is nothing left to wait for."""
        proc = process_index.get(fd)
        if proc is None:
            return remove(fd)
        try:
            reader = proc.outq._reader
            alive = proc._is_alive()
            asynpool.setblocking(reader, 0)
            if alive:
                reader.poll(_PATIENCE)
            whole, message = self.inbox(fd, proc).receive(fd)
        except (OSError, EOFError):
            return remove(fd)
        if whole:
            if message:
                on_state_change(message)
                return None
            return remove(fd)  # it says that it ends
        return None if alive else remove(fd)


class SoundAsynPool(asynpool.AsynPool):
    """Celery's prefork pool, but for the way it reads results, and for the beginning of its processes."""

    ResultHandler = _WholeResults

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - billiard's name
        """Return a process that has not been started."""
        return begin_alone(super().Process(*args, **kwargs))

    def process_flush_queues(self, proc: Any) -> None:
        """Take what a process that is gone has still reported."""
        handler, reader = self._result_handler, proc.outq._reader
        while not reader.closed and self._state != TERMINATE:
            try:
                fd = reader.fileno()
                asynpool.setblocking(reader, 0)
                whole, message = handler.inbox(fd, proc).receive(fd)
            except (OSError, EOFError):
                return
            if not whole or message is None:
                return
            handler.on_state_change(message)

    def hear(self) -> None:
        """Read what the processes have said so far, without waiting: which tasks have begun, which have ended."""
        look: Callable[[int], None] | None = getattr(self, "handle_result_event", None)
        if look is None:
            return
        for fd in list(self._fileno_to_outq):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            for _ in range(_MOST):
                if not any(event & select.POLLIN for _, event in poll.poll(0)):
                    break
                look(fd)

    def flush(self) -> None:
        """Forget what no process was given, as Celery does when the connection is lost and when the worker stops; not what will run.

        Celery 5.7 forgets also what it has only not *read* to have begun, and what lies in the pipe of a process that will take it out
        and run it, whatever the main process remembers; 5.4 and 5.5 forget all that runs (asynpool.py). Nobody would renew its lease
        while it runs, give it back where it is cut off, or hear of its process's death.
        """
        self.hear()
        given = [] if is_stopping() else [(job, job._write_to) for job in self._cache.values() if self._given(job)]
        waiting = [job for job, _ in given if not job._accepted]
        for job in waiting:
            job._accepted = True
        try:
            super().flush()
        finally:
            for job in waiting:
                job._accepted = job._time_accepted is not None
            for job, process in given:
                if job._accepted or process._is_alive():
                    self._remember(job)
                else:
                    job.discard()

    def _given(self, job: Any) -> bool:
        """Whether a process has it, or a part of it; not one that was put back when its process died, and still names that."""
        if job._write_to is None or job.ready() or job in (self.outbound_buffer or ()):
            return False
        writer = asynpool._get_job_writer(job)
        return writer is None or not asynpool.gen_not_started(writer)

    def _remember(self, job: Any) -> None:
        if not job.ready():
            self._cache.setdefault(job._job, job)

    def destroy_queues(self, queues: Any, proc: Any) -> Any:
        """Close the pipes of a process, and forget what had come of its next result."""
        inboxes = self._result_handler._inboxes
        for fd in [fd for fd, inbox in inboxes.items() if inbox.proc is proc]:
            del inboxes[fd]
        return super().destroy_queues(queues, proc)

    def get_process_queues(self) -> Any:
        """Return pipes for a new process; those of one whose end was not dealt with to its end are replaced.

        What raises in between, as the connection to a broker that is away, leaves them with nobody: Celery finds none then, and the
        worker ends with ``StopIteration`` (asynpool.py 5.7).
        """
        if None not in self._queues.values():
            for queues, owner in list(self._queues.items()):
                if owner not in self._pool and self.destroy_queues(queues, owner):
                    self._queues[self.create_process_queues()] = None
        return super().get_process_queues()

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        """Watch a process for its end, also one whose end was heard a moment ago and that could not be waited for yet.

        Celery has closed what it watches by then, and a worker that is connected again ends with ``ValueError`` (asynpool.py 5.7).
        """
        if vars(proc).get("_sentinel_poll", proc) is None:
            del proc._sentinel_poll
        try:
            super()._track_child_process(proc, hub)
        except OSError:
            logger.debug("%r is gone", proc, exc_info=True)  # the pool looks for it by itself, too


class ResultPipes(bootsteps.Step):
    """Gives the prefork pool sound pipes, and keeps what goes through them small."""

    label = "guardrails result pipes"

    def __init__(self, w: Any, **kwargs: Any) -> None:
        super().__init__(w, **kwargs)
        from celery.concurrency.prefork import TaskPool

        pool: Any = w.pool_cls
        prefork = isinstance(pool, type) and issubclass(pool, TaskPool)
        if not prefork:
            return
        if pool.Pool is asynpool.AsynPool:  # another's own is left alone
            pool.Pool = SoundAsynPool
        self._tasks = w.app.tasks
        signals.worker_process_init.connect(self._on_process, weak=False)

    def _on_process(self, **_: Any) -> None:
        """Leave frames out of what goes to the main process, which reads the text only: tens of kilobytes a failed attempt.

        After Celery has made the tracers of a pool process (celery/concurrency/prefork.py, ``process_initializer``).
        """
        for task in self._tasks.values():
            if getattr(task, "guarded", False):
                task.__trace__ = _light(task.__trace__)


def _light(trace_task: Callable[..., Any]) -> Callable[..., Any]:
    def light(*args: Any, **kwargs: Any) -> Any:
        answer = trace_task(*args, **kwargs)
        if isinstance(answer[0], ExceptionInfo):
            answer[0].tb = None
        return answer

    return light
