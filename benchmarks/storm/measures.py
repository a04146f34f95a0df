"""The arithmetic: what the dependency's log, the publisher's log and the broker's rest say. Pure functions of what was read."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

#: Seconds over which goodput is averaged, and the share of the arrival rate at which it counts as back.
WINDOW, SHARE = 5.0, 0.95


@dataclass(frozen=True)
class Call:
    """One call, as the dependency saw it.

    Args:
        at: when it arrived, seconds.
        ended: when it was answered or given up, seconds.
        task: for which task.
        outcome: of :mod:`benchmarks.storm.dependency`; ``ok`` is the only success.
    """

    at: float
    ended: float
    task: str
    outcome: str


@dataclass(frozen=True)
class Storm:
    """Everything that was written down about one contestant.

    Args:
        calls: by time of arrival.
        published: when each task was published, by name.
        starts: when each phase began, by name, and ``end``: when the last one was over.
        waiting: tasks that lay in the broker at the end.
        dead: tasks that the contestant gave up.
    """

    calls: Sequence[Call]
    published: Mapping[str, float]
    starts: Mapping[str, float]
    waiting: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Series:
    """By second from the first phase on; each list has one number a second.

    Args:
        published: tasks published.
        calls: calls that arrived.
        firsts: … that were the first of their task.
        goodput: tasks that succeeded, each counted once.
        amplification: calls until then / first attempts until then; None before the first.
    """

    published: list[int]
    calls: list[int]
    firsts: list[int]
    goodput: list[int]
    amplification: list[float | None]


@dataclass(frozen=True)
class Figures:
    """What the storm comes to (docs/storm.md has the definitions). Times in seconds; None: not before the end.

    Args:
        published: tasks.
        succeeded: tasks with a successful call.
        calls: all calls.
        amplification: calls / tasks called, over all.
        outage_published: tasks published while the dependency was down.
        outage_calls: calls that arrived while it was down.
        outage_firsts: … that were the first of their task.
        outage_per_first: outage_calls / outage_firsts; None where there was no first attempt.
        outage_per_published: outage_calls / outage_published.
        recovered_after: from healing to the end of the first window with goodput at 95 % of the arrival rate, sustained.
        lowest_after: the lowest goodput of any window after that, as a share of the arrival rate.
        cleared_after: from healing until all tasks published before it had succeeded.
        unfinished: tasks published before healing that had not succeeded at the end.
        wait_median: from publishing to success, of the tasks published during the outage.
        wait_p95: the same, for 95 of 100.
        dead: tasks given up.
        waiting: tasks that neither succeeded nor were given up, and lay in the broker at the end.
        lost: tasks that are nowhere.
        needless: calls for a task that had succeeded.
        outcomes: calls by outcome.
    """

    published: int
    succeeded: int
    calls: int
    amplification: float
    outage_published: int
    outage_calls: int
    outage_firsts: int
    outage_per_first: float | None
    outage_per_published: float
    recovered_after: float | None
    lowest_after: float | None
    cleared_after: float | None
    unfinished: int
    wait_median: float | None
    wait_p95: float | None
    dead: int
    waiting: int
    lost: int
    needless: int
    outcomes: dict[str, int] = field(default_factory=dict)


def read_dependency(lines: Iterable[str]) -> tuple[list[Call], dict[str, float]]:
    """Return the calls, by arrival, and when each phase began."""
    calls, starts = [], {}
    for line in lines:
        kind, at, *rest = json.loads(line)
        if kind == "phase":
            starts[rest[0]] = at
        else:
            ended, task, outcome = rest
            calls.append(Call(at, ended, task, outcome))
    return sorted(calls, key=lambda call: call.at), starts


def read_published(lines: Iterable[str]) -> dict[str, float]:
    """Return when each task was published."""
    return {name: float(at) for at, name in (line.split() for line in lines)}


def firsts(calls: Iterable[Call]) -> dict[str, float]:
    """Return when the first call of each task arrived; the calls come by arrival."""
    found: dict[str, float] = {}
    for call in calls:
        found.setdefault(call.task, call.at)
    return found


def successes(calls: Iterable[Call]) -> dict[str, float]:
    """Return when each task succeeded for the first time."""
    found: dict[str, float] = {}
    for call in calls:
        if call.outcome == "ok":
            found[call.task] = min(call.ended, found.get(call.task, math.inf))
    return found


def series(storm: Storm) -> Series:
    """Return what happened second by second."""
    origin, end = storm.starts["normal"], storm.starts["end"]
    seconds = round(end - origin)
    calls, first = _bins((call.at for call in storm.calls), origin, seconds), _bins(firsts(storm.calls).values(), origin, seconds)
    ratios: list[float | None] = []
    all_calls = all_firsts = 0
    for second in range(seconds):
        all_calls, all_firsts = all_calls + calls[second], all_firsts + first[second]
        ratios.append(round(all_calls / all_firsts, 3) if all_firsts else None)
    return Series(
        published=_bins(storm.published.values(), origin, seconds),
        calls=calls,
        firsts=first,
        goodput=_bins(successes(storm.calls).values(), origin, seconds),
        amplification=ratios,
    )


def figures(storm: Storm) -> Figures:
    """Return the figures of one contestant."""
    down, healed, end = storm.starts["down"], storm.starts["healed"], storm.starts["end"]
    first, done = firsts(storm.calls), successes(storm.calls)
    outage = [call for call in storm.calls if down <= call.at < healed]
    outage_firsts = _between(first.values(), down, healed)
    outage_tasks = [name for name, at in storm.published.items() if down <= at < healed]
    before = [name for name, at in storm.published.items() if at < healed]
    waits = sorted(done[name] - storm.published[name] if name in done else math.inf for name in outage_tasks)
    rate = _between(storm.published.values(), healed, end) / (end - healed)
    recovered = recovery(sorted(done.values()), healed, end, rate)
    outcomes: dict[str, int] = {}
    for call in storm.calls:
        outcomes[call.outcome] = outcomes.get(call.outcome, 0) + 1
    open_tasks = storm.published.keys() - done.keys()
    return Figures(
        published=len(storm.published),
        succeeded=len(done),
        calls=len(storm.calls),
        amplification=len(storm.calls) / max(1, len(first)),
        outage_published=len(outage_tasks),
        outage_calls=len(outage),
        outage_firsts=outage_firsts,
        outage_per_first=len(outage) / outage_firsts if outage_firsts else None,
        outage_per_published=len(outage) / max(1, len(outage_tasks)),
        recovered_after=recovered,
        lowest_after=lowest(sorted(done.values()), healed + recovered, end, rate) if recovered is not None else None,
        cleared_after=max(0.0, *(done[name] - healed for name in before)) if done.keys() >= set(before) else None,
        unfinished=sum(name not in done for name in before),
        wait_median=percentile(waits, 0.5),
        wait_p95=percentile(waits, 0.95),
        dead=len(open_tasks & storm.dead),
        waiting=len((open_tasks & storm.waiting) - storm.dead),
        lost=len(open_tasks - storm.dead - storm.waiting),
        needless=sum(call.at > done.get(call.task, math.inf) for call in storm.calls),
        outcomes=outcomes,
    )


def recovery(done: Sequence[float], healed: float, end: float, rate: float) -> float | None:
    """Return the seconds from healing to the end of the first window, all of it after healing, whose goodput is back.

    Back means at least :data:`SHARE` of ``rate`` in that window of :data:`WINDOW` seconds, and on average from its start to ``end``.

    Args:
        done: when tasks succeeded, in order.
        healed: when the dependency had healed.
        end: of what is looked at.
        rate: tasks a second that arrive; where none do there is nothing to come back.
    """
    if rate <= 0:
        return None
    for start in _windows(healed, end):
        if _count(done, start, start + WINDOW) >= SHARE * rate * WINDOW and _count(done, start, end) >= SHARE * rate * (end - start):
            return start + WINDOW - healed
    return None


def lowest(done: Sequence[float], since: float, end: float, rate: float) -> float | None:
    """Return the lowest goodput of any window from ``since`` to ``end``, as a share of ``rate``; None where no window fits."""
    return min((_count(done, start, start + WINDOW) / (rate * WINDOW) for start in _windows(since, end)), default=None)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that ``share`` of all do not exceed; None where that is infinite or there is none."""
    if not ordered:
        return None
    value = ordered[max(0, math.ceil(share * len(ordered)) - 1)]
    return value if math.isfinite(value) else None


def _windows(since: float, end: float) -> list[float]:
    """Return the starts of all windows between two times, a tenth of a second apart."""
    return [since + tenth / 10 for tenth in range(math.floor((end - since - WINDOW) * 10 + 1e-6) + 1)]


def _count(ordered: Sequence[float], since: float, until: float) -> int:
    return bisect_left(ordered, until) - bisect_left(ordered, since)


def _between(times: Iterable[float], since: float, until: float) -> int:
    return sum(since <= at < until for at in times)


def _bins(times: Iterable[float], origin: float, seconds: int) -> list[int]:
    counts = [0] * seconds
    for at in times:
        if 0 <= (second := math.floor(at - origin)) < seconds:
            counts[second] += 1
    return counts
