"""Dead letters carried from one place to another: out of the queues into lines of JSON, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from ..errors import DeadLetterError, GuardrailsConfigError, PublishFailed
from ..ports import Broker, QueuedLetter
from .filters import Filter
from .letter import DeadLetter, digest_of
from .letter_format import PackedLetter, pack, unpack
from .reports import FAILURES_KEPT, Failure
from .tally import Run

__all__ = ["Export", "Import", "ImportReport"]

#: Lines without a single letter among them that it takes to say that this is another file.
_UNREADABLE = 20
#: Letters refused by the broker one after another that it takes to say that the others would be, too.
_REFUSED = 10

#: Yields the letters of a task queue's dead letter queue.
Browse = Callable[[str, str, "int | None"], Generator[tuple[QueuedLetter, DeadLetter], None, None]]


class Export(Iterator[str]):
    """The lines of an export, without their ends; one letter at a time in memory.

    The letters of a queue may be out of other operators' sight until it is exhausted or closed.

    Args:
        browse: yields letters.
        queues: task queues with their dead letter queues.
        where: which letters.
        ids: only these.
    """

    def __init__(self, browse: Browse, queues: Mapping[str, str], where: Filter, ids: Iterable[str]) -> None:
        self._browse = browse
        self._queues = queues
        self._where = where
        self._run = Run(dry_run=True)
        self._asked = self._run.ask(ids)
        self._lines = self._generate()

    def __next__(self) -> str:
        return next(self._lines)

    def close(self) -> None:
        """Let go of the queue that is being looked through."""
        self._lines.close()

    @property
    def count(self) -> int:
        """Letters exported so far."""
        return self._run.done

    @property
    def failed(self) -> int:
        """Letters that the format cannot hold."""
        return self._run.failed

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The first of them, and why."""
        return tuple(self._run.failures)

    @property
    def missing(self) -> tuple[str, ...]:
        """Identifiers that were asked for and not found, known at the end."""
        return tuple(sorted(self._run.asked - self._run.found))

    def _generate(self) -> Generator[str, None, None]:
        run, where = self._run, self._where
        for queue, dead_letter_queue in self._queues.items():
            with closing(self._browse(queue, dead_letter_queue, None)) as letters:
                for queued, letter in letters:
                    if where.matches(letter) and (not self._asked or run.is_asked(letter)):
                        try:
                            line = pack(queued.message, identifier=letter.id, queue=queue)
                        except (DeadLetterError, RecursionError, ValueError) as exc:
                            run.fail(letter, str(exc))
                        else:
                            run.done += 1
                            yield line
                    if run.done == where.limit or run.all_found:
                        return


@dataclass(frozen=True)
class ImportReport:
    """What became of the lines of an import.

    Args:
        total: lines, blank ones left out.
        imported: letters put into a dead letter queue (would be, in a dry run).
        skipped: letters that lay there already.
        failed: lines that could not be read, and letters that the broker refused.
        failures: the first of them; ``id`` says the number of the line.
        destinations: letters put into each dead letter queue.
        stopped: why it ended before the last line, or "".
        dry_run: nothing was touched.
    """

    total: int = 0
    imported: int = 0
    skipped: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    destinations: Mapping[str, int] = field(default_factory=dict)
    stopped: str = ""
    dry_run: bool = False

    @property
    def clean(self) -> bool:
        """Whether every line was a letter that is where it belongs now."""
        return not (self.failed or self.stopped)


class Import:
    """One import.

    Of each letter that lies in a queue already, and of each line, it keeps a number: about 100 bytes.

    Args:
        broker: takes the letters.
        queues: returns a task queue with its dead letter queue, by the name of either.
        queue: see :meth:`~celery_guardrails.dead_letters.DeadLetters.import_`, as for the others.
        dry_run: put nothing there.
        again: also what lies there already.
    """

    def __init__(
        self, broker: Broker, queues: Callable[[str], Mapping[str, str]], *, queue: str | None, dry_run: bool, again: bool
    ) -> None:
        self._broker = broker
        self._queues = queues
        self._queue = queue
        self._dry_run = dry_run
        self._again = again
        self._present: dict[str, Counter[int]] = {}
        self._seen: set[int] = set()
        self._total = self._skipped = self._failed = self._read = self._refused = 0
        self._failures: list[Failure] = []
        self._destinations: Counter[str] = Counter()

    def run(self, lines: Iterable[bytes | str]) -> ImportReport:
        """Import all lines."""
        stopped = ""
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            self._total += 1
            packed = self._unpacked(number, line)
            if packed is not None:
                self._read += 1
                try:
                    self._put(packed, number)
                except Exception as exc:  # noqa: BLE001 - the broker's library raises what it likes; what has been done must be told
                    stopped = f"line {number}: {type(exc).__name__}: {exc}"
                    break
            elif self._failed == _UNREADABLE and not self._read:
                break
        if self._failed and not self._read:
            raise GuardrailsConfigError(f"this is no file of `dead-letters export`: {self._failures[0].id}: {self._failures[0].why}")
        return ImportReport(
            total=self._total,
            imported=sum(self._destinations.values()),
            skipped=self._skipped,
            failed=self._failed,
            failures=tuple(self._failures),
            destinations=dict(self._destinations),
            stopped=stopped,
            dry_run=self._dry_run,
        )

    def _unpacked(self, number: int, line: bytes | str) -> PackedLetter | None:
        try:
            return unpack(line)
        except DeadLetterError as exc:
            self._fail(number, str(exc))
            return None

    def _put(self, packed: PackedLetter, number: int) -> None:
        ((queue, dead_letter_queue),) = self._queues(self._queue or packed.queue).items()
        digest = digest_of(packed.message, dead_letter_queue)
        line = hash((digest, packed.identifier))
        if not self._again and (line in self._seen or self._is_there(digest, dead_letter_queue)):
            self._seen.add(line)
            self._skipped += 1
            return
        if not self._dry_run:
            try:
                self._broker.restore_letter(packed.message, queue)
            except PublishFailed as exc:
                self._fail(number, str(exc))
                self._refused += 1
                if self._refused == _REFUSED:
                    raise DeadLetterError(f"the broker refused {_REFUSED} letters one after another") from exc
                return
        self._refused = 0
        self._seen.add(line)
        self._destinations[dead_letter_queue] += 1

    def _is_there(self, digest: str, dead_letter_queue: str) -> bool:
        """Whether the letter lies there already; of those that are the same byte for byte, each stands for one line."""
        present = self._present.get(dead_letter_queue)
        if present is None:
            present = self._present[dead_letter_queue] = Counter(
                int(digest_of(queued.message, dead_letter_queue), 16) for queued in self._broker.browse(dead_letter_queue)
            )
        name = int(digest, 16)
        if not present[name]:
            return False
        present[name] -= 1
        return True

    def _fail(self, number: int, why: str) -> None:
        self._failed += 1
        if len(self._failures) < FAILURES_KEPT:
            self._failures.append(Failure(f"line {number}", why))
