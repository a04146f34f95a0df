"""The terminal: events that scroll by, and below them one block that is kept up to date (on a terminal)."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Screen:
    """Writes to standard output; colours and the live block only on a terminal, and none with ``NO_COLOR``."""

    #: Seconds between status lines where there is no terminal to refresh.
    QUIET_STEP = 5.0

    def __init__(self) -> None:
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.live and not os.environ.get("NO_COLOR")
        self._drawn = 0
        self._last = float("-inf")

    def paint(self, text: str, *styles: str) -> str:
        """Return the text in a colour, if there are colours."""
        if not self.colour or not styles:
            return text
        return f"\033[{';'.join(_CODES[style] for style in styles)}m{text}\033[0m"

    def line(self, text: str = "", *styles: str) -> None:
        """Write a line above the live block."""
        self._erase()
        print(self.paint(text, *styles), flush=True)

    def clipped(self, text: str) -> None:
        """Write a line, cut to the width of the terminal."""
        width = shutil.get_terminal_size((140, 24)).columns
        self.line(text if len(text) < width else text[: width - 2] + "…")

    def title(self, text: str) -> None:
        """Write a heading."""
        self.line()
        self.line(text, "bold")
        self.line("─" * len(text), "dim")

    def event(self, clock: float, text: str, *styles: str) -> None:
        """Write down that something happened, with the seconds since the day began."""
        self.line(f"{clock:6.1f} s  {self.paint(text, *styles)}")

    def status(self, block: Sequence[str], short: str) -> None:
        """Refresh the live block; without a terminal write the short line from time to time."""
        if not self.live:
            if time.monotonic() - self._last >= self.QUIET_STEP:
                self._last = time.monotonic()
                print(short, flush=True)
            return
        self._erase()
        width = shutil.get_terminal_size().columns
        for text in block:
            print(text[: width - 1] if "\033" not in text else text)
        sys.stdout.flush()
        self._drawn = len(block)

    def rows(self, rows: Iterable[tuple[str, str, str, str]]) -> None:
        """Write figures: name, value, what it means, style of the value."""
        for name, value, meaning, style in rows:
            self.line(f"  {name:<34}{self.paint(f'{value:>8}', *([style] if style else []))}   {self.paint(meaning, 'dim')}")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table; columns of numbers are set to the right."""
        widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
        right = [bool(rows) and all(row[column].isdigit() for row in rows) for column in range(len(heads))]

        def text(row: Sequence[str]) -> str:
            cells = (cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(row, widths, right, strict=True))
            return "  " + "  ".join(cells).rstrip()

        self.line(text(heads), "dim")
        for row in rows:
            self.line(text(row))

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\033[{self._drawn}A\033[J")
            self._drawn = 0
