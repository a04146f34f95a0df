"""Plain Celery tasks and the quarantine: none begins beside a message that runs alone, and none that runs is overlooked.

A plain task that ran beside a suspect might end the worker, and the suspect would be condemned for it. Nothing of ours runs where
a plain task does, but all tasks pass the worker's main process, on their way into the pool and at their end. So the main process
goes into the room (:mod:`celery_guardrails.integration.solitude`) for them: while it is inside nobody is alone, and while somebody
is alone it does not get in. Then the task waits here: not begun, not acknowledged, no thread blocked.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.utils.functional import noop
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.components import Pool
from celery.worker.consumer import Tasks
from celery.worker.request import Request

from ..integration.app import ensure_guardrails
from ..integration.request import GuardedRequest
from ..integration.solitude import solitude
from ..integration.stopping import is_stopping
from .listing import listed

__all__ = ["Connected", "Doorkeeper"]

logger = get_logger(__name__)

#: Seconds between two looks at whether those who wait may come in.
_LOOK = 0.2
#: Options of a pool that hear of the end.
_ENDS = frozenset({"callback", "error_callback"})
_numbers = itertools.count()


class _Plain:
    """A plain task on its way into the pool, in there, and out of it again.

    Args:
        inside: those that are in there; it keeps itself in this list.
        request: that asks for the pool; None where something else is executed than a request of Celery's (celery-batches).
        call: target, arguments and keywords for the pool.
        options: for the pool.
    """

    def __init__(self, inside: set[_Plain], request: Request | None, call: tuple[Any, Any, Any], options: dict[str, Any]) -> None:
        self._name = f"plain{next(_numbers)}"
        self._inside = inside
        self._call = call
        # also those that nobody gave: a batch of celery-batches does not ask for the end of its process
        self._options = {**options, **{name: self._ending(options.get(name) or noop) for name in _ENDS}}
        if options.get("timeout_callback"):
            self._options["timeout_callback"] = self._timed_out(options["timeout_callback"])
        #: Whether a request of Celery's asks for it, also one that is forgotten meanwhile.
        self.known = request is not None
        self._request = request if request is None else weakref.ref(request)
        self._job: Callable[[], Any] = lambda: None
        #: Whether it could not be given to the pool, once at least.
        self.failed = False

    def __str__(self) -> str:
        request = self.request
        return "a call that waited" if request is None else f"{request.name}[{request.id}]"

    @property
    def request(self) -> Request | None:
        """See above; also None where Celery has forgotten it."""
        return None if self._request is None else self._request()

    def enter(self) -> bool:
        """Come in; False where somebody is alone in there, or wants to be."""
        if not solitude.enter(self._name):
            return False
        self._inside.add(self)
        return True

    def leave(self) -> None:
        """Go, whether inside or not."""
        self._inside.discard(self)
        solitude.leave(self._name)

    def submit(self, submit: Callable[..., Any]) -> Any:
        """Give it to the pool, and return the pool's answer."""
        options, self._options = self._options, {}  # they know the request, which shall live as long as Celery wants it
        try:
            job = submit(*self._call, **options)
        except BaseException:
            self._options = options
            self.leave()
            raise
        if job is not None:
            self._job = weakref.ref(job)
        return job

    def remembered(self) -> bool:
        """Whether a prefork pool that has been flushed will still tell of its end."""
        job = self._job()
        return job is not None and job._cache.get(job._job) is job

    def _ending(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def ended(*args: Any, **kwargs: Any) -> Any:
            self.leave()
            return call(*args, **kwargs)

        return ended

    def _timed_out(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_out(soft: bool, timeout: float) -> Any:
            if not soft:  # gevent says no more of it
                self.leave()
            return call(soft, timeout)

        return timed_out


class Doorkeeper(bootsteps.StartStopStep):
    """Stands before the pool: guarded tasks go in by themselves, for plain ones it goes in."""

    label = "guardrails doorkeeper"
    requires = (Pool,)

    def __init__(self, w: Any, **kwargs: Any) -> None:
        super().__init__(w, **kwargs)
        self._worker = w
        self._rails = ensure_guardrails(w.app)
        self._mutex = threading.Lock()
        self._inside: set[_Plain] = set()
        self._waiting: list[_Plain] = []
        #: Whether the timer has an entry that looks at them, and which.
        self._timed, self._entry = False, 0

    def create(self, w: Any) -> None:
        """Take the place of the pool's ``apply_async`` before the consumer makes its strategies, which keep it (worker/request.py)."""
        w.guardrails_doorkeeper = self
        self._submit = w.pool.apply_async
        w.pool.apply_async = self.apply_async

    def start(self, w: Any) -> None:
        """The pool has started, and put these in place (concurrency/prefork.py, ``on_start``)."""
        if hasattr(w.pool, "grow"):
            w.pool.grow = self._growing(w.pool.grow)
        if isinstance(w.pool, PreforkPool):
            w.pool.flush = self._flushing(w.pool.flush)

    def stop(self, w: Any) -> None:
        """Nothing to stop."""

    def terminate(self, w: Any) -> None:
        """Nothing to stop."""

    # -- coming in --------------------------------------------------------------------------------------------

    def apply_async(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Give a task to the pool; None where it waits, as for one that the pool has not seen yet."""
        request = getattr(options.get("accept_callback"), "__self__", None)
        if isinstance(request, GuardedRequest):
            return self._submit(target, args, kwargs, **options)
        known = request if isinstance(request, Request) else None
        task = _Plain(self._inside, known, (target, args, kwargs), options)
        if task.enter():
            return task.submit(self._submit)
        if known is not None:
            logger.info("%s[%s] waits until the task has ended that runs alone here", known.name, known.id)
        self._keep(task)
        return None

    def _keep(self, task: _Plain) -> None:
        with self._mutex:
            self._waiting.append(task)
            if not self._timed:
                self._look_later()

    def connected(self) -> None:
        """See to it that somebody looks: Celery before 5.6 clears the timer when a connection is lost (consumer.py, ``on_close``)."""
        with self._mutex:
            self._timed = False
            if self._waiting:
                self._look_later()

    def _look_later(self) -> None:
        self._timed, self._entry = True, self._entry + 1
        self._worker.timer.call_after(_LOOK, self._look, (self._entry,))

    def _look(self, entry: int) -> None:
        with self._mutex:
            if entry != self._entry:
                return  # another looks in its place
            waiting, self._waiting, self._timed = self._waiting, [], False
        for task in waiting:
            if is_stopping():
                return  # giving_back.py returns what the pool has not seen
            try:
                self._let_in(task)
            except Exception:  # the result backend that shall hear of its revocation is away, for instance
                task.leave()
                if not task.failed:
                    logger.exception("%s could not be given to the pool; it is tried again and again", task)
                task.failed = True
                self._keep(task)

    def _let_in(self, task: _Plain) -> None:
        request = task.request
        if request is not None and request not in worker_state.reserved_requests:
            return  # the connection was lost, and the message with it: it comes again
        if not task.enter():
            self._keep(task)
        elif request is None:
            task.submit(self._submit)
        elif request.revoked():
            task.leave()
            if hasattr(self._worker, "_quick_release"):  # as in worker.py, ``_process_task``
                self._worker._quick_release()
        else:
            result = task.submit(self._submit)
            request._apply_result = None if result is None else weakref.ref(result)

    # -- what Celery forgets, and what grows ------------------------------------------------------------------

    def _flushing(self, flush: Callable[[], Any]) -> Callable[[], Any]:
        """Return the pool's ``flush``, which drops what no process was given when the connection is lost: nobody would tell of its end.

        Where the pool is not ours (result_pipes.py), older Celerys drop what runs as well. Such a task stays inside: nobody is alone in
        this worker any more, rather than beside it.
        """

        def flushing() -> Any:
            begun = set(listed(worker_state.active_requests))
            flushed = flush()
            for task in list(self._inside):
                if task.known and task.request not in begun and not task.remembered():
                    task.leave()
            return flushed

        return flushing

    def _growing(self, grow: Callable[..., Any]) -> Callable[..., Any]:
        """Return the pool's ``grow``: what a pool of one runs could be sure to be alone, and is not any more."""

        def growing(*args: Any, **kwargs: Any) -> Any:
            if not solitude.shared():
                solitude.share(True)  # first: who claims from now on says it by himself
                try:
                    for request in listed(worker_state.reserved_requests):
                        if isinstance(request, GuardedRequest):
                            self._rails.main_guard.expose(request.delivery)
                except BaseException:
                    solitude.share(False)  # the store is away: it does not grow
                    raise
            return grow(*args, **kwargs)

        return growing


class Connected(bootsteps.StartStopStep):
    """Tells the doorkeeper when the worker is connected, also once more."""

    label = "guardrails doorkeeper, connected"
    requires = (Tasks,)

    def start(self, c: Any) -> None:
        """After the messages of the last connection are forgotten."""
        keeper = getattr(c.controller, "guardrails_doorkeeper", None)
        if keeper is not None:
            keeper.connected()

    def stop(self, c: Any) -> None:
        """Nothing to stop."""
