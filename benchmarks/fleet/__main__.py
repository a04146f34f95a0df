"""``python -m benchmarks.fleet``: three fleets meet the same outage; a table, the figures as JSON, a picture."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .contestants import FixedDelay, Guarded, PlainCelery
from .report import summary, table
from .simulation import Scenario, simulate

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--workers", type=int, default=Scenario.workers, help=f"workers, one task at a time each ({Scenario.workers})")
    parser.add_argument("--seed", type=int, default=Scenario.seed, help="of all that is random: the same seed, the same figures")
    parser.add_argument("--slowdown", type=float, default=Scenario.slowdown, help=f"of the slow phase ({Scenario.slowdown:g})")
    parser.add_argument("--timeout", type=float, default=Scenario.timeout, help=f"of the client, in seconds ({Scenario.timeout:g})")
    parser.add_argument("--json", type=Path, help="write the figures to this file (fleet.json in --out)")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the picture (docs/images)")
    parser.add_argument("--no-plot", action="store_true", help="only the figures")
    options = parser.parse_args(arguments)
    scenario = Scenario(workers=options.workers, seed=options.seed, slowdown=options.slowdown, timeout=options.timeout)
    results, summaries, data = [], [], {}
    for contestant in (Guarded(scenario.seed), PlainCelery(scenario.seed), FixedDelay(scenario.seed)):
        began = time.process_time()
        measures = simulate(scenario, contestant)
        print(f"{contestant.name}: {time.process_time() - began:.0f} s of CPU", file=sys.stderr)
        found = summary(scenario, contestant.name, measures, store=contestant.looks)
        results.append((contestant.name, measures))
        summaries.append(found)
        extra: dict[str, Any] = {}
        if isinstance(contestant, Guarded):
            extra["breaker"] = [{"second": round(at, 1), "opened": opened} for at, opened in contestant.moves]
        data[contestant.name] = {"summary": asdict(found), **extra, "seconds": asdict(measures)}
    print(table(scenario, summaries).text())
    if options.json is not None or not options.no_plot:
        file = options.json or options.out / "fleet.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"scenario": asdict(scenario), "contestants": data}) + "\n", encoding="utf-8")
    if not options.no_plot:
        from .plot import draw

        for path in draw(scenario, results, options.out):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
