"""``python -m benchmarks.storm``: one contestant after the other, a table, the figures as JSON, the picture."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..report import Table
from .contestant import CONTESTANTS, DEFAULT
from .measures import Series, Storm, figures, series
from .plan import ATTEMPTS, CALL_TIMEOUT, CONCURRENCY, PHASES, QUICK_SECONDS, WORKERS, Plan
from .run import run

#: Rows of the table: title, and the figure's name.
ROWS = (
    ("tasks published", "published"),
    ("… that succeeded by the end", "succeeded"),
    ("calls", "calls"),
    ("calls / tasks called, over all", "amplification"),
    ("outage: tasks published", "outage_published"),
    ("outage: first attempts", "outage_firsts"),
    ("outage: calls", "outage_calls"),
    ("outage: calls / first attempts", "outage_per_first"),
    ("outage: calls / tasks published", "outage_per_published"),
    ("goodput back after healing, s", "recovered_after"),
    ("lowest 5 s of goodput after that, share of arrivals", "lowest_after"),
    ("all tasks from before healing done, s after it", "cleared_after"),
    ("… not done by the end", "unfinished"),
    ("tasks of the outage: median wait, s", "wait_median"),
    ("tasks of the outage: 95th percentile, s", "wait_p95"),
    ("tasks given up", "dead"),
    ("tasks waiting at the end", "waiting"),
    ("tasks lost", "lost"),
    ("calls for tasks that had succeeded", "needless"),
)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    names = ("celery", "kombu", "redis", "dramatiq", "celery-guardrails")
    about = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count()}
    return {**about, **{name: version(name) for name in names}}


def report(storms: dict[str, Storm], plan: Plan, about: dict[str, Any]) -> dict[str, Any]:
    """Return everything for JSON; times count from the first phase."""
    contestants = {}
    for name, storm in storms.items():
        origin = storm.starts["normal"]
        contestants[name] = {
            "starts": {phase: round(at - origin, 2) for phase, at in storm.starts.items()},
            "figures": {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(figures(storm)).items()},
            "series": asdict(series(storm)),
        }
    fleet = {"workers": WORKERS, "concurrency": CONCURRENCY, "attempts": ATTEMPTS, "call_timeout": CALL_TIMEOUT}
    return {"about": about, "plan": {**asdict(plan), **fleet}, "contestants": contestants}


def table(told: dict[str, Any]) -> Table:
    """Return the figures of a report as a table."""
    plan, names = told["plan"], list(told["contestants"])
    phases = ", ".join(f"{phase} {seconds:g} s" for phase, seconds in zip(PHASES, plan["seconds"], strict=True))
    result = Table(
        f"{plan['rate']:g} tasks/s, {plan['workers']} workers × {plan['concurrency']}, {plan['attempts']} attempts; {phases}",
        ["", *(CONTESTANTS[name] for name in names)],
        notes=["–: not by the end, or no first attempt to divide by"],
    )
    for title, key in ROWS:
        values = [told["contestants"][name]["figures"][key] for name in names]
        result.rows.append([title, *("–" if value is None else float(value) if isinstance(value, float) else value for value in values)])
    return result


def picture(told: dict[str, Any], base: Path) -> list[Path]:
    """Draw a report."""
    from .plot import Panel, plot

    return plot(
        [
            Panel(CONTESTANTS[name], Series(**one["series"]), one["starts"], told["plan"]["rate"])
            for name, one in told["contestants"].items()
        ],
        base,
    )


def write(told: dict[str, Any], path: Path) -> None:
    """Write a report, each series on one line."""
    lists: dict[str, str] = {}

    def put_away(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put_away(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            lists[mark := f"@{len(lists)}@"] = json.dumps(value)
            return mark
        return value

    text = json.dumps(put_away(told), indent=2, ensure_ascii=False)
    for mark, line in lists.items():
        text = text.replace(f'"{mark}"', line)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, draw; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description="A dependency slows, fails, heals: who makes it worse?")
    parser.add_argument("--quick", action="store_true", help="all phases in 24 seconds: a smoke test, not a measurement")
    phases = " ".join(PHASES)
    parser.add_argument("--seconds", type=float, nargs=4, metavar="N", help=f"of the phases {phases}; 0 leaves one out")
    parser.add_argument("--rate", type=float, default=Plan.rate, help=f"tasks a second (default {Plan.rate:g})")
    names = ", ".join(CONTESTANTS)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=DEFAULT, metavar="NAME", help=f"of {names}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and series there")
    parser.add_argument("--plot", type=Path, metavar="BASE", help="write the picture as BASE.svg and BASE.png")
    parser.add_argument("--replot", type=Path, metavar="FILE", help="measure nothing: table and picture of this JSON")
    parser.add_argument("--keep", action="store_true", help="leave the logs where they are, and say where")
    chosen = parser.parse_args(argv)
    # Ended from outside it cleans up as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if chosen.replot is not None:
        told = json.loads(chosen.replot.read_text(encoding="utf-8"))
    else:
        seconds = tuple(chosen.seconds) if chosen.seconds else QUICK_SECONDS if chosen.quick else Plan.seconds
        plan = replace(Plan(), rate=chosen.rate, seconds=seconds)
        told = measure(plan, chosen.contestants, keep=chosen.keep)
        if chosen.json is not None:
            write(told, chosen.json)
    print(table(told).text())
    if chosen.plot is not None:
        print("\n".join(map(str, picture(told, chosen.plot))))
    return 0


def measure(plan: Plan, names: Sequence[str], *, keep: bool) -> dict[str, Any]:
    """Run the contestants one after the other and return the report."""
    directory, began, storms = Path(tempfile.mkdtemp(prefix="gr-storm-")), time.monotonic(), {}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    about = {**machine(), "load_before": os.getloadavg()[0]}
    try:
        for name in names:
            storms[name] = run(name, plan, directory / name, say)
            say(f"{name}: {figures(storms[name])}")
    finally:
        if keep:
            say(f"logs in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    about.update(load_after=os.getloadavg()[0], seconds=round(time.monotonic() - began))
    return report(storms, plan, about)


if __name__ == "__main__":
    sys.exit(main())
