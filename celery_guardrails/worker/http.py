"""``guardrails_http``: probes and metrics of this worker, from its main process."""

from __future__ import annotations

import os
import threading
import time
from email.message import Message
from typing import Any

from celery import bootsteps, signals
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger

from ..config import address_of
from ..errors import GuardrailsConfigError
from ..integration.app import ensure_guardrails
from ..integration.counting import Counting, Pipe, Source
from ..integration.mainstate import state
from ..integration.metrics import Key
from .health import Health
from .http_server import Answer, HttpServer

__all__ = ["Http"]

logger = get_logger(__name__)

#: By name: this room does not know the one above it, and a worker without the library serves the other pages.
_EXPOSITION = "celery_guardrails.contrib.prometheus:Exposition"
_MISSING = "the metrics need prometheus_client: pip install 'celery-guardrails[prometheus]'"
#: Seconds between two reads of what pool processes have counted; their pipe holds about a thousand events.
_PAUSE = 0.05


class _Present:
    """The one of this process; forked processes give up what they inherit of it."""

    http: Http | None = None


_present = _Present()


def _in_child() -> None:
    """After a fork: a child that held the socket would keep the port from the next worker, and answer nobody."""
    if _present.http is not None:
        _present.http.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class Http(bootsteps.StartStopStep):
    """Listens before anything else begins, so that a port that is taken is known at once; answers as soon as the pool is there.

    It goes on until the process ends: a worker that drains is asked how far it is.
    """

    label = "guardrails http"
    requires = ("celery.worker.components:Pool",)

    def include_if(self, w: Any) -> bool:
        """Only where it is wanted."""
        return ensure_guardrails(w.app).settings.http is not None

    def create(self, w: Any) -> None:
        """Listen, and have events counted.

        Raises:
            GuardrailsConfigError: nobody can listen there.
        """
        self._rails = rails = ensure_guardrails(w.app)
        if _present.http is not None:  # a worker in this process that has ended (tests)
            _present.http.give_up_port()
        self._server = _listen(str(rails.settings.http), {"/metrics": self._metrics, "/healthz": self._alive, "/readyz": self._ready})
        pipe = Pipe() if issubclass(w.pool_cls, PreforkPool) else None
        self._counting = Counting(rails, pipe)
        rails.listen(self._counting)
        signals.worker_process_shutdown.connect(self._on_process_shutdown, weak=False)
        self._health = Health(w, rails)
        self._exposition: Any = None
        _present.http = self

    def start(self, w: Any) -> None:
        """Begin to answer; after the pool has made its first processes, which do not need these threads."""
        self._exposition = self._load_exposition()
        self._health.start()
        if self._counting.pipe is not None:
            threading.Thread(target=self._read, args=(self._counting.pipe,), name="guardrails-counts", daemon=True).start()
        self._server.start()
        logger.info("guardrails_http: http://%s/metrics, /healthz and /readyz", self._server.address)

    def stop(self, w: Any) -> None:
        """Nothing: the server answers until the process ends."""

    def terminate(self, w: Any) -> None:
        """Nothing, see :meth:`stop`."""

    def give_up_port(self) -> None:
        """Listen no longer."""
        self._server.close()

    def leave_to_parent(self) -> None:
        """In a forked process: close what only the main process uses."""
        self._server.close()
        self._server.forget_clients()
        self._counting.close_read_end()

    # -- pages ------------------------------------------------------------------------------------------------

    def _alive(self, headers: Message) -> Answer:
        dead = self._health.dead()
        return Answer(503, f"dead: {dead}\n".encode()) if dead else Answer(200, b"alive\n")

    def _ready(self, headers: Message) -> Answer:
        unready = self._health.unready()
        return Answer(503, f"not ready: {unready}\n".encode()) if unready else Answer(200, b"ready\n")

    def _metrics(self, headers: Message) -> Answer:
        if self._exposition is None:
            return Answer(501, f"{_MISSING}\n".encode())
        content_type, body = self._exposition(headers.get("Accept", ""))
        return Answer(200, body, content_type)

    # -- numbers ----------------------------------------------------------------------------------------------

    def _load_exposition(self) -> Any:
        try:
            exposition = symbol_by_name(_EXPOSITION)
        except ImportError:
            logger.warning("guardrails_http: /metrics answers 501: %s", _MISSING)
            return None
        tasks = self._rails.app.tasks
        guarded = [name for name, task in list(tasks.items()) if getattr(task, "guarded", False) and not name.startswith("celery.")]
        return exposition(Source(self._rails.namespace, self._counting.values, lambda: guarded, self._now))

    def _now(self) -> dict[Key, float]:
        now, tally = time.monotonic(), state.tally
        numbers = {
            Key("ready"): float(not self._health.unready()),
            Key("leases_held"): float(len(state.live)),
            **{
                Key("drained_messages", (outcome,)): float(getattr(tally, outcome))
                for outcome in ("finished", "checkpointed", "handed_back", "abandoned")
            },
        }
        if state.renewed is not None:
            numbers[Key("lease_renewal_age_seconds")] = now - state.renewed
        if state.drain_ends is not None:
            numbers[Key("drain_seconds_left")] = max(0.0, state.drain_ends - now)
        return numbers

    def _read(self, pipe: Pipe) -> None:
        while True:
            if pipe.wait(60.0):
                self._counting.collect()
                time.sleep(_PAUSE)  # many at a time: each waking of this thread takes the interpreter from the main one

    def _on_process_shutdown(self, **_: Any) -> None:
        self._counting.flush()


def _listen(setting: str, pages: Any) -> HttpServer:
    host, port = address_of(setting)
    try:
        return HttpServer(host, port, pages)
    except OSError as exc:
        # a name that is not found has a number below zero, and words of its own
        why = os.strerror(exc.errno) if exc.errno is not None and exc.errno > 0 else exc.strerror or str(exc)
        raise GuardrailsConfigError(
            f"guardrails_http = {setting!r}: {why}. If another worker of this host listens there, give each its own port: "
            'guardrails_http = os.environ["WORKER_HTTP"], with a value of its own in the unit or program of each (docs/metrics.md)'
        ) from exc
