"""What a confirmation page says before letters are replayed: where they go, what has completed, what is left alone."""

from __future__ import annotations

from typing import Any

from celery_guardrails.dead_letters.canary import sizes

from .archive import Archive
from .canarying import WATCH_SECONDS, free
from .presenting import skipped_text

__all__ = ["LOOKED_INTO", "canary_plan", "replay_plan"]

#: Letters that a confirmation page looks into one by one.
LOOKED_INTO = 1000


def replay_plan(archive: Archive, rows: Any, *, hopeless: bool) -> dict[str, Any]:
    """Return what would become of letters that are replayed now."""
    looked = archive.replay(rows, who="", dry_run=True, hopeless=hopeless, limit=LOOKED_INTO)
    return {
        "destinations": sorted(archive.destinations(rows).items()),
        "looked": looked,
        "looked_into": LOOKED_INTO,
        "skipped": skipped_text(looked),
    }


def canary_plan(archive: Archive, rows: Any) -> dict[str, Any]:
    """Return what would become of letters that are replayed in stages, and how many of them may be."""
    chosen, number = free(rows), rows.count()
    looked = archive.replay(chosen, who="", dry_run=True, limit=LOOKED_INTO)
    able = chosen.count()
    unable = f"{number - able} of {number}: replayed too often before, or they would only die again" if number > able else ""
    return {
        "number": able,
        "unable": number - able,
        "destinations": sorted(archive.destinations(chosen).items()),
        "looked": looked,
        "looked_into": LOOKED_INTO,
        "skipped": unable,
        "second": max(0, min(sizes(able)[1], able - 1)),
        "rest": max(0, able - 1 - sizes(able)[1]),
        "watched": f"{WATCH_SECONDS:.0f}",
    }
