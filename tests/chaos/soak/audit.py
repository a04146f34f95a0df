"""Conservation, as a pure function of what was accepted, what was done and what is dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .plan import Expected


@dataclass
class Verdict:
    """What became of the tasks of a soak.

    Args:
        accepted: tasks whose publish was confirmed.
        unconfirmed: tasks whose publish was never confirmed: of them nothing is expected, but that they are not doubled.
        effects: how many there were in all.
        completed: tasks with an effect that were to have one.
        dead: tasks with the dead letter that was expected, by reason.
        lost: accepted, and there is neither effect nor letter.
        doubled: more than one effect: name → how many.
        astray: another end than the expected one, in words.
        repeated: loops whose end was repeated, which is allowed.
        letters_twice: dead letters that are there more than once, which is allowed.
    """

    accepted: int = 0
    unconfirmed: int = 0
    effects: int = 0
    completed: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: dict[str, int] = field(default_factory=dict)
    astray: list[str] = field(default_factory=list)
    repeated: int = 0
    letters_twice: int = 0

    def good(self, *, atomic: bool) -> bool:
        """Whether every promise was kept; without ``atomic`` doubled effects are measured, not promised away."""
        return not (self.lost or self.astray or (atomic and self.doubled))


def audit(
    tasks: Iterable[Expected],
    confirmed: set[str],
    effects: Mapping[str, int],
    letters: Mapping[str, Sequence[str]],
    rows: Mapping[str, int],
) -> Verdict:
    """Compare, when everything has come to rest.

    Args:
        tasks: all that were published, whether that was confirmed or not.
        confirmed: names of those whose publish was.
        effects: name → number of effects.
        letters: name → reasons of its dead letters.
        rows: loop → rows that it has missed.
    """
    verdict = Verdict(effects=sum(effects.values()))
    known = set()
    for task in tasks:
        known.add(task.name)
        done, reasons = effects.get(task.name, 0), list(letters.get(task.name, ()))
        accepted = task.name in confirmed
        verdict.accepted += accepted
        verdict.unconfirmed += not accepted
        verdict.letters_twice += len(reasons) > 1
        if done > 1 and task.once:
            verdict.doubled[task.name] = done
        verdict.repeated += done > 1 and not task.once
        if not done and not reasons:
            if accepted:
                verdict.lost.append(task.name)
            continue
        wrong = _wrong(task, done, reasons, rows.get(task.name, 0))
        if wrong:
            verdict.astray.append(f"{task.name}: {wrong}")
        elif task.reason:
            verdict.dead[task.reason] += 1
        else:
            verdict.completed += 1
    verdict.astray += [f"{name}: nobody published it" for name in sorted({*effects, *letters} - known)]
    return verdict


def _wrong(task: Expected, done: int, reasons: Sequence[str], missed: int) -> str:
    if done and reasons:
        return f"{done} effects, and dead-lettered as {', '.join(reasons)}"
    if task.reason is None:
        return f"dead-lettered as {', '.join(reasons)}" if reasons else f"{missed} rows were left out" if missed else ""
    if done:
        return f"an effect, where a dead letter was expected ({task.reason})"
    return "" if set(reasons) == {task.reason} else f"dead-lettered as {', '.join(reasons)}, expected was {task.reason}"
