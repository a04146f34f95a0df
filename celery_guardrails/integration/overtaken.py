"""A small table that the worker's main process shares with its children: which of them have lost their lease?

The main process learns it when it renews. A child reads the table before it begins what it should not begin without a
lease, and asks the store where its own holder stands in it: the table is a hint (a renewal may come before the claim).
"""

from __future__ import annotations

import mmap
import zlib

__all__ = ["mark", "marked"]

_SLOT = 16
_SLOTS = 512
_table = mmap.mmap(-1, _SLOT * _SLOTS)


def mark(holder: str) -> None:
    """Note that the store did not renew this holder's lease."""
    value, start = _place(holder)
    _table[start : start + _SLOT] = value


def marked(holder: str) -> bool:
    """Return whether that was noted (and no other holder has been put in the same place since)."""
    value, start = _place(holder)
    return _table[start : start + _SLOT] == value


def _place(holder: str) -> tuple[bytes, int]:
    value = holder.encode()[:_SLOT].ljust(_SLOT, b"\0")
    return value, zlib.crc32(value) % _SLOTS * _SLOT
