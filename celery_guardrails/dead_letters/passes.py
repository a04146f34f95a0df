"""Goes through dead letter queues and deals with the chosen letters, many at a time where nothing is to be watched in between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from ..errors import GuardrailsConfigError, LettersReturned
from ..ports import Broker, Clock, Moved, QueuedLetter
from .filters import Filter
from .halt import Halt, HeldTooLong
from .letter import DeadLetter
from .tally import Run

__all__ = ["Action", "Passes", "Step"]

#: Seconds that a replay or a discard holds the letters of a queue before it lets go and looks again.
PASS_SECONDS = 300.0
#: Bytes of bodies in hand after which they are dealt with, however few letters they are.
_HANDFUL = 1_000_000

#: Yields the first letters of a dead letter queue (task queue, dead letter queue, how many).
Browse = Callable[[str, str, int], Generator[tuple[QueuedLetter, DeadLetter], None, None]]


@dataclass
class Step:
    """What is to be done with one letter.

    Args:
        queued: in hand.
        letter: what it says.
        chosen: whether it is one of those that are meant; the others are only passed by.
        work: what the action has in mind with it; None: it stays where it is.
        outcome: what has become of it; None where nothing was done.
        again: it was sent and could not be taken, for the broker had taken it back: the next pass finds it once more.
    """

    queued: QueuedLetter
    letter: DeadLetter
    chosen: bool = True
    work: Any = None
    outcome: Moved | None = None
    again: bool = False

    @property
    def stays(self) -> bool:
        """Whether the letter is in its queue still."""
        return self.outcome is None or not self.outcome.taken


class Action(Protocol):
    """What is done with the chosen letters."""

    def limit(self) -> int:
        """Return how many letters may be in hand before something is done with them."""

    def ready(self) -> bool:
        """Whether the next letter may be taken in hand without a wait."""

    def take_up(self, step: Step) -> None:
        """Say in ``step.work`` what is to be done with a letter; may wait.

        Raises:
            GuardrailsConfigError: in a dry run, a letter that an option does not fit.
            Halt: this letter and those behind it are to be left where they are.
            HeldTooLong: the queue is to be looked through again, from the letters in hand on.
        """

    def perform(self, steps: Sequence[Step]) -> None:
        """Do it, and say in each step's ``outcome`` what came of it."""

    def count(self, step: Step) -> bool:
        """Count one letter that was dealt with; whether it counts against the limit.

        Raises:
            Halt: those behind it are to be left where they are.
        """


class Passes:
    """One replay or discard on its way through the queues.

    Args:
        run: counts.
        action: what is done.
        where: which letters.
        browse: yields letters.
        clock: time.
        stop: raises :class:`~celery_guardrails.dead_letters.halt.Halt` when somebody wants it to end.
    """

    def __init__(self, run: Run, action: Action, where: Filter, *, browse: Browse, clock: Clock, stop: Callable[[], None] | None) -> None:
        self._run = run
        self._action = action
        self._where = where
        self._browse = browse
        self._clock = clock
        self._stop = stop
        self._hand: list[Step] = []
        self._working = 0
        self._weight = 0
        #: Letters of the queue that are still to come, and those that were left at its head.
        self._bound = 0
        self._left = 0

    def through(self, broker: Broker, queues: Mapping[str, str], ids: Iterable[str]) -> None:
        """Deal with all chosen letters of these task queues, given with their dead letter queues.

        Never looks further than the queues were deep at the start: what comes in behind, such as the letters that a
        replay makes die again, is not of this run.

        Raises:
            GuardrailsConfigError: in a dry run, a letter that an option does not fit.
        """
        run = self._run
        run.ask(ids)
        bounds = {queue: (dead, broker.depth(dead)) for queue, dead in queues.items()}
        run.depth = sum(bound for _, bound in bounds.values())
        try:
            for queue, (dead_letter_queue, bound) in bounds.items():
                if self._queue(queue, dead_letter_queue, bound):
                    return
        except GuardrailsConfigError:  # of a plan: nothing was moved
            raise
        except Halt as exc:
            run.stopped = str(exc)
        except Exception as exc:  # noqa: BLE001 - the broker's library raises what it likes; what has been done must be told
            run.stopped = f"{type(exc).__name__}: {exc}"
        finally:
            run.give_up_sent()

    def _queue(self, queue: str, dead_letter_queue: str, bound: int) -> bool:
        """Deal with the first ``bound`` letters of a queue; whether that is enough and no other queue is to be looked at.

        A slow replay takes several passes: RabbitMQ closes a channel that holds messages longer than its
        ``consumer_timeout`` (half an hour by default), and what is held no other operator can see. What a pass has
        left in the queue comes first in the next one, and is passed over there by its number. A process that was
        stopped for so long and continues (SIGTSTP, SIGCONT) begins a new pass, too: the channel of the last may be closed.
        """
        self._bound, self._left = bound, 0
        while self._bound > 0:
            self._run.hold_until = float("inf")
            before = (self._bound, len(self._run.sent))
            self._run.found_letters -= {step.letter.id for step in self._drop()}
            try:
                enough = self._pass(queue, dead_letter_queue)
            except HeldTooLong:
                continue
            except (GuardrailsConfigError, Halt):
                raise
            except LettersReturned:
                if before == (self._bound, len(self._run.sent)):  # not even one letter a pass
                    raise
            except Exception:
                if self._clock.now() < self._run.hold_until:
                    raise
            else:
                if enough is not None:
                    return enough
        return False

    def _pass(self, queue: str, dead_letter_queue: str) -> bool | None:
        """Go on with a queue; whether that is enough, or None where another pass is needed."""
        with closing(self._browse(queue, dead_letter_queue, self._left + self._bound)) as letters:
            for queued, letter in islice(letters, self._left, None):
                now = self._clock.now()
                if self._run.hold_until == float("inf"):
                    self._run.hold_until = now + PASS_SECONDS
                elif now >= self._run.hold_until:
                    return None
                if self._look(queued, letter):
                    return True
        if self._hand:
            # Fewer came than were there at the start, for others have taken some, and the broker has what is in hand back by now.
            self._bound = len(self._hand)
            return None
        return False

    def _look(self, queued: QueuedLetter, letter: DeadLetter) -> bool:
        """Take a letter in hand and deal with all that are there, if it is time; whether that is enough."""
        if self._stop is not None:
            self._stop()
        run, action = self._run, self._action
        step = Step(queued, letter, self._where.matches(letter) and (not run.asked or run.is_asked(letter)))
        if step.chosen and self._working and not action.ready():
            self._settle()  # what is in hand does not wait for what may not go yet
        self._hand.append(step)
        self._weight += letter.size
        if step.chosen:
            action.take_up(step)
        self._working += step.work is not None
        full = self._working >= action.limit() or self._weight >= _HANDFUL or len(self._hand) >= 2 * action.limit()
        last = len(self._hand) == self._bound or run.all_found or run.acted + self._working == self._where.limit
        if full or last or not self._working:
            self._settle()
        return not self._hand and (run.acted == self._where.limit or run.all_found)

    def _drop(self) -> list[Step]:
        """Return what is in hand, and let go of it."""
        steps, self._hand, self._working, self._weight = self._hand, [], 0, 0
        return steps

    def _settle(self) -> None:
        """Deal with what is in hand, and count it in the order of the queue.

        Raises:
            HeldTooLong: some of it is to be looked for again.
        """
        steps = self._drop()
        run = self._run
        working = [step for step in steps if step.work is not None]
        if working:
            self._action.perform(working)
        again = False
        for step in steps:
            again |= step.again
            if again and step.stays:  # it comes again, and is counted then
                run.found_letters.discard(step.letter.id)
                continue
            self._count(step)
        if again:
            raise HeldTooLong

    def _count(self, step: Step) -> None:
        run = self._run
        if step.chosen:
            run.acted += self._action.count(step)
        run.looked_at += 1
        self._bound -= 1
        self._left += step.stays
        run.progress()
