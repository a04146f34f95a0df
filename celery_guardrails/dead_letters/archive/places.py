"""The dead letter queues and the archive as one broker, so that whatever works on the one works on both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import DeadLetterError
from ...policy.deadletter import DeathCertificate
from ...policy.delivery import RawMessage
from ...ports import Broker, Move, Moved, QueuedLetter
from ..browsing import closed_after
from ..filters import Filter
from ..letter import read_letter
from .archive import Archive
from .rows import message_of
from .table import Selection, State

__all__ = ["Places"]


_MOVED = "it no longer waits in the archive: somebody else has replayed or discarded it, or has begun to, in stages"


@dataclass(frozen=True)
class _Archived:
    """Handle of a letter in the archive."""

    pk: int


class Places(Broker):
    """A dead letter queue holds what was archived from it, and behind that what lies in the broker.

    A letter of which nobody knows whether it was taken out of the broker, since the archiving run was killed, is the archive's: its
    copy in the queue is not shown.

    Args:
        broker: has the queues; its task queues are the only ones.
        archive: has the other letters.
        where: only these letters of the archive; of the broker's all are handed out. Queue and limit are not looked at.
        ids: likewise.
        state: of the letters of the archive; None for all.
        queued: the broker's letters, too.
        archived: the archive's letters, too.
        free: of these only those that may be moved.
        template: ``guardrails_dead_letter_queue``.
    """

    def __init__(
        self,
        broker: Broker,
        archive: Archive,
        *,
        where: Filter = Filter(),  # noqa: B008 - frozen
        ids: Iterable[str] = (),
        state: str | None = State.WAITING,
        queued: bool = True,
        archived: bool = True,
        free: bool = False,
        template: str = "{queue}.dead",
    ) -> None:
        self._broker = broker
        self._archive = archive
        self._table = archive.table
        self._where = replace(where, queue=None, limit=None)
        self._ids = tuple(ids)
        self._state = state
        self._queued = queued
        self._archived = archived
        self._free = free
        self._template = template

    # -- where --------------------------------------------------------------------------------------------------

    def queues(self) -> Mapping[str, str]:
        """Return the task queues of the app and those that letters were archived from, with their dead letter queues."""
        known = dict(self._broker.queues())
        if self._archived:
            rows = self._rows(None)
            for dead_letter_queue in sorted(set(self._table.queues(rows, "dead_letter_queue")) - set(known.values())):
                known.setdefault(self._queue_of(dead_letter_queue), dead_letter_queue)
        return known

    def _queue_of(self, dead_letter_queue: str) -> str:
        before, _, after = self._template.partition("{queue}")
        fits = dead_letter_queue.startswith(before) and dead_letter_queue.endswith(after)
        return dead_letter_queue[len(before) : len(dead_letter_queue) - len(after)] if fits else dead_letter_queue

    def _rows(self, dead_letter_queue: str | None) -> Selection:
        rows = self._table.select(self._where, ids=self._ids, state=self._state, dead_letter_queue=dead_letter_queue)
        return self._table.free(rows) if self._free else rows

    def depth(self, queue: str) -> int:
        """Return how many letters lie in both places."""
        found = self._broker.depth(queue) if self._queued else 0
        return found + (self._table.count(self._rows(queue)) if self._archived else 0)

    def exists(self, queue: str) -> bool:
        """See the port."""
        return self._broker.exists(queue)

    def browse(self, queue: str, *, ahead: bool = True) -> Iterator[QueuedLetter]:
        """Yield the letters of the archive, the ones archived first first, and then the broker's."""
        if self._archived:
            yield from self._browse_archive(queue)
        if self._queued:
            uncertain = frozenset(self._table.uncertain(queue))
            with closed_after(self._broker.browse(queue, ahead=ahead)) as found:
                for queued in found:
                    if not (uncertain and self._is_one_of(uncertain, queued, queue)):
                        yield queued

    def _browse_archive(self, queue: str) -> Iterator[QueuedLetter]:
        for row in self._archive.each(self._rows(queue)):
            yield QueuedLetter(message_of(row), _Archived(row.pk), (row.letter_id, row.state))

    def _is_one_of(self, uncertain: frozenset[str], queued: QueuedLetter, dead_letter_queue: str) -> bool:
        queue = self._queue_of(dead_letter_queue)
        return read_letter(queued.message, queue=queue, dead_letter_queue=dead_letter_queue, decoder=self._archive.decoder).id in uncertain

    # -- moving -------------------------------------------------------------------------------------------------

    @property
    def move_limit(self) -> int:  # type: ignore[override]
        """See the port."""
        return self._broker.move_limit

    def move(self, moves: Sequence[Move]) -> list[Moved]:
        """Publish messages and take their letters; one of the archive is marked as replayed in the transaction that it is published in."""
        queued = [move for move in moves if not isinstance(move.letter.handle, _Archived)]
        moved = iter(self._broker.move(queued) if queued else ())
        return [self._move(move, move.letter.handle.pk) if isinstance(move.letter.handle, _Archived) else next(moved) for move in moves]

    def _move(self, move: Move, pk: int) -> Moved:
        sent = False
        try:
            with self._table.atomic():
                if not self._table.mark(pk, old=State.WAITING, new=State.REPLAYED, now=self._archive.clock.now()):
                    return Moved(False, True, DeadLetterError(_MOVED))
                self._broker.send(move.message, move.queue)
                sent = True
        except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; the letter is told by name
            return Moved(sent, False, exc)
        return Moved(True, True)

    def take(self, letter: QueuedLetter) -> None:
        """Take a letter out of the broker.

        Raises:
            DeadLetterError: it is gone already, or it is one of the archive, where letters are marked and never taken.
        """
        if isinstance(letter.handle, _Archived):
            raise DeadLetterError("a letter of the archive stays there: it was not sent")
        self._broker.take(letter)

    # -- the broker's own -----------------------------------------------------------------------------------------

    def send(self, message: RawMessage, queue: str) -> None:
        """See the port."""
        self._broker.send(message, queue)

    def delay(self, message: RawMessage, queue: str, seconds: float) -> None:
        """See the port."""
        self._broker.delay(message, queue, seconds)

    def dead_letter(self, message: RawMessage, queue: str, certificate: DeathCertificate) -> None:
        """See the port."""
        self._broker.dead_letter(message, queue, certificate)

    def restore_letter(self, message: RawMessage, queue: str) -> None:
        """See the port."""
        self._broker.restore_letter(message, queue)

    def close(self) -> None:
        """Nothing: neither is ours."""
