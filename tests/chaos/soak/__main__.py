"""``python -m tests.chaos.soak``: a soak on each broker and its table; exits with 1 where a promise was not kept."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

from .report import table
from .run import Options, say, soak
from .site import STORES


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="on each broker (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the tasks and the deaths (1)")
    parser.add_argument("--broker", choices=("redis", "amqp", "both"), default="both")
    parser.add_argument("--store", choices=STORES, default="redis", help="a database: atomic=True, and nothing may be doubled (redis)")
    parser.add_argument("--rate", type=float, default=30.0, help="tasks a second at most (30)")
    parser.add_argument("--tasks", type=int, help="stop after so many tasks, if that is sooner")
    parser.add_argument("--workers", type=int, default=3, help="main processes, of two children each (3)")
    parser.add_argument("--intensity", type=float, default=1.0, help="factor on the number of deaths an hour (1)")
    parser.add_argument("--drain", type=float, default=400.0, help="seconds that the rest may take at the end (400)")
    parser.add_argument("--json", type=Path, default=Path("build/soak"), help="directory for the figures (build/soak)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit code."""
    chosen = parse(arguments)
    good = True
    for broker in ("redis", "amqp") if chosen.broker == "both" else (chosen.broker,):
        options = Options(
            broker=broker,
            store=chosen.store,
            seconds=chosen.minutes * 60,
            seed=chosen.seed,
            rate=chosen.rate,
            tasks=chosen.tasks,
            workers=chosen.workers,
            intensity=chosen.intensity,
            drain=chosen.drain,
        )
        good &= one(options, chosen.json)
    return 0 if good else 1


def one(options: Options, figures: Path) -> bool:
    """Run one soak, print its table and write its figures; logs are kept where it went wrong."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    directory.chmod(0o755)
    load = os.getloadavg()
    good, told = soak(options, directory)
    told["machine"] = {"cpus": os.cpu_count(), "load before": load, "load after": os.getloadavg()}
    say(f"\nsoak on {options.broker}, store {options.store}, seed {options.seed}: {'every promise kept' if good else 'NOT GOOD'}")
    say(table(told))
    for title in ("lost", "astray", "suspects", "last seen", "crashed threads"):
        for line in told[title][:50]:
            say(f"  {title}: {line}")
    figures.mkdir(parents=True, exist_ok=True)
    path = figures / f"{options.broker}-{options.store}-{options.seed}.json"
    path.write_text(json.dumps(told, indent=1, default=str) + "\n")
    say(f"figures: {path}")
    if good:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        say(f"ledger and logs: {directory}")
    return good


if __name__ == "__main__":
    raise SystemExit(main())
