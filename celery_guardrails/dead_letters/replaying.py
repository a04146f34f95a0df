"""What a replay and a discard do with the letters that they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import GuardrailsConfigError, LettersReturned, StoreUnavailable
from ..policy.lease import RecordState
from ..ports import Broker, Clock, IdempotencyStore, Move, Moved, QueuedLetter
from .canary import Canary
from .edit import Edited, Editor
from .halt import Halt, HeldTooLong
from .letter import DeadLetter
from .pace import Pace
from .passes import Step
from .reports import EditNote
from .restore import restored
from .tally import Run

__all__ = ["Discarding", "Replaying", "stop_when"]


class Replaying:
    """One replay.

    Args:
        run: counts.
        broker: where the letters lie.
        store: says in a dry run which keys have completed meanwhile; None where there is none.
        clock: time.
        pace: how fast.
        max_replays: letters that were replayed so often before are left alone.
        reason: the reason that was asked for; then hopeless letters are meant, too.
        to_queue: where all of them go; None: each where it came from.
        editor: makes a change in each of them.
        stop: raises :class:`~celery_guardrails.dead_letters.halt.Halt` when somebody wants it to end.
    """

    def __init__(
        self,
        run: Run,
        *,
        broker: Broker,
        store: IdempotencyStore | None,
        clock: Clock,
        pace: Pace,
        max_replays: int,
        reason: str | None,
        to_queue: str | None,
        editor: Editor | None,
        stop: Callable[[], None] | None,
    ) -> None:
        self._run = run
        self._broker = broker
        self._store = store
        self._clock = clock
        self._pace = pace
        self._max_replays = max_replays
        self._reason = reason
        self._to_queue = to_queue
        self._editor = editor
        self._stop = stop
        self._admitted = False
        #: Says when the next letter may go; set before the first one.
        self.canary: Canary | None = None

    def limit(self) -> int:
        """Return how many letters may be in hand: one while each is watched."""
        return 1 if self._run.dry_run or (self.canary is not None and not self.canary.last) else self._broker.move_limit

    def ready(self) -> bool:
        """Whether the pace lets the next letter go at once."""
        return self._admitted or self._pace.ready()

    def take_up(self, step: Step) -> None:
        """Say what is to become of a letter; see :class:`~celery_guardrails.dead_letters.passes.Action`."""
        letter = step.letter
        if not self._is_meant(letter):
            return
        if not self._run.dry_run and letter.id not in self._run.sent:
            self._wait()
        self._admitted = False
        try:
            edited = Edited(letter, (), letter.key, letter.key) if self._editor is None else self._editor(letter)
        except GuardrailsConfigError as exc:
            if self._run.dry_run:
                raise
            step.work = _Replay(Edited(letter, (), letter.key, letter.key), "", refused=str(exc))  # it came in after all had been looked at
            return
        step.work = _Replay(edited, self._to_queue or letter.queue)

    def _is_meant(self, letter: DeadLetter) -> bool:
        return letter.replays < self._max_replays and not self._is_hopeless(letter)

    def _is_hopeless(self, letter: DeadLetter) -> bool:
        mended = self._editor is not None and letter.reason == "invalid" and bool(letter.task and letter.task_id)
        return letter.hopeless and not (mended or letter.id in self._run.asked or letter.reason == self._reason)

    def _wait(self) -> None:
        if not self._admitted:
            if self.canary is not None:
                self.canary.admit()
            self._pace.wait(self._stop)
            self._admitted = True
        if self._clock.now() >= self._run.hold_until:
            raise HeldTooLong

    def perform(self, steps: Sequence[Step]) -> None:
        """Send and take all of them; those sent in an earlier pass are only taken."""
        run = self._run
        if run.dry_run:
            return
        moving = []
        for step in steps:
            work: _Replay = step.work
            if work.refused:
                continue
            if self.canary is not None:
                work.proof = self.canary.proves_something(work.edited.letter)
            if step.letter.id in run.sent:
                step.outcome = _taken(self._broker, step.queued)
            else:
                moving.append(step)
        if moving:
            now = self._clock.now()
            moves = [Move(step.queued, restored(step.work.edited.letter, now=now), step.work.destination) for step in moving]
            for step, outcome in zip(moving, self._broker.move(moves), strict=True):
                step.outcome = outcome
        late = self._clock.now() >= run.hold_until
        for step in steps:
            if step.outcome is not None and step.outcome.sent:
                run.sent.pop(step.letter.id, None)
                step.again = (late or isinstance(step.outcome.error, LettersReturned)) and not step.outcome.taken
                if step.again:
                    run.sent[step.letter.id] = _in_both(step.work.destination)

    def count(self, step: Step) -> bool:
        """Count one letter; see :class:`~celery_guardrails.dead_letters.passes.Action`."""
        run, letter, work, outcome, canary = self._run, step.letter, step.work, step.outcome, self.canary
        if work is None:
            return self._skip(letter)
        if outcome is not None and outcome.taken and not outcome.sent and letter.id not in run.asked:
            return False  # somebody else has it: it is none of ours
        why = work.refused
        if outcome is not None and outcome.error is not None:
            why = f"{_in_both(work.destination)} ({_named(outcome.error)})" if outcome.sent else str(outcome.error)
        if why:
            run.fail(letter, why)
            if canary is not None and outcome is not None and not outcome.sent:
                canary.failed(why)
        if canary is not None and outcome is not None and outcome.sent:
            canary.moved(work.edited.letter, work.destination, counts=work.proof)
        run.total += 1
        if not why:
            self._done(work)
        return True

    def _skip(self, letter: DeadLetter) -> bool:
        run = self._run
        run.total += 1
        if letter.replays >= self._max_replays:
            run.skipped_max_replays += 1
        else:
            run.skipped_hopeless += 1
        return False

    def _done(self, work: _Replay) -> None:
        run, edited = self._run, work.edited
        if run.dry_run and run.already_completed is not None:
            run.already_completed = self._plus_completed(run.already_completed, edited.letter)
        run.done += 1
        run.destinations[work.destination] += 1
        run.reasons[edited.letter.reason] += 1
        if edited.changes:
            run.note(EditNote(edited.letter.id, edited.changes, edited.key, edited.new_key))

    def _plus_completed(self, known: int, letter: DeadLetter) -> int | None:
        if self._store is None or not letter.key:
            return known
        try:
            record = self._store.lookup(letter.key)
        except StoreUnavailable:
            return None
        return known + (record is not None and record.state is RecordState.COMPLETED)


class Discarding:
    """One discard.

    Args:
        run: counts.
        broker: where the letters lie.
        clock: time.
    """

    def __init__(self, run: Run, *, broker: Broker, clock: Clock) -> None:
        self._run = run
        self._broker = broker
        self._clock = clock

    def limit(self) -> int:
        """Return 1: what was removed is told before the next one is."""
        return 1

    def ready(self) -> bool:
        """Return True: nothing sets its pace."""
        return True

    def take_up(self, step: Step) -> None:
        """Say that the letter is to go."""
        step.work = True

    def perform(self, steps: Sequence[Step]) -> None:
        """Take them out."""
        for step in steps:
            if not self._run.dry_run:
                step.outcome = _taken(self._broker, step.queued)
                late = self._clock.now() >= self._run.hold_until or isinstance(step.outcome.error, LettersReturned)
                step.again = late and not step.outcome.taken

    def count(self, step: Step) -> bool:
        """Count one letter."""
        if step.outcome is not None and step.outcome.error is not None:
            self._run.fail(step.letter, f"it is still in the dead letter queue ({_named(step.outcome.error)})")
        else:
            self._run.done += 1
        self._run.total += 1
        return True


@dataclass
class _Replay:
    """What is to become of a letter: how it is published, and where, or why it cannot be; whether a canary learns from it."""

    edited: Edited
    destination: str
    refused: str = ""
    proof: bool = False


def _taken(broker: Broker, queued: QueuedLetter) -> Moved:
    """Take a letter out that needs not be sent."""
    try:
        broker.take(queued)
    except Exception as exc:  # noqa: BLE001 - the broker's library raises what it likes; the letter is told by name
        return Moved(True, False, exc)
    return Moved(True, True)


def _in_both(destination: str) -> str:
    return f"it is in {destination!r} now, and in the dead letter queue still; its key keeps it from running twice"


def _named(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"


def stop_when(asked: Callable[[], bool] | None) -> Callable[[], None] | None:
    """Return what raises :class:`~celery_guardrails.dead_letters.halt.Halt` once somebody has asked for the end."""
    if asked is None:
        return None

    def stop() -> None:
        if asked():
            raise Halt("interrupted")

    return stop
