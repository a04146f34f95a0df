"""What the figures come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..report import Table
from .simulation import Measures, Scenario

__all__ = ["Summary", "recovery", "summary", "table"]

#: Part of the tasks published that must succeed each second, the seconds over which that is averaged, and for how many it must last.
_GOOD, _MEAN, _SUSTAINED = 0.95, 5, 30


@dataclass(frozen=True)
class Summary:
    """One contestant in a few numbers.

    Args:
        name: of the contestant.
        calls_in_outage: calls while the dependency was down.
        firsts_in_outage: of these, first attempts.
        amplification: calls per first attempt while it was down.
        amplification_overall: the same from beginning to end.
        peak_calls: most calls in one second while it was down.
        recovery: seconds from its healing until goodput was at 95 % of the arrivals, to stay; None if it never did.
        exhausted: tasks given up after their last attempt.
        done: part of all published tasks that have succeeded at the end.
        deferrals: times that a message was handed back without a call.
        peak_asks: most asks of the store in one second; None where there is no store.
        asks_per_call: asks of the store for each call.
        peak_looks: most looks at the resource in one second; None where there is none.
        drained: seconds from its healing until no more than a second's tasks waited; None if there were more at the end.
    """

    name: str
    calls_in_outage: int
    firsts_in_outage: int
    amplification: float
    amplification_overall: float
    peak_calls: int
    recovery: int | None
    exhausted: int
    done: float
    deferrals: int
    peak_asks: int | None
    asks_per_call: float
    peak_looks: int | None
    drained: int | None


def recovery(scenario: Scenario, measures: Measures) -> int | None:
    """Return the seconds from healing to the first of thirty, all of whose five-second means are at 95 % of the arrivals or more."""
    heals, enough, good = int(scenario.heals), _GOOD * _MEAN * scenario.rate, 0
    for second in range(heals, measures.seconds - _MEAN + 1):
        good = good + 1 if sum(measures.goodput[second : second + _MEAN]) >= enough else 0
        if good == _SUSTAINED:
            return second + 1 - _SUSTAINED - heals
    return None


def summary(scenario: Scenario, name: str, measures: Measures, *, store: bool) -> Summary:
    """Return the figures of one contestant."""
    outage = slice(int(scenario.dies), int(scenario.heals))
    calls, firsts = sum(measures.calls[outage]), sum(measures.firsts[outage])
    waits = measures.waiting[outage.stop :]
    drained = next((second for second, waiting in enumerate(waits) if waiting <= scenario.rate), None)
    return Summary(
        name,
        calls,
        firsts,
        calls / max(1, firsts),
        sum(measures.calls) / max(1, sum(measures.firsts)),
        max(measures.calls[outage]),
        recovery(scenario, measures),
        sum(measures.exhausted),
        sum(measures.goodput) / measures.published,
        measures.deferrals,
        max(measures.asks) if store else None,
        sum(measures.asks) / sum(measures.calls),
        max(measures.looks) if store else None,
        drained,
    )


def table(scenario: Scenario, summaries: list[Summary]) -> Table:
    """Return the table of the report."""
    found = Table(
        f"{scenario.workers:,} workers, {scenario.rate:,.0f} tasks a second, the dependency down for {scenario.down:.0f} s",
        ["contestant", "calls per first attempt, down", "overall", "peak calls/s, down", "s to 95 %", "exhausted", "peak asks/s", "done"],
        notes=["s to 95 %: from the healing until goodput is at 95 % of what is published, for thirty seconds"],
    )
    for each in summaries:
        row: list[Any] = [each.name, round(each.amplification, 2), round(each.amplification_overall, 2), each.peak_calls]
        row += ["never" if each.recovery is None else each.recovery, each.exhausted, each.peak_asks or "-", f"{100 * each.done:.1f} %"]
        found.rows.append(row)
    return found
