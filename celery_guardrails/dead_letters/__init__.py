"""Dead letters: found, grouped, shown, replayed and discarded by one service for every command."""

from __future__ import annotations

from .canary import CanaryReport
from .decoder import Decoder, KombuDecoder, Payload
from .edit import Edit
from .exchange import Export, ImportReport
from .filters import Filter
from .letter import DeadLetter
from .reports import DiscardReport, EditNote, Failure, Group, Progress, ReplayReport
from .service import DeadLetters

__all__ = [
    "CanaryReport",
    "DeadLetter",
    "DeadLetters",
    "Decoder",
    "DiscardReport",
    "Export",
    "Edit",
    "EditNote",
    "Failure",
    "Filter",
    "Group",
    "ImportReport",
    "KombuDecoder",
    "Payload",
    "Progress",
    "ReplayReport",
]
