"""One soak on one broker: load and deaths, a rest, the audit."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

from .audit import Verdict, audit
from .faults import Faults, Fleet
from .live import Live, identity, line
from .load import Load
from .plan import ROWS, schedule
from .report import figures
from .site import LEASE, REDIS, Site

#: Seconds between two looks of the audit while it goes on.
LOOK = 20.0
#: Seconds that such a look searches for what is nowhere, and messages in a queue above which it does not look through it.
WAIT, LIMIT = 2.0, 5_000
#: Seconds beyond lease and visibility timeout after which a task that is nowhere is suspect: a frozen worker holds what RabbitMQ hides.
MARGIN = 15.0
#: Seconds without any change after which nothing more is expected.
REST = 15.0


@dataclass(frozen=True)
class Options:
    """What a soak is asked for, see ``--help``."""

    broker: str = "redis"
    store: str = "redis"
    seconds: float = 3600.0
    seed: int = 1
    rate: float = 30.0
    tasks: int | None = None
    workers: int = 3
    concurrency: int = 2
    intensity: float = 1.0
    #: RabbitMQ may send on only after three minutes what fell due while it recovered.
    drain: float = 400.0


def say(text: str) -> None:
    """Tell whoever watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def soak(options: Options, directory: Path) -> tuple[bool, dict[str, Any]]:
    """Run it and return whether every promise was kept, and the figures."""
    with Site(directory, broker=options.broker, store=options.store) as site:
        fleet = Fleet(site, size=options.workers, concurrency=options.concurrency)
        fleet.open()
        load = Load(site, seed=options.seed, rate=options.rate, most=options.tasks)
        plan = schedule(options.seed, options.seconds, store_restarts=site.store is not None, intensity=options.intensity)
        faults = Faults(site, fleet, plan)
        say(
            f"begun: {len(plan)} deaths planned, {options.workers} workers × {options.concurrency}, {options.broker}, store {options.store}"
        )
        begun = time.monotonic()
        load.start()
        faults.start()
        live = _watch(site, load, begun + options.seconds)
        faults.stop()
        load.stop()
        seconds = time.monotonic() - begun
        say("load and deaths are over; waiting for the rest")
        verdict = _drain(site, load, options.drain)
        verdict.astray += sorted(live.found)
        fleet.close()
        told = figures(verdict, load, faults, fleet, site.ledger.entries(), seconds=seconds)
        told["options"] = vars(options)
        told["suspects"] = list(live.suspects.values())
        told["last seen"] = [site.whereabouts(name) for name in [*verdict.lost, *verdict.doubled][:50]]
        good = verdict.good(atomic=site.atomic) and not told["crashed threads"]
        return good, {"good": good, **told}


def _watch(site: Site, load: Load, until: float) -> Live:
    """Look on while it goes on, at every task that has had no end yet."""
    live = Live(LEASE + REDIS["visibility_timeout"] + MARGIN)
    while load.is_alive() and (left := until - time.monotonic()) > 0:
        load.join(min(LOOK, left))
        try:
            confirmed, tasks = set(load.confirmed), list(load.tasks)
            open_ = live.open(tasks, confirmed, site.effects())
            # a short wait: what moves just now is found by the next look, and no worker waits long for what is looked through
            audit = site.deployment.guardrails.audit(map(identity, open_), wait=WAIT, limit=LIMIT)
            done = site.effects()
            for text in live.see(time.monotonic(), open_, audit, done):
                say(f"  SUSPECT {text}; {site.whereabouts(text.partition(':')[0])}")
        except Exception as error:  # noqa: BLE001 - a store or broker that is just being killed
            say(f"  … could not look: {type(error).__name__}")
            continue
        say(line(len(confirmed), len(done), audit))
    return live


def _drain(site: Site, load: Load, seconds: float) -> Verdict:
    """Wait until every task has its end and nothing changes any more, or the time is over; then audit."""
    deadline = time.monotonic() + seconds
    doomed = sum(task.reason is not None and task.name in load.confirmed for task in load.tasks)
    last, since = None, time.monotonic()
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            effects = site.effects()
            dead, waiting = site.deployment.dead(), site.deployment.depth()
            size = site.ledger.path.stat().st_size
            if (now := (sum(effects.values()), dead, waiting, size)) != last:
                last, since = now, time.monotonic()
            open_ = [task for task in load.tasks if task.name in load.confirmed and not effects[task.name]]
            rest = time.monotonic() - since
            # letters are counted before they are looked at
            if len(open_) <= doomed <= dead and waiting == 0 and rest >= REST:
                break
        time.sleep(0.5)
    # a broker that has only just come back may refuse a browse
    letters = eventually(lambda: (site.letters(),), 60, every=1, ignoring=(Exception,))[0]
    return audit(load.tasks, load.confirmed, site.effects(), letters, _missed_rows(site))


def _missed_rows(site: Site) -> Counter[str]:
    rows: dict[str, set[int]] = {}
    for entry in site.ledger.entries(event="row"):
        rows.setdefault(entry.key, set()).add(entry.fields["row"])
    return Counter({name: ROWS - len(found) for name, found in rows.items()})
