"""A replay in stages: one letter, one in a hundred, all; each is watched before the next is let go.

A bug that was not mended after all costs one letter's work, not a hundred thousand's. (The stages are those of a canary
release, see Google's SRE Workbook, chapter 16.)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import StoreUnavailable
from ..policy.lease import Record, RecordState
from ..ports import Clock
from .halt import Halt
from .letter import DeadLetter

__all__ = ["STAGES", "Canary", "CanaryReport", "DeathWatch", "Stage", "failing", "relapse", "sizes"]

#: Seconds between two looks at the store, at first and at most.
_PAUSE, _PAUSE_LIMIT = 0.1, 1.0
#: Seconds after which the dead letter queue is looked through for the first time, if not all is well by then.
_FIRST_LOOK = 1.0
#: Names of the stages.
STAGES = ("one letter", "1 %", "all")


class DeathWatch(Protocol):
    """What a canary asks of the world."""

    def depth(self, queues: Iterable[str]) -> int:
        """Return how many letters lie in the dead letter queues of these task queues."""

    def letters(self, queues: Iterable[str]) -> Iterator[DeadLetter]:
        """Yield the letters in the dead letter queues of these task queues, moving none."""

    def lookup(self, key: str) -> Record | None:
        """Return what the store remembers of a key.

        Raises:
            StoreUnavailable: it did not answer.
        """


@dataclass(frozen=True)
class Stage:
    """One stage of a replay with a canary, as it went.

    Args:
        name: "one letter", "1 %" or "all".
        size: letters that it was to try; the last one has what is left.
        replayed: letters that it moved. Those whose key had completed before, so that their task did not run, prove
            nothing and are moved beside the others.
        completed: of those that were watched, how many completed.
        failed: of those, the one that stopped it.
        unheard: neither completed nor failed when it ended.
        seconds: watched.
    """

    name: str
    size: int
    replayed: int = 0
    completed: int = 0
    failed: int = 0
    unheard: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class CanaryReport:
    """How far a canary let a replay go.

    Args:
        chosen: letters that were to be replayed.
        stages: those that began; the last one is where it ended.
        why: it stopped itself, or "".
        left: letters that were left where they were.
    """

    chosen: int
    stages: tuple[Stage, ...]
    why: str
    left: int


@dataclass(frozen=True)
class _Bird:
    key: str
    task_id: str
    replays: int
    queue: str


class Canary:
    """Says when the next letter may be moved.

    A stage is over when each of its letters has completed, by its key's record, or when the time to watch is over and none
    has failed. It stops the replay when one of them is dead again, when a letter with one of their error fingerprints has died since the
    start, and when one has failed again and waits for its retry as the time is over: it would only die later.

    Args:
        chosen: letters that are to be replayed.
        wait: seconds that a stage is watched at most.
        watch: shows queues and records.
        clock: time.
        stop: raises :class:`~celery_guardrails.dead_letters.halt.Halt` when somebody wants the replay to end.
    """

    def __init__(self, chosen: int, wait: float, watch: DeathWatch, *, clock: Clock, stop: Callable[[], None] | None) -> None:
        self._chosen = chosen
        self._wait = wait
        self._watch = watch
        self._clock = clock
        self._stop = stop
        self._sizes = sizes(chosen)
        self._started = clock.now()
        self._done: list[Stage] = []
        self._fingerprints: set[str] = set()
        self._why = ""
        self._moved = 0
        self._begin()

    def _begin(self) -> None:
        self._birds: list[_Bird] = []
        self._pending: list[_Bird] = []
        self._replayed = 0
        self._completed = 0
        self._failed = 0
        self._seconds = 0.0
        self._counted = 0

    @property
    def _number(self) -> int:
        return len(self._done)

    @property
    def last(self) -> bool:
        """Whether the last stage has begun, in which nothing is watched."""
        return self._number == len(self._sizes) - 1

    # -- what a replay tells and asks -------------------------------------------------------------------------

    def admit(self) -> None:
        """Return when the next letter may be moved.

        Raises:
            Halt: the letters before it have not gone well.
        """
        if not self.last and self._counted >= self._sizes[self._number]:
            self._judge()

    def proves_something(self, letter: DeadLetter) -> bool:
        """Whether this letter's task would run: its key has not completed meanwhile."""
        return not self.last and not self._has_completed(letter.key)

    def moved(self, letter: DeadLetter, queue: str, *, counts: bool) -> None:
        """Take note of a letter that was moved; ``counts``: what :meth:`proves_something` said before."""
        self._replayed += 1
        self._moved += 1
        if counts:
            self._counted += 1
            self._birds.append(_Bird(letter.key or "", letter.task_id, letter.replays, queue))
            if letter.certificate.fingerprint:
                self._fingerprints.add(letter.certificate.fingerprint)

    def failed(self, why: str) -> None:
        """Take note of a letter that could not be moved.

        Raises:
            Halt: it was a canary.
        """
        if not self.last:
            self._halt(f"a letter could not be moved: {why}")

    def finish(self) -> None:
        """Watch the last canaries also where no letter is left behind them.

        Raises:
            Halt: they have not gone well.
        """
        if not self.last and self._birds:
            self._judge()

    def report(self) -> CanaryReport:
        """Return how far it came."""
        stages = [*self._done, self._stage()] if self._replayed or self._why else self._done
        return CanaryReport(self._chosen, tuple(stages), self._why, max(0, self._chosen - self._moved))

    # -- how --------------------------------------------------------------------------------------------------

    def _stage(self) -> Stage:
        unheard = 0 if self.last else max(0, len(self._pending) - self._failed)
        size = self._sizes[self._number] if not self.last else max(0, self._chosen - self._moved + self._replayed)
        return Stage(STAGES[self._number], size, self._replayed, self._completed, self._failed, unheard, round(self._seconds, 3))

    def _judge(self) -> None:
        began = self._clock.now()
        self._pending = list(self._birds)
        try:
            self._watch_all(began)
        finally:
            self._seconds = self._clock.now() - began
        self._done.append(self._stage())
        self._begin()

    def _watch_all(self, began: float) -> None:
        end, pause = began + self._wait, _PAUSE
        known, next_look = -1, began + _FIRST_LOOK
        while True:
            if self._stop is not None:
                self._stop()
            self._ask_the_store()
            now = self._clock.now()
            if not self._pending:
                return
            if now >= end:
                self._look()
                self._refuse_failing()
                return
            if now >= next_look and self._depth() > known:
                known = self._look()
                next_look = self._clock.now() + max(_PAUSE_LIMIT, 2 * (self._clock.now() - now))
            self._clock.sleep(max(0.0, min(pause, end - self._clock.now())))
            pause = min(2 * pause, _PAUSE_LIMIT)

    def _ask_the_store(self) -> None:
        still = [bird for bird in self._pending if not self._has_completed(bird.key)]
        self._completed += len(self._pending) - len(still)
        self._pending = still

    def _has_completed(self, key: str | None) -> bool:
        record = self._record(key)
        return record is not None and record.state is RecordState.COMPLETED

    def _record(self, key: str | None) -> Record | None:
        try:
            return self._watch.lookup(key) if key else None
        except StoreUnavailable:
            return None

    @property
    def _queues(self) -> list[str]:
        return sorted({bird.queue for bird in self._birds})

    def _depth(self) -> int:
        return self._watch.depth(self._queues)

    def _look(self) -> int:
        """Look for deaths; return how many letters there are."""
        replays = {bird.task_id: bird.replays for bird in self._birds if bird.task_id}
        seen = 0
        letters = self._watch.letters(self._queues)
        try:
            for letter in letters:
                seen += 1
                why = relapse(letter, replays, self._fingerprints, self._started)
                if why:
                    self._failed = int(letter.replays > replays.get(letter.task_id, letter.replays))
                    self._halt(why)
        finally:
            close = getattr(letters, "close", None)
            if close is not None:
                close()
        return seen

    def _refuse_failing(self) -> None:
        for bird in self._pending:
            why = failing(bird.task_id, self._record(bird.key))
            if why:
                self._failed = 1
                self._halt(why)

    def _halt(self, why: str) -> None:
        self._why = why
        raise Halt(f"the canary stopped it at the stage {STAGES[self._number]!r}: {why}")


def sizes(chosen: int) -> tuple[int, int, int]:
    """Return how many letters each stage may let go, of so many."""
    return 1, -(-chosen // 100), chosen


def relapse(letter: DeadLetter, replays: Mapping[str, int], fingerprints: Container[str], since: float) -> str:
    """Return why a letter stops a canary, or "".

    Args:
        letter: found in a dead letter queue, or in an archive.
        replays: of the canaries: how often each had been replayed before, by task id.
        fingerprints: of the errors that they had died of.
        since: unix time in seconds of the start.
    """
    error = f"{letter.reason}: {letter.certificate.error}: {letter.shown_message}"
    if letter.replays > replays.get(letter.task_id, letter.replays):
        return f"{letter.task or 'the task'} [{letter.task_id}] is dead again, letter {letter.id} ({error})"
    died_at = letter.died_at
    if letter.certificate.fingerprint in fingerprints and died_at is not None and died_at > since:
        return f"the error {letter.certificate.fingerprint} is back, letter {letter.id} ({error})"
    return ""


def failing(task_id: str, record: Record | None) -> str:
    """Return what is said of a canary that has failed and waits for its retry, or "".

    Args:
        task_id: of the canary.
        record: of its key; it has not completed.
    """
    if record is None or not (record.attempts or record.crashes):
        return ""
    return f"the task [{task_id}] has failed again ({record.attempts} attempts, {record.crashes} crashes) and waits for its retry"
