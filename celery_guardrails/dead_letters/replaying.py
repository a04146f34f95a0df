"""What a replay does with one letter after another."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import GuardrailsConfigError, PublishFailed, StoreUnavailable
from ..policy.lease import RecordState
from ..ports import Broker, Clock, IdempotencyStore, QueuedLetter
from .canary import Canary
from .edit import Edited, Editor
from .halt import Halt, HeldTooLong
from .letter import DeadLetter
from .pace import Pace
from .reports import EditNote
from .restore import restored
from .tally import Run

__all__ = ["Replaying", "stop_when", "take_out"]


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

    def step(self, queued: QueuedLetter, letter: DeadLetter) -> bool:
        """Deal with a letter; whether it counts against the limit.

        Raises:
            GuardrailsConfigError: in a dry run, a letter that the change does not fit.
            Halt: this letter and those behind it are to be left where they are.
            HeldTooLong: the queue is to be looked through again, from this letter on.
        """
        if not self._is_meant(letter):
            return False
        destination = self._to_queue or letter.queue
        if self._run.dry_run:
            edited = self._edit(letter)
            if self._run.already_completed is not None:
                self._run.already_completed = self._plus_completed(self._run.already_completed, edited.letter)
            self._count(edited, destination)
            return True
        self._wait()
        self._admitted = False
        try:
            edited = self._edit(letter)
        except GuardrailsConfigError as exc:  # it came in after all had been looked at
            self._run.fail(letter, str(exc))
            return True
        self._move(queued, edited, destination)
        return True

    def _is_meant(self, letter: DeadLetter) -> bool:
        run = self._run
        if letter.replays >= self._max_replays:
            run.skipped_max_replays += 1
            return False
        mended = self._editor is not None and letter.reason == "invalid" and bool(letter.task and letter.task_id)
        if letter.hopeless and not (mended or letter.id in run.asked or letter.reason == self._reason):
            run.skipped_hopeless += 1
            return False
        return True

    def _wait(self) -> None:
        if not self._admitted:
            if self.canary is not None:
                self.canary.admit()
            self._pace.wait(self._stop)
            self._admitted = True
        if self._clock.now() >= self._run.hold_until:
            raise HeldTooLong

    def _edit(self, letter: DeadLetter) -> Edited:
        return Edited(letter, (), letter.key, letter.key) if self._editor is None else self._editor(letter)

    def _move(self, queued: QueuedLetter, edited: Edited, destination: str) -> None:
        run, letter, canary = self._run, edited.letter, self.canary
        counts = canary is not None and canary.proves_something(letter)
        if letter.id not in run.sent:
            try:
                self._broker.send(restored(letter, now=self._clock.now()), destination)
            except PublishFailed as exc:
                run.fail(letter, str(exc))
                if canary is not None:
                    canary.failed(str(exc))
                return
            run.sent[letter.id] = f"it is in {destination!r} now, and in the dead letter queue still; its key keeps it from running twice"
        taken = take_out(self._broker, self._clock, queued, letter, run, run.sent[letter.id])
        del run.sent[letter.id]
        if canary is not None:
            canary.moved(letter, destination, counts=counts)
        if taken:
            self._count(edited, destination)

    def _count(self, edited: Edited, destination: str) -> None:
        self._run.done += 1
        self._run.destinations[destination] += 1
        self._run.reasons[edited.letter.reason] += 1
        if edited.changes:
            self._run.note(EditNote(edited.letter.id, edited.changes, edited.key, edited.new_key))

    def _plus_completed(self, known: int, letter: DeadLetter) -> int | None:
        if self._store is None or not letter.key:
            return known
        try:
            record = self._store.lookup(letter.key)
        except StoreUnavailable:
            return None
        return known + (record is not None and record.state is RecordState.COMPLETED)


def take_out(broker: Broker, clock: Clock, queued: QueuedLetter, letter: DeadLetter, run: Run, left: str) -> bool:
    """Take a letter out of its dead letter queue; whether that worked, else it is counted with what is ``left``.

    Raises:
        HeldTooLong: it did not, and the broker may have taken it back: the process had been stopped for so long.
    """
    try:
        broker.take(queued)
    except Exception as exc:  # the broker's library raises what it likes; the letter is told by name
        if clock.now() >= run.hold_until:
            raise HeldTooLong from exc
        run.fail(letter, f"{left} ({type(exc).__name__}: {exc})")
        return False
    return True


def stop_when(asked: Callable[[], bool] | None) -> Callable[[], None] | None:
    """Return what raises :class:`~celery_guardrails.dead_letters.halt.Halt` once somebody has asked for the end."""
    if asked is None:
        return None

    def stop() -> None:
        if asked():
            raise Halt("interrupted")

    return stop
