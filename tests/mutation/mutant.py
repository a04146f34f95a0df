"""One change of one place, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mutant", "Result"]


@dataclass(frozen=True)
class Mutant:
    """One change of one place.

    Args:
        file: path below the package.
        scope: function or class it is in, or "" for the module's own level.
        first: first line of the place.
        last: last line of the place.
        before: the text of the place.
        after: what it becomes.
        site: what the language's own module finds the place by.
        edit: which of the changes of that place.
        reload: whether it counts only when the module is imported anew (it stands outside functions).
        line: the text of its first line.
    """

    file: str
    scope: str
    first: int
    last: int
    before: str
    after: str
    site: int
    edit: int
    reload: bool = False
    line: str = ""

    @property
    def name(self) -> str:
        """What it is told by; without a line, so that it stays when lines move."""
        where = "" if self.line in (self.before, "") else f" [{self.line}]"
        return f"{self.file}:{self.scope or '-'}:{where} {self.before} → {self.after}"


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    Args:
        mutant: the mutant.
        verdict: ``"killed"``, ``"survived"``, ``"timeout"`` (which counts as noticed) or ``"uncovered"`` (no test comes by).
        by: the test that noticed it.
        seconds: it took.
    """

    mutant: Mutant
    verdict: str
    by: str = ""
    seconds: float = 0.0
