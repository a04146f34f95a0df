"""Text of strangers, safe to print."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]


def printable(text: object, *, lines: bool = False, limit: int | None = None) -> str:
    """Return a text that is safe to print: what could steer a terminal, or turn the writing around, is escaped.

    Args:
        text: anything; a dead letter may hold what an attacker sent.
        lines: keep line ends and tabs.
        limit: characters to keep.
    """
    whole = str(text)
    cut = whole if limit is None or len(whole) <= limit else whole[: limit - 1] + "…"
    return "".join(char if _harmless(char) or (lines and char in "\n\t") else _escaped(char) for char in cut)


def _harmless(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] != "C" and category not in ("Zl", "Zp")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
