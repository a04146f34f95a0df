"""What a soak tells: a table for people, the same as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.support.ledger import Entry

from .audit import Verdict
from .faults import Faults, Fleet
from .load import Load
from .measures import growth, takeovers

MEBIBYTE = 1 << 20


def figures(verdict: Verdict, load: Load, faults: Faults, fleet: Fleet, entries: list[Entry], *, seconds: float) -> dict[str, Any]:
    """Return everything for JSON."""
    slowest = takeovers(entries, faults.deaths)
    bodies = Counter(entry.key.split("-")[1] for entry in entries if entry.event in ("dies", "overruns"))
    oldest = max(fleet.memory.values(), key=len, default=[])
    worst = {kind: max(at for at, _, other in slowest if other == kind) for kind in {kind for _, _, kind in slowest}}
    return {
        "seconds": round(seconds, 1),
        "accepted": verdict.accepted,
        "unconfirmed": verdict.unconfirmed,
        "by kind": dict(load.kinds),
        "effects": verdict.effects,
        "completed": verdict.completed,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "doubled per 100,000": round(100_000 * len(verdict.doubled) / max(1, verdict.accepted), 2),
        "astray": verdict.astray,
        "dead by reason": dict(verdict.dead),
        "letters twice": verdict.letters_twice,
        "loop ends repeated": verdict.repeated,
        "deaths from outside": dict(faults.counts),
        "deaths in the body": dict(bodies),
        "publisher's errors": dict(load.errors),
        "takeovers": len(slowest),
        "longest takeover": [round(slowest[-1][0], 2), *slowest[-1][1:]] if slowest else None,
        "longest takeover by death": {kind: round(at, 2) for kind, at in sorted(worst.items())},
        "median takeover": round(slowest[len(slowest) // 2][0], 3) if slowest else None,
        "rss": {
            "workers": len(fleet.memory),
            "highest MiB": round(max((size for found in fleet.memory.values() for _, size in found), default=0) / MEBIBYTE, 1),
            "oldest worker s": round(oldest[-1][0] - oldest[0][0]) if oldest else 0,
            "oldest worker first MiB": round(oldest[0][1] / MEBIBYTE, 1) if oldest else 0,
            "oldest worker last MiB": round(oldest[-1][1] / MEBIBYTE, 1) if oldest else 0,
            # its first half minute is imports and connections
            "oldest worker MiB/h": round(growth([(at, size) for at, size in oldest if at - oldest[0][0] > 30]) / MEBIBYTE, 1),
        },
        "ends nobody asked for": fleet.unasked,
        "crashed threads": [text for text in (load.crashed, faults.crashed, fleet.crashed) if text],
    }


def table(told: dict[str, Any]) -> str:
    """Return the figures as two columns."""
    rss = told["rss"]
    rows = [
        ("tasks accepted", f"{told['accepted']:,} in {told['seconds']:g} s"),
        ("effects", f"{told['effects']:,}"),
        ("lost", len(told["lost"])),
        ("doubled", f"{len(told['doubled'])} ({told['doubled per 100,000']:g} in 100,000)"),
        ("another end than expected", len(told["astray"])),
        ("dead by reason", _listed(told["dead by reason"])),
        ("deaths from outside", _listed(told["deaths from outside"])),
        ("deaths in the body", _listed(told["deaths in the body"])),
        ("takeovers", f"{told['takeovers']}, median {told['median takeover']} s"),
        ("longest by kind of death, s", _listed(told["longest takeover by death"])),
        ("RSS of main processes", f"highest {rss['highest MiB']} MiB of {rss['workers']} workers"),
        ("… of the oldest", _oldest(rss)),
        ("publisher's errors", _listed(told["publisher's errors"])),
        ("letters twice, loops' ends repeated", f"{told['letters twice']}, {told['loop ends repeated']}"),
        ("workers that ended unasked", len(told["ends nobody asked for"])),
    ]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"  {title:<{width}}  {value}" for title, value in rows)


def _oldest(rss: dict[str, Any]) -> str:
    span = f"{rss['oldest worker first MiB']} → {rss['oldest worker last MiB']} MiB in {rss['oldest worker s']} s"
    return f"{span} (trend {rss['oldest worker MiB/h']:+} MiB/h)"


def _listed(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
