"""All checks, and what they say together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ..errors import GuardrailsConfigError
from . import letters, rabbitmq, redis, settings, store, tasks
from .facts import Facts
from .finding import Check, Finding, Level

__all__ = ["CHECKS", "Diagnosis", "diagnose"]

#: In the order in which a reader wants to know.
CHECKS: tuple[Check, ...] = tuple(
    sorted(
        (*store.CHECKS, *redis.CHECKS, *rabbitmq.CHECKS, *settings.CHECKS, *tasks.CHECKS, *letters.CHECKS),
        key=lambda one: list(Level).index(one.level),
    )
)


@dataclass(frozen=True)
class Diagnosis:
    """What was found, the worst first.

    Args:
        findings: all of them.
        facts: by which it was judged.
    """

    findings: tuple[Finding, ...]
    facts: Facts = field(repr=False)

    def count(self, level: Level) -> int:
        """Return how many findings are so bad."""
        return sum(finding.level is level for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether nothing is worse than a warning."""
        return not self.count(Level.ERROR)


def diagnose(facts: Facts, *, live: bool = True, ignore: Collection[str] = ()) -> Diagnosis:
    """Run the checks.

    Args:
        facts: all that is known.
        live: also those that need facts of broker and store.
        ignore: identifiers of findings that are not to be told, ``guardrails.W030`` or ``W030``.

    Raises:
        GuardrailsConfigError: there is no finding of such an identifier.
    """
    silent = {f"guardrails.{number.removeprefix('guardrails.')}" for number in ignore}
    if unknown := silent - {one.id for one in CHECKS}:
        raise GuardrailsConfigError(f"--ignore {', '.join(sorted(unknown))}: there is no such finding; docs/doctor.md has them all")
    chosen = [one for one in CHECKS if (live or not one.live) and one.id not in silent]
    return Diagnosis(tuple(finding for one in chosen for finding in one.findings(facts)), facts)
