"""A rolling deploy, again and again, under load: one worker of several is replaced while tasks of every length arrive."""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from celery_guardrails.policy.lease import RecordState

from .deployment import Deployment
from .waiting import eventually
from .workers import Worker

#: Seconds; settings of the deployment that is rolled.
DRAIN = 1.5
_CUT_OFF = re.compile(r"\[([0-9a-f-]{36})\] is handed back: it still runs")
_LAST_LINE = re.compile(r"stopped after [\d.]+ s: (\d+) finished, (\d+) checkpointed, (\d+) handed back, (\d+) abandoned")


@dataclass
class Rolled:
    """What came of it.

    Args:
        sent: names of the tasks that were published.
        codes: exit codes of the workers that were replaced.
        seconds: from SIGTERM to the end of each.
        tally: the last lines of their logs, summed up.
        told_in_vain: workers whose log does not end with that line.
        cut_off: identifiers of the tasks that still ran when a drain was over.
    """

    sent: list[str] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)
    told_in_vain: int = 0
    cut_off: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        longest, mean = max(self.seconds), sum(self.seconds) / len(self.seconds)
        return f"{len(self.seconds)} restarts, {len(self.sent)} tasks, stop {mean:.1f} s (longest {longest:.1f} s), {dict(self.tally)}"


class _Load(threading.Thread):
    """Publishes until it is told to stop: mostly short tasks, some longer than the drain time."""

    def __init__(self, app: Deployment, rng: random.Random, rate: float) -> None:
        super().__init__(daemon=True)
        self.sent: list[str] = []
        self.error: BaseException | None = None
        self._app, self._rng, self._rate = app, rng, rate
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.wait(self._rng.expovariate(self._rate)):
                name = f"r{len(self.sent)}"
                kind = self._rng.random()
                if kind < 0.03:
                    self._app.send("effect", name, 2 * DRAIN)
                elif kind < 0.06:
                    self._app.send("until_told", name, 3 * DRAIN)
                else:
                    self._app.send("effect", name, self._rng.uniform(0.0, 0.3))
                self.sent.append(name)
        except BaseException as exc:  # noqa: BLE001 - the test shall see it
            self.error = exc

    def stop(self) -> list[str]:
        self._over.set()
        self.join(30)
        assert self.error is None, self.error
        return self.sent


def roll(app: Deployment, restarts: int, *, seed: int, pool: str = "prefork", concurrency: int = 3, rate: float = 10.0) -> Rolled:
    """Replace one of two workers ``restarts`` times and return what came of it, when all tasks that were sent have ended."""
    rng = random.Random(seed)
    rolled = Rolled()
    options = {"pool": pool, "concurrency": concurrency}
    workers = app.start_workers(2, **options)
    load = _Load(app, random.Random(seed + 1), rate)
    load.start()
    try:
        for number in range(restarts):
            place = number % 2
            old = workers[place]
            workers[place] = app.worker(**options)
            _stop(old, rolled, hasten=rng.random() < 0.2)
    finally:
        rolled.sent = load.stop()
    completed: set[str] = set()

    def all_done() -> bool:
        for name in set(rolled.sent) - completed:
            record = app.guardrails.lookup(f"effect:{name}")
            if record is not None and record.state is RecordState.COMPLETED:
                completed.add(name)
        return len(completed) == len(rolled.sent)

    eventually(all_done, 90, every=0.5, because=lambda: f"not completed: {sorted(set(rolled.sent) - completed)}")
    eventually(lambda: app.depth() == 0, 30)
    return rolled


def _stop(worker: Worker, rolled: Rolled, *, hasten: bool) -> None:
    begun = time.monotonic()
    worker.terminate()
    if hasten:
        worker.wait_log("Warm shutdown")
        worker.terminate()
    code = worker.wait(60)
    rolled.seconds.append(time.monotonic() - begun)
    lines = [line for line in worker.log().splitlines() if line.startswith("[")]  # others are of a traceback
    # a thread whose body ends in the very milliseconds in which the process does may still log that
    found = next((match for line in reversed(lines[-3:]) if (match := _LAST_LINE.search(line))), None)
    if hasten and found and code == -signal.SIGTERM:
        code = 0  # it had ended already, and Python had taken its handlers away, when the second signal came
    rolled.codes[code] += 1
    rolled.cut_off.update(_CUT_OFF.findall(worker.log()))
    if found is None:
        rolled.told_in_vain += 1
    else:
        rolled.tally.update(dict(zip(("finished", "checkpointed", "handed back", "abandoned"), map(int, found.groups()), strict=True)))


def assert_nothing_lost_and_nobody_charged(app: Deployment, rolled: Rolled) -> None:
    """Assert what a deploy promises."""
    assert set(rolled.codes) == {0}, rolled.codes
    assert set(app.ledger.counts()) == set(rolled.sent)
    # one that is cut off between its effect and the note of it has it again: at least once, unless it is atomic
    cut_off = {run.key for run in app.ledger.entries(event="start") if run.fields["task_id"] in rolled.cut_off}
    assert app.ledger.repeated().keys() <= cut_off
    charged = {run.key: run.fields for run in app.ledger.entries(event="start") if (run.fields["attempt"], run.fields["crashes"]) != (1, 0)}
    assert charged == {}
    assert app.ledger.overlaps() == []
    assert app.dead() == 0
    assert rolled.told_in_vain == 0
