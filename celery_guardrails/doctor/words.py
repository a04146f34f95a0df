"""Words that several checks use."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["names", "seconds"]


def names(all_names: Iterable[str], most: int = 8) -> str:
    """Return names for a sentence, not more than a reader takes in."""
    known = sorted(all_names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def seconds(number: float) -> str:
    """Return a span for people."""
    return f"{number:.3g} s" if number < 1 else f"{number:.0f} s"
