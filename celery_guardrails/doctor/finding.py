"""What the doctor says, and how one check is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .facts import Facts

__all__ = ["Check", "Finding", "Level", "Said", "check"]


class Level(Enum):
    """How bad it is; the letter in a finding's identifier says the same."""

    #: Tasks are lost, repeated or refused as things are.
    ERROR = "error"
    #: They will be when something happens that happens.
    WARNING = "warning"
    #: Worth knowing; nothing is wrong.
    INFO = "info"


_LEVELS = {level.name[0]: level for level in Level}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Args:
        id: ``guardrails.E020``: stable; Django's system checks have the same.
        level: how bad.
        subject: which setting, task, queue or server.
        what: is the case.
        why: it loses or repeats tasks, or what follows.
        mend: the line that mends it, to be pasted.
    """

    id: str
    level: Level
    subject: str
    what: str
    why: str
    mend: str


class Said(NamedTuple):
    """What a check says; its identifier and level are the check's."""

    subject: str
    what: str
    why: str
    mend: str


@dataclass(frozen=True)
class Check:
    """One check: a pure function from the facts to what is wrong.

    Args:
        id: of its findings.
        title: what it finds, for the table in docs/doctor.md.
        live: whether it needs facts of the broker or the store.
        look: the function.
    """

    id: str
    title: str
    live: bool
    look: Callable[[Facts], Iterator[Said]]

    @property
    def level(self) -> Level:
        """Of all its findings."""
        return _LEVELS[self.id.rpartition(".")[2][0]]

    def findings(self, facts: Facts) -> Iterator[Finding]:
        """Yield what is wrong."""
        for said in self.look(facts):
            yield Finding(self.id, self.level, *said)


def check(number: str, title: str, *, live: bool = False) -> Callable[[Callable[[Facts], Iterator[Said]]], Check]:
    """Make a :class:`Check` of a function; ``number`` is what follows ``guardrails.`` in its identifier."""

    def decorate(look: Callable[[Facts], Iterator[Said]]) -> Check:
        return Check(f"guardrails.{number}", title, live, look)

    return decorate
