"""Ways in which a replay ends, or looks again, before its last letter."""

from __future__ import annotations

__all__ = ["Halt", "HeldTooLong"]


class Halt(Exception):
    """Ends a replay or a discard between two letters; the text says why."""


class HeldTooLong(Exception):
    """The letters in hand may not be ours any more: the queue is to be looked through again."""
