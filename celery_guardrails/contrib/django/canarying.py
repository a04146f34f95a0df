"""A replay in stages of archived letters: a row in the database that operators move on, one stage at a time.

No process waits between the stages, so none can die there. Each letter is let go in one transaction: it takes a place of its
stage in the run's row, marks the letter, and publishes. So a stage never lets go more than it may, however many operators
press at once; a process that is killed leaves a run that anybody can go on with, and repeats at most the letter in hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from django.db import transaction
from django.db.models import F, Q

from celery_guardrails.dead_letters.canary import STAGES, Stage, failing, relapse, sizes
from celery_guardrails.dead_letters.letter import HOPELESS, DeadLetter, read_letter
from celery_guardrails.dead_letters.render import letters_text
from celery_guardrails.errors import GuardrailsConfigError, PublishFailed, StoreUnavailable
from celery_guardrails.policy.lease import Record, RecordState

from .archive import Archive
from .models import ArchivedLetter, AuditEntry, CanaryRun
from .moments import moment_of, unix_of

__all__ = ["Canaries", "Look", "free"]

#: Seconds after which a stage may be left with canaries that nobody has heard of.
WATCH_SECONDS = 30.0
#: Letters that are looked through in each dead letter queue, and in the archive.
LOOKED_THROUGH = 2000
_LAST = len(STAGES) - 1
_MAX_REPLAYS = 3
_State = ArchivedLetter.State


@dataclass
class Look:
    """How a canary stands.

    Args:
        size: canaries that its stage lets go; of the last stage the letters that are left.
        sent: whether the stage has let go all that it may.
        left: letters that have not been let go yet.
        completed: canaries of this stage that have completed.
        failing: of those what is said of each that has failed and waits for its retry.
        unheard: canaries that neither have completed nor failed.
        seconds: since the last letter was let go.
        dead: why it must stop, or "".
        problem: why nobody can say how it stands, or "".
    """

    size: int = 0
    sent: bool = False
    left: int = 0
    completed: int = 0
    failing: list[str] = field(default_factory=list)
    unheard: int = 0
    seconds: float = 0.0
    dead: str = ""
    problem: str = ""

    @property
    def watching(self) -> bool:
        """Whether time will tell more."""
        return self.sent and not self.dead and bool(self.failing or (self.unheard and self.seconds < WATCH_SECONDS))

    @property
    def may_go_on(self) -> bool:
        """Whether an operator may let more go."""
        return bool(self.left) and not (self.dead or self.problem or self.watching)


class Canaries:
    """Starts, watches and moves on replays in stages.

    Args:
        archive: of the letters.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._using = archive.using
        self._runs = CanaryRun.objects.using(archive.using)

    # -- what operators do --------------------------------------------------------------------------------------

    def start(self, rows: Any, *, who: str, why: str = "", selection: str = "", seconds: float | None = None) -> tuple[CanaryRun, str]:
        """Choose letters and let the first one go; returns the run, and why that one has not gone, or "".

        Args:
            rows: query set of the letters; those that are not free (:func:`free`) are left alone.
            who: does it.
            why: for the audit trail.
            selection: the same: which letters these are.
            seconds: let no more go after so long.

        Raises:
            GuardrailsConfigError: none of them is free.
        """
        now = moment_of(self._archive.clock.now())
        with transaction.atomic(using=self._using):
            run: CanaryRun = self._runs.create(who=who[:255], why=why, selection=selection, started_at=now, changed_at=now)
            run.chosen = free(rows).order_by().update(canary=run)
            if not run.chosen:
                raise GuardrailsConfigError("none of these letters can be a canary: they do not wait any more, or are in another one")
            run.save(update_fields=["chosen"])
        return run, self._let_go(run, who=who, why=why, seconds=seconds)

    def go_on(self, run: CanaryRun, stage: int, *, who: str, seconds: float | None = None) -> str:
        """Let go what is left of a stage, or the next one where it has gone well; returns why that ended early, or "".

        Args:
            run: as it was read from the database just now.
            stage: that the operator has seen; another one means that somebody was faster.
            who: does it.
            seconds: let no more go after so long.
        """
        look = self.look(run)
        if run.state != run.State.OPEN or run.stage != stage:
            return f"somebody else was faster: it is {run.state}, at the stage {STAGES[run.stage]!r}"
        if not look.may_go_on:
            return look.dead or look.problem or "its letters are still being watched"
        if look.sent and not self._advance(run, look):
            return "somebody else was faster"
        return self._let_go(run, who=who, seconds=seconds)

    def stop(self, run: CanaryRun, *, who: str) -> bool:
        """End it, and let the letters that are left wait; whether it was open."""
        if run.state != run.State.OPEN:
            return False
        with self._audited(run, who) as entry:
            ended = self._end(run, run.State.STOPPED, f"stopped by {who}")
            entry.outcome = run.outcome
        return ended

    # -- looking ------------------------------------------------------------------------------------------------

    def look(self, run: CanaryRun) -> Look:
        """Return how it stands; one that must stop, or is over, is ended."""
        look = self._look(run)
        if run.state == run.State.OPEN and not look.problem:
            if look.dead:
                self._end(run, run.State.STOPPED, f"it stopped itself at the stage {STAGES[run.stage]!r}: {look.dead}")
            elif not look.left and not look.watching:
                self._end(run, run.State.DONE, "all letters have been replayed")
        return look

    def _look(self, run: CanaryRun) -> Look:
        left = run.letters.using(self._using).filter(state=_State.WAITING).count()
        wanted = sizes(run.chosen)[run.stage] if run.stage < _LAST else run.moved + left
        look = Look(size=min(wanted, run.counted + left) if run.stage < _LAST else wanted, left=left)
        look.sent = not left or (run.stage < _LAST and run.counted >= wanted)
        look.seconds = max(0.0, self._archive.clock.now() - (unix_of(run.changed_at) or 0.0))
        if run.state != run.State.OPEN:
            return look
        try:
            self._ask_the_store(run, look)
            look.dead = self._relapse(run)
        except StoreUnavailable as exc:
            look.problem = f"the store does not say what has become of the canaries: {exc}"
        except Exception as exc:  # noqa: BLE001 - the broker's library raises what it likes
            look.problem = f"the dead letter queues cannot be looked through: {type(exc).__name__}: {exc}"
        return look

    def birds(self, run: CanaryRun) -> Any:
        """Return the query set of the letters that are watched in its stage."""
        return run.letters.using(self._using).filter(canary_stage=run.stage).order_by("pk")

    def _ask_the_store(self, run: CanaryRun, look: Look) -> None:
        if run.stage == _LAST:
            return
        for key, task_id in self.birds(run).values_list("key", "task_id"):
            record = self._record(key)
            if record is not None and record.state is RecordState.COMPLETED:
                look.completed += 1
            elif why := failing(task_id, record):
                look.failing.append(why)
            else:
                look.unheard += 1

    def _record(self, key: str) -> Record | None:
        store = self._archive.store
        return store.lookup(key) if store is not None and key else None

    def _relapse(self, run: CanaryRun) -> str:
        watched = run.letters.using(self._using).exclude(canary_stage=None).order_by()
        birds = list(watched.values_list("task_id", "replays", "fingerprint", "queue", "dead_letter_queue")[:LOOKED_THROUGH])
        replays = {task_id: number for task_id, number, *_ in birds}
        fingerprints = {fingerprint for _, _, fingerprint, *_ in birds if fingerprint}
        since = unix_of(run.started_at) or 0.0
        for letter in self._suspects({dead: queue for *_, queue, dead in birds}, replays, fingerprints, since):
            if why := relapse(letter, replays, fingerprints, since):
                return why
        return ""

    def _suspects(
        self, queues: Mapping[str, str], replays: Mapping[str, int], fingerprints: set[str], since: float
    ) -> Iterator[DeadLetter]:
        """Yield what has died since, out of the archive and the dead letter queues."""
        archive = self._archive
        # of very many canaries some by their error only: a database takes so many values in one question
        alike = Q(fingerprint__in=fingerprints) | Q(task_id__in=list(replays)[:500])
        found = ArchivedLetter.objects.using(self._using).filter(alike, died_at__gt=moment_of(since)).order_by("-pk")
        yield from map(archive.letter, found[:LOOKED_THROUGH])
        if archive.broker is None:
            return
        for dead_letter_queue, queue in queues.items():
            browsing = archive.broker.browse(dead_letter_queue)
            try:
                for queued in islice(browsing, LOOKED_THROUGH):
                    yield read_letter(
                        queued.message, queue=queue, dead_letter_queue=dead_letter_queue, decoder=archive.decoder, redact=archive.redact
                    )
            finally:
                close = getattr(browsing, "close", None)
                if close is not None:
                    close()

    # -- letting go ---------------------------------------------------------------------------------------------

    def _advance(self, run: CanaryRun, look: Look) -> bool:
        over = Stage(STAGES[run.stage], look.size, run.moved, look.completed, 0, look.unheard, round(look.seconds, 1))
        stages = json.dumps([*json.loads(run.stages), asdict(over)])
        mine = self._runs.filter(pk=run.pk, state=run.State.OPEN, stage=run.stage)
        if not mine.update(stage=run.stage + 1, moved=0, counted=0, stages=stages):
            return False
        run.refresh_from_db()
        return True

    def _let_go(self, run: CanaryRun, *, who: str, why: str = "", seconds: float | None) -> str:
        """Let letters go until the stage has had its share, or the time is over; returns what stood in the way, or ""."""
        clock = self._archive.clock
        end = None if seconds is None else clock.now() + seconds
        waiting = run.letters.using(self._using).filter(state=_State.WAITING).order_by("pk")
        refused: list[str] = []
        last, problem = 0, ""
        with self._audited(run, who, why) as entry:
            while row := waiting.filter(pk__gt=last).first():
                last = row.pk
                try:
                    gone = self._let_one_go(run, row)
                    if gone is None:
                        break
                    entry.letters += gone
                except PublishFailed as exc:
                    refused.append(f"{row.letter_id}: {exc}")
                    if run.stage < _LAST:
                        break
                except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; what has been done must be told
                    problem = f"{type(exc).__name__}: {exc}"
                    break
                if end is not None and clock.now() >= end:
                    break
            run.refresh_from_db()
            self._after(run, refused)
            problem = run.outcome or problem or "; ".join(refused[:3])
            entry.outcome = problem
        return problem if refused or run.state == run.State.OPEN else ""

    def _after(self, run: CanaryRun, refused: list[str]) -> None:
        if refused and run.stage < _LAST:
            self._end(run, run.State.STOPPED, f"it stopped itself: a letter could not be moved, {refused[0]}")
        elif refused and run.letters.using(self._using).filter(state=_State.WAITING).count() <= len(refused):
            self._end(run, run.State.DONE, f"{letters_text(len(refused))} could not be moved and wait on, the first {refused[0]}")

    def _let_one_go(self, run: CanaryRun, row: ArchivedLetter) -> int | None:
        """Let one letter go: 1, or 0 where it is not there any more; None where the stage has no place left, or is over.

        Raises:
            PublishFailed: it waits on.
        """
        stage, letter = run.stage, self._archive.letter(row)
        counts = stage < _LAST and not self._has_completed(letter)
        clock, table = self._archive.clock, self._archive.django_table
        now = moment_of(clock.now())
        with transaction.atomic(using=self._using):
            # who changes the run's row holds it until the end: others wait here, and find what is left
            mine = self._runs.filter(pk=run.pk, state=run.State.OPEN, stage=stage)
            if stage < _LAST:
                mine = mine.filter(counted__lt=sizes(run.chosen)[stage])
            if not mine.update(moved=F("moved") + 1, counted=F("counted") + int(counts), changed_at=now):
                return None
            mark = partial(table.mark_canary, row.pk, run.pk, stage if counts else None, now=clock.now())
            if not self._archive.send(row, letter, letter.queue, mark=mark):
                transaction.set_rollback(True, using=self._using)
                return 0
        return 1

    def _has_completed(self, letter: DeadLetter) -> bool:
        try:
            record = self._record(letter.key or "")
        except StoreUnavailable:
            return False
        return record is not None and record.state is RecordState.COMPLETED

    def _end(self, run: CanaryRun, state: str, outcome: str) -> bool:
        with transaction.atomic(using=self._using):
            mine = self._runs.filter(pk=run.pk, state=run.State.OPEN)
            ended = bool(mine.update(state=state, outcome=outcome, changed_at=moment_of(self._archive.clock.now())))
            if ended:
                run.letters.using(self._using).exclude(state=_State.REPLAYED).update(canary=None)
        run.refresh_from_db()
        return ended

    def _audited(self, run: CanaryRun, who: str, why: str = "") -> Any:
        waiting = run.letters.using(self._using).filter(state=_State.WAITING)
        selection = f"{run}, {STAGES[run.stage]}" + (f"; {run.selection}" if run.selection else "")
        return self._archive.audited(AuditEntry.Action.CANARY, waiting, who, why, selection)


def free(rows: Any) -> Any:
    """Return those letters of a query set that a canary may choose: they wait, in no other one, and may well succeed."""
    rows = rows.filter(state=_State.WAITING, canary=None, replays__lt=_MAX_REPLAYS)
    return rows.exclude(reason__in=HOPELESS).exclude(task="").exclude(task_id="")
