"""Dead letters that wait now."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Facts
from .finding import Said, check

__all__ = ["CHECKS"]


@check("I005", "dead letters wait", live=True)
def waiting(facts: Facts) -> Iterator[Said]:
    for letters in facts.letters:
        if letters.count:
            since = f", the oldest since {letters.oldest}" if letters.oldest else ""
            yield Said(
                letters.queue,
                f"{letters.count} dead letters wait{since}.",
                "Each is a task that was not done.",
                "celery -A proj guardrails dead-letters groups",
            )


CHECKS = (waiting,)
