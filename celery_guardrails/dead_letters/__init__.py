"""Dead letters: found, grouped, shown, replayed and discarded by one service for every command."""

from __future__ import annotations

from .decoder import Decoder, KombuDecoder, Payload
from .exchange import Export, ImportReport
from .filters import Filter
from .letter import DeadLetter
from .reports import DiscardReport, Failure, Group, Progress, ReplayReport
from .service import DeadLetters

__all__ = [
    "DeadLetter",
    "DeadLetters",
    "Decoder",
    "DiscardReport",
    "Export",
    "Failure",
    "Filter",
    "Group",
    "ImportReport",
    "KombuDecoder",
    "Payload",
    "Progress",
    "ReplayReport",
]
