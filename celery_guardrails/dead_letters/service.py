"""List, group, show, replay and discard dead letters: the one service behind every command."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from ..config import Settings
from ..errors import DeadLetterError, GuardrailsConfigError
from ..policy.lease import Record
from ..ports import Broker, Clock, IdempotencyStore, QueuedLetter
from .browsing import closed_after
from .canary import Canary
from .decoder import Decoder, KombuDecoder
from .edit import Edit, Editor
from .exchange import Export, Import, ImportReport
from .filters import Filter
from .halt import Halt
from .letter import DeadLetter, read_letter
from .pace import Pace
from .passes import Action, Passes
from .redaction import Redactor, hide_secrets
from .replaying import Discarding, Replaying, stop_when
from .reports import DiscardReport, Group, OnProgress, ReplayReport
from .tally import Gathering, Names, Run
from .tasks import Tasks, names_of, no_tasks, tasks_of

__all__ = ["DeadLetters"]


class DeadLetters:
    """Looks after the dead letter queues of one app.

    It keeps nothing of its own: the queues are the truth, so any number of these may work side by side.

    Args:
        broker: where the letters lie.
        store: says in a dry run which keys have completed meanwhile; None where there is none.
        settings: of the app (``dead_letter_queue`` names the queues of task queues that the app does not know).
        clock: time.
        decoder: reads arguments, see :class:`~celery_guardrails.dead_letters.KombuDecoder`.
        redact: what of the arguments may be shown.
        tasks: finds what the app knows of a task, for edits.
    """

    def __init__(
        self,
        broker: Broker,
        store: IdempotencyStore | None,
        *,
        settings: Settings,
        clock: Clock,
        decoder: Decoder,
        redact: Redactor = hide_secrets,
        tasks: Tasks = no_tasks,
    ) -> None:
        self._broker = broker
        self._store = store
        self._settings = settings
        self._clock = clock
        self._decoder = decoder
        self._redact = redact
        self._tasks = tasks
        #: What a canary watches.
        self._watched = self
        self._names = names_of(tasks)

    @classmethod
    def for_app(
        cls,
        app: Any,
        *,
        broker: Broker,
        store: IdempotencyStore | None,
        settings: Settings,
        clock: Clock,
        redact: Redactor = hide_secrets,
    ) -> DeadLetters:
        """Return the service for a Celery app, which reads what the app's ``accept_content`` lets its workers read."""
        decoder = KombuDecoder(app.conf.accept_content)
        return cls(broker, store, settings=settings, clock=clock, decoder=decoder, redact=redact, tasks=tasks_of(app))

    def over(self, broker: Broker, *, whole: Broker) -> DeadLetters:
        """Return this service over letters in other places.

        Args:
            broker: has them.
            whole: has those as well that a canary must see when it watches.
        """
        found, watched = copy(self), copy(self)
        found._broker, watched._broker, found._watched = broker, whole, watched
        return found

    # -- looking ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return unix time in seconds by this service's clock, from which times ago are counted."""
        return self._clock.now()

    def queues(self, name: str | None = None) -> Mapping[str, str]:
        """Return the task queues with their dead letter queues.

        Args:
            name: only this task queue, or the one that this dead letter queue belongs to. It need not be known to
                the app: a worker may have been started with ``-Q`` for it.
        """
        known = dict(self._broker.queues())
        if name is None:
            return known
        for queue, dead_letter_queue in known.items():
            if name in (queue, dead_letter_queue):
                return {queue: dead_letter_queue}
        return {name: self._settings.dead_letter_queue.replace("{queue}", name)}

    def count(self, where: Filter = Filter()) -> int:  # noqa: B008 - a Filter is frozen
        """Return how many letters lie in the queues that the filter names, whether they match or not."""
        return sum(self._broker.depth(dead_letter_queue) for dead_letter_queue in self.queues(where.queue).values())

    def list(self, where: Filter = Filter()) -> Generator[DeadLetter, None, None]:  # noqa: B008 - a Filter is frozen
        """Yield the letters that match, queue by queue, the oldest first; nothing is moved.

        The letters of a queue may be out of other operators' sight until the iterator is exhausted or closed.
        """
        with closing(self._all(where.queue)) as letters:
            yield from islice(filter(where.matches, letters), where.limit)

    def groups(self, where: Filter = Filter()) -> Sequence[Group]:  # noqa: B008 - a Filter is frozen
        """Return the letters that match in groups of one reason and one error, the largest group first."""
        found: dict[tuple[str, str, str], Gathering] = {}
        for letter in self._all(where.queue):
            if where.matches(letter):
                certificate = letter.certificate
                name = (letter.reason, certificate.error, certificate.fingerprint)
                found.setdefault(name, Gathering(letter)).add(letter)
        groups = sorted((gathering.group() for gathering in found.values()), key=lambda group: (-group.count, group.reason, group.error))
        return groups[: where.limit]

    def show(self, identifier: str) -> DeadLetter:
        """Return one letter.

        Args:
            identifier: of the letter, or the whole task id.

        Raises:
            DeadLetterError: there is no such letter.
        """
        with closing(self._all(None)) as letters:
            for letter in letters:
                if identifier in (letter.id, letter.task_id):
                    return letter
        raise DeadLetterError(
            f"there is no dead letter {identifier!r} in {', '.join(self.queues().values())}; it may have been replayed or discarded, "
            "and identifiers and task ids are given whole"
        )

    # -- moving -----------------------------------------------------------------------------------------------

    def replay(
        self,
        where: Filter = Filter(),  # noqa: B008 - a Filter is frozen
        *,
        ids: Iterable[str] = (),
        dry_run: bool = False,
        rate: float | None = None,
        to_queue: str | None = None,
        max_replays: int = 3,
        on_progress: OnProgress | None = None,
        canary: bool = False,
        canary_wait: float = 30.0,
        edit: Edit | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> ReplayReport:
        """Put letters back into their task queues, with their task id and key, and a fresh count of attempts.

        Each is published with a confirm and only then taken out of the dead letter queue: a crash in between repeats
        it, and never loses it (on Redis it is one step, and nothing is repeated). They go by the hundred, but one at a time as
        canaries and where ``rate`` wants it. A letter that dies again while this runs is left for the next time.

        Args:
            where: which letters.
            ids: only these, by identifier or whole task id (they must match ``where`` as well).
            dry_run: move nothing, only count.
            rate: letters a second, evenly spaced; None for as fast as it goes.
            to_queue: put them all into this task queue, which the app must know or somebody must have declared.
            max_replays: leave letters alone that have been replayed so often before.
            on_progress: called after each letter.
            canary: in stages, one letter, one in a hundred, all, each watched before the next, see
                :class:`~celery_guardrails.dead_letters.canary.Canary`; the report says where it stopped and why.
            canary_wait: seconds that a stage is watched at most.
            edit: other arguments. All chosen letters are checked before the first is moved; key and fingerprint are made
                anew where the key is made from arguments; what was changed travels with the message.
            should_stop: asked between letters and while waiting; True ends it there, and the report says "interrupted".

        Raises:
            GuardrailsConfigError: an option is wrong, or a chosen letter cannot be edited so; nothing was moved.
        """
        if isinstance(max_replays, bool) or not isinstance(max_replays, int) or max_replays < 1:
            raise GuardrailsConfigError(f"--max-replays {max_replays!r}: a whole number of at least 1 is allowed")
        if to_queue is not None and (not to_queue or to_queue in self.queues().values()):
            raise GuardrailsConfigError(f"--to-queue {to_queue!r}: a task queue is allowed, not a dead letter queue")
        if to_queue is not None and to_queue not in self.queues() and not self._broker.exists(to_queue):
            known = ", ".join(self.queues())
            raise GuardrailsConfigError(
                f"--to-queue {to_queue!r}: there is no such queue, so nobody would take the letters out of it (the app has {known}); "
                f"start a worker with -Q {to_queue} first, or name it in task_queues"
            )
        if isinstance(canary_wait, bool) or not isinstance(canary_wait, (int, float)) or not 0 < canary_wait < float("inf"):
            raise GuardrailsConfigError(f"--canary-wait {canary_wait!r}: a number of seconds above 0 is allowed")
        pace, stop, ids = Pace(self._clock, rate), stop_when(should_stop), tuple(ids)
        editor = None if edit is None else Editor(edit, tasks=self._tasks, decoder=self._decoder, redact=self._redact, store=self._store)

        def replaying(run: Run) -> Replaying:
            return Replaying(
                run,
                broker=self._broker,
                store=self._store,
                clock=self._clock,
                pace=pace,
                max_replays=max_replays,
                reason=where.reason,
                to_queue=to_queue,
                editor=editor,
                stop=stop,
            )

        run = Run(dry_run=dry_run, on_progress=on_progress, already_completed=0 if dry_run and self._store else None)
        job = replaying(run)
        if (canary or editor) and not dry_run:
            plan = Run(dry_run=True)  # all are looked at before the first is moved
            self._go(where, ids, plan, replaying(plan), stop)
            if plan.stopped:
                run.stopped = plan.stopped
                return run.replay_report()
            if canary:
                job.canary = Canary(plan.done, canary_wait, _Watch(self._watched), clock=self._clock, stop=stop)
        self._go(where, ids, run, job, stop, ahead=not canary)  # what is held ahead no canary sees die
        if job.canary is None:
            return run.replay_report()
        if not run.stopped:
            try:
                job.canary.finish()
            except Halt as exc:
                run.stopped = str(exc)
        return run.replay_report(job.canary.report())

    def discard(
        self,
        where: Filter = Filter(),  # noqa: B008 - a Filter is frozen
        *,
        ids: Iterable[str] = (),
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> DiscardReport:
        """Remove letters for good.

        Args:
            where: which letters.
            ids: only these, by identifier or whole task id (they must match ``where`` as well).
            dry_run: move nothing, only count.
            on_progress: called after each letter.
            should_stop: asked between letters; True ends it there, and the report says "interrupted".
        """
        run = Run(dry_run=dry_run, on_progress=on_progress)
        self._go(where, ids, run, Discarding(run, broker=self._broker, clock=self._clock), stop_when(should_stop))
        return run.discard_report()

    def export(
        self,
        where: Filter = Filter(),  # noqa: B008 - a Filter is frozen
        *,
        ids: Iterable[str] = (),
    ) -> Export:
        """Return an iterator over letters as lines of JSON, byte for byte; nothing is moved.

        Args:
            where: which letters.
            ids: only these, by identifier or whole task id (they must match ``where`` as well).
        """
        return Export(self._browse, self.queues(where.queue), where, ids)

    def import_(
        self, lines: Iterable[bytes | str], *, queue: str | None = None, dry_run: bool = False, again: bool = False
    ) -> ImportReport:
        """Put letters of an export into the dead letter queues of their queues, each with a confirm.

        Letters that lie there already are skipped, so an import that was interrupted is just run again. A line that cannot
        be read is told by its number, and the rest goes on.

        Args:
            lines: of :meth:`export`; read one at a time.
            queue: put them all into the dead letter queue of this task queue.
            dry_run: put nothing there, only count.
            again: also those that lie there already.

        Raises:
            GuardrailsConfigError: none of the lines is a dead letter: it is another file.
        """
        return Import(self._broker, self.queues, queue=queue, dry_run=dry_run, again=again).run(lines)

    # -- how --------------------------------------------------------------------------------------------------

    def _all(self, queue: str | None) -> Generator[DeadLetter, None, None]:
        for source, dead_letter_queue in self.queues(queue).items():
            with closing(self._browse(source, dead_letter_queue, None)) as letters:
                for _, letter in letters:
                    yield letter

    def _browse(
        self, queue: str, dead_letter_queue: str, bound: int | None, *, ahead: bool = True
    ) -> Generator[tuple[QueuedLetter, DeadLetter], None, None]:
        names = Names()
        with closed_after(self._broker.browse(dead_letter_queue, ahead=ahead)) as found:
            for queued in islice(found, bound):
                letter = read_letter(
                    queued.message,
                    queue=queue,
                    dead_letter_queue=dead_letter_queue,
                    decoder=self._decoder,
                    redact=self._redact,
                    names=self._names,
                )
                unique = names.unique(letter.id if queued.archived is None else queued.archived[0])
                if queued.archived is not None:
                    letter = replace(letter, place="archive", state=queued.archived[1])
                yield queued, letter if unique == letter.id else replace(letter, id=unique)

    def _go(
        self, where: Filter, ids: Iterable[str], run: Run, action: Action, stop: Callable[[], None] | None, *, ahead: bool = True
    ) -> None:
        passes = Passes(run, action, where, browse=partial(self._browse, ahead=ahead), clock=self._clock, stop=stop)
        passes.through(self._broker, self.queues(where.queue), ids)


class _Watch:
    """What a canary sees of a service's queues and records."""

    def __init__(self, service: DeadLetters) -> None:
        self._service = service

    def depth(self, queues: Iterable[str]) -> int:
        return sum(self._service.count(Filter(queue=queue)) for queue in queues)

    def letters(self, queues: Iterable[str]) -> Iterator[DeadLetter]:
        for queue in queues:
            yield from self._service.list(Filter(queue=queue))

    def lookup(self, key: str) -> Record | None:
        return None if self._service._store is None else self._service._store.lookup(key)
