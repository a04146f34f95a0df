"""The fleet of a soak, and what is done to it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable

import psutil

from tests.support import Worker
from tests.support.processes import tail

from .measures import Death
from .plan import Fault
from .site import LEASE, Site

#: Seconds between two looks at the fleet, and between two samples of its memory.
LOOK, SAMPLE = 0.3, 5.0


class Fleet(threading.Thread):
    """Keeps so many workers alive: whoever ends, for whatever reason, is replaced.

    Args:
        site: they belong to.
        size: number of workers.
        concurrency: of each.
    """

    def __init__(self, site: Site, *, size: int, concurrency: int) -> None:
        super().__init__(name="fleet", daemon=True)
        self._site, self._concurrency = site, concurrency
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._alive: list[Worker] = []
        self._size = size
        #: Workers whose end was asked for.
        self.sentenced: set[int] = set()
        #: Ends that nobody asked for: what the worker said last.
        self.unasked: list[str] = []
        self.memory: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self.crashed = ""

    def open(self) -> None:
        """Start all and wait until they consume."""
        self._alive = [self._begin() for _ in range(self._size)]
        for worker in self._alive:
            worker.wait_ready(90)
        self.start()

    def run(self) -> None:
        sampled = 0.0
        try:
            while not self._over.wait(LOOK):
                self._replace()
                if time.monotonic() - sampled >= SAMPLE:
                    sampled = time.monotonic()
                    self._sample()
        except Exception:  # noqa: BLE001 - told in the report
            self.crashed = traceback.format_exc()

    def _begin(self) -> Worker:
        return self._site.deployment.worker(concurrency=self._concurrency, env=self._site.worker_env, wait=False)

    def _replace(self) -> None:
        with self._lock:
            for place, worker in enumerate(self._alive):
                if not worker.alive():
                    if worker.pid not in self.sentenced:
                        self.unasked.append(f"{worker!r} ended with {worker.wait(1)}\n{tail(worker._log, 60)}")
                    self._alive[place] = self._begin()

    def _sample(self) -> None:
        for worker in self.workers():
            with contextlib.suppress(psutil.Error):
                size = psutil.Process(worker.pid).memory_info().rss
                if size:  # a process that has just ended has none
                    self.memory[worker.name].append((time.monotonic(), float(size)))

    def workers(self) -> list[Worker]:
        """Return those that are alive."""
        with self._lock:
            return [worker for worker in self._alive if worker.alive()]

    def sentence(self, worker: Worker) -> None:
        """Say that a worker's end is asked for."""
        self.sentenced.add(worker.pid)

    def close(self) -> None:
        """Let all of them end by SIGTERM."""
        self._over.set()
        self.join(30)
        for worker in self.workers():
            worker.terminate()
        for worker in list(self._alive):
            with contextlib.suppress(AssertionError):
                worker.wait(60)


class Faults(threading.Thread):
    """Carries a schedule out; a death that takes long (a broker's) delays those that follow it.

    Args:
        site: with the servers.
        fleet: with the workers.
        schedule: in order of time.
    """

    def __init__(self, site: Site, fleet: Fleet, schedule: list[Fault]) -> None:
        super().__init__(name="faults", daemon=True)
        self.counts: Counter[str] = Counter()
        self.deaths: list[Death] = []
        self.crashed = ""
        self._site, self._fleet, self._schedule = site, fleet, schedule
        self._over = threading.Event()
        self._helpers: list[threading.Thread] = []

    def stop(self) -> None:
        """Do nothing more; returns when what was stopped or down is up again."""
        self._over.set()
        self.join(180)
        for helper in self._helpers:
            helper.join(60)

    def run(self) -> None:
        begun = time.monotonic()
        try:
            for fault in self._schedule:
                if self._over.wait(max(0.0, begun + fault.at - time.monotonic())):
                    return
                self._commit(fault)
        except Exception:  # noqa: BLE001 - told in the report
            self.crashed = traceback.format_exc()

    def _commit(self, fault: Fault) -> None:
        if fault.kind == "broker_restart":
            self._site.broker.restart()
        elif fault.kind == "store_restart":
            assert self._site.store is not None
            self._site.store.restart()
        elif fault.kind == "cut":
            self._site.proxy.drop_connections()
        else:
            victims = self._victims()
            if not victims:
                self.counts[f"{fault.kind}, nobody there"] += 1
                return
            worker = victims[fault.pick % len(victims)]
            with contextlib.suppress(ProcessLookupError):
                getattr(self, f"_{fault.kind}")(worker, fault)
        self.counts[fault.kind] += 1

    def _victims(self) -> list[Worker]:
        """Return the workers with children whose end is not asked for yet; after a massacre it takes seconds until there is one."""
        for _ in range(100):
            found = [worker for worker in self._fleet.workers() if worker.pid not in self._fleet.sentenced and worker.children()]
            if found or self._over.wait(0.1):
                return found
        return []

    def _note(self, kind: str, *pids: int) -> None:
        self.deaths.append(Death(time.monotonic(), kind, frozenset(pids)))

    def _child_kill(self, worker: Worker, fault: Fault) -> None:
        children = worker.children()
        if children:
            pid = sorted(children)[fault.pick // 16 % len(children)]
            self._note("child_kill", pid)
            worker.kill_child(pid)

    def _worker_kill(self, worker: Worker, fault: Fault) -> None:
        self._fleet.sentence(worker)
        self._note("worker_kill", *worker.children())
        worker.kill()

    def _rolling(self, worker: Worker, fault: Fault) -> None:
        self._fleet.sentence(worker)
        worker.terminate()

    def _term_quit(self, worker: Worker, fault: Fault) -> None:
        self._twice(worker, "term_quit", signal.SIGQUIT)

    def _term_twice(self, worker: Worker, fault: Fault) -> None:
        self._twice(worker, "term_twice", signal.SIGTERM)

    def _twice(self, worker: Worker, kind: str, second: int) -> None:
        self._fleet.sentence(worker)
        children = worker.children()
        worker.terminate()
        time.sleep(0.05 * (worker.pid % 4))  # the second signal meets it at different points of its end
        if worker.alive():
            self._note(kind, *children)
            worker.signal(second)

    def _freeze(self, worker: Worker, fault: Fault) -> None:
        pids = worker.children()
        self._note("freeze", *pids)
        worker.freeze()

        def thaw() -> None:
            with contextlib.suppress(ProcessLookupError):
                worker.thaw()

        # longer than the lease and than Redis' visibility timeout; nothing else happens to this worker meanwhile
        self._later(LEASE * 2.5 + fault.pick % 4, worker, thaw)

    def _later(self, seconds: float, worker: Worker, what: Callable[[], None]) -> None:
        already = worker.pid in self._fleet.sentenced
        self._fleet.sentence(worker)

        def wait() -> None:
            self._over.wait(seconds)
            what()
            if not already:
                self._fleet.sentenced.discard(worker.pid)

        helper = threading.Thread(target=wait, name="thaw", daemon=True)
        self._helpers.append(helper)
        helper.start()
