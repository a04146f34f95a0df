"""Conservation, asked of the live broker, store and workers: where everything is, and what contradicts itself."""

from __future__ import annotations

from .archived import ArchivedLetters
from .auditor import Auditor, Sources
from .report import Audit, Finding, QueueCount
from .sightings import Answer, Held, key_reader
from .standing import Standing, State

__all__ = ["Answer", "ArchivedLetters", "Audit", "Auditor", "Finding", "Held", "QueueCount", "Sources", "Standing", "State", "key_reader"]
