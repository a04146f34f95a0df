"""What a soak measures besides: how long takeovers took, and whether the workers grow."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.support.ledger import END, START, Entry


@dataclass(frozen=True)
class Death:
    """Processes that died, or were frozen.

    Args:
        time: seconds of the machine's monotonic clock.
        kind: what killed them.
        pids: of all of them.
    """

    time: float
    kind: str
    pids: frozenset[int]


def takeovers(entries: Iterable[Entry], deaths: Sequence[Death]) -> list[tuple[float, str, str]]:
    """Return (seconds, key, kind of death) from each death of a holder to the next start of its task, the longest last.

    Deaths in the body are in the ledger itself (``dies``); of one that the soak did, the pid is known.
    """
    by_pid: defaultdict[int, list[Death]] = defaultdict(list)
    for death in deaths:
        for pid in death.pids:
            by_pid[pid].append(death)
    runs: dict[str, list[Entry]] = {}
    by_key: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.event == START:
            by_key[entry.key].append(entry.run)
        if entry.run:
            runs.setdefault(entry.run, []).append(entry)
    found = []
    for key, names in by_key.items():
        begun = sorted(runs[name][0].time for name in names)
        for name in names:
            died = _death(runs[name], by_pid)
            later = [time for time in begun if died and time > max(died[0], runs[name][0].time)]
            if died and later:
                found.append((later[0] - died[0], key, died[1]))
    return sorted(found)


def _death(run: Sequence[Entry], by_pid: dict[int, list[Death]]) -> tuple[float, str] | None:
    """Return when a run lost its process, or None where it ended by itself."""
    ended = next((entry.time for entry in run if entry.event == END), float("inf"))
    own = [(entry.time, "in the body") for entry in run if entry.event == "dies"]
    others = [(death.time, death.kind) for death in by_pid.get(run[0].pid, ()) if run[0].time <= death.time < ended]
    return min([*own, *others], default=None)


def growth(samples: Sequence[tuple[float, float]]) -> float:
    """Return the slope of (seconds, bytes) as bytes an hour, by least squares; 0 where there is too little to say."""
    if len(samples) < 3 or samples[-1][0] - samples[0][0] < 1:
        return 0.0
    return statistics.linear_regression(*zip(*samples, strict=True)).slope * 3600
