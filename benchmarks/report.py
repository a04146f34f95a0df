"""Tables for people, the same numbers as JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Table:
    """One table of the report.

    Args:
        title: what is measured, and on how much.
        columns: with their units.
        rows: one list of values each.
        notes: what the reader has to know.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the table as text."""
        cells = [self.columns, *([_text(value) for value in row] for row in self.rows)]
        widths = [max(len(row[index]) for row in cells) for index in range(len(self.columns))]
        lines = [self.title, ""]
        for number, row in enumerate(cells):
            padded = [value.rjust(width) for value, width in zip(row, widths, strict=True)]
            lines.append("  " + "  ".join([row[0].ljust(widths[0]), *padded[1:]]))
            if not number:
                lines.append("  " + "  ".join("-" * width for width in widths))
        return "\n".join([*lines, *("  " + note for note in self.notes), ""])

    def data(self) -> dict[str, Any]:
        """Return the table for JSON, each row by column."""
        return {**asdict(self), "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows]}


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def paired(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios round by round: what disturbs the machine for minutes disturbs both of a pair."""
    return median([value / other for value, other in zip(values, base, strict=True)])


def spread(values: Sequence[float]) -> str:
    """Return the lowest and the highest value."""
    return f"{_text(min(values))}–{_text(max(values))}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
