"""Admit → run → settle: carries deliveries to the verdict and the verdict away.

The guard talks to its ports and knows no Celery. Order is everything here, so each step says why it comes when it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import events
from .errors import LeaseLost, PublishFailed, StoreUnavailable
from .policy.deadletter import ErrorReport, certify, past_attempt
from .policy.delivery import Delivery
from .policy.history import remembered
from .policy.lease import Claim, ClaimState, Record, RecordState, StoredResult
from .policy.occupancy import is_first
from .policy.progress import PROGRESS, Progress
from .policy.refusal import refusal
from .policy.resource import Ask, Tell
from .policy.suspicion import QUARANTINE, QUARANTINED
from .policy.verdict import (
    Complete,
    DeadLetterNow,
    Fail,
    HandBack,
    LeaseGone,
    Limits,
    Lost,
    NotStarted,
    Outcome,
    PassThrough,
    Raised,
    Replay,
    RetryIn,
    Returned,
    Run,
    Stopped,
    Verdict,
    attempt_number,
    deadline_of,
    decide,
    effect_of,
)
from .ports import Broker, Clock, IdempotencyStore, ResourceStore, ResultCodec, Room, Transaction

__all__ = ["ErrorReport", "Guard", "Patience"]

#: Seconds before a message asks again that found somebody in quarantine; the policy doubles it from time to time.
_QUARANTINE_WAIT = 0.5


@dataclass(frozen=True)
class Patience:
    """How long, in seconds, a settling call is tried again while the store or the broker is away.

    Args:
        complete: the effect is done and only its record is missing: giving up means that a duplicate would run again.
        release: giving up leaves the lease to expire.
        publish: giving up leaves the message in its queue.
    """

    complete: float = 600.0
    release: float = 5.0
    publish: float = 30.0


@dataclass
class Guard:
    """The engine.

    Args:
        store: leases and records.
        broker: delayed messages and dead letters.
        codec: serialises results.
        clock: time and chance.
        emit: hears every event.
        lease: seconds.
        node: name of this worker, for dead letters and lookups.
        patience: see :class:`Patience`; the worker's main process has none, since it must not block.
        room: where the tasks of this worker run side by side; None where one runs at a time.
        skew: seconds by which the store's clock is ahead of this host's; learned with every claim.
    """

    store: IdempotencyStore
    broker: Broker
    codec: ResultCodec
    clock: Clock
    emit: Callable[[events.Event], None]
    lease: float = 60.0
    node: str = ""
    patience: Patience = field(default_factory=Patience)
    room: Room | None = None
    skew: float = 0.0

    def now(self) -> float:
        """Return unix time in seconds by the clock of the store, which workers whose own clocks disagree have in common."""
        return self.clock.now() + self.skew

    # -- before the body --------------------------------------------------------------------------------------

    def admit(self, delivery: Delivery, limits: Limits) -> tuple[Verdict, Claim]:
        """Claim the key and say whether the body may run; hand backs and dead letters are carried out already.

        Raises:
            PublishFailed: the verdict could not be carried out; the message must stay in its queue.
        """
        if self.room is None or self.room.enter(delivery.holder):
            claim = self._claim(delivery, limits)
        else:
            claim = Claim(ClaimState.REFUSED, wait=_QUARANTINE_WAIT, why=QUARANTINED)
        if claim.state is ClaimState.REFUSED and self._expired(delivery, limits):
            # it shall not wait for what it will not do; the lease keeps a copy from being dead-lettered as well
            claim = self._claim(delivery, limits)
        verdict = self._decide(delivery, claim, NotStarted(), limits)
        if isinstance(verdict, Run) and verdict.alone and self.room is not None:
            verdict, claim = self._isolate(delivery, claim, limits, verdict, self.room)
        if isinstance(verdict, Run):
            self.emit(events.Started(delivery.task_name, delivery.task_id, delivery.key, verdict.attempt, claim.fence, claim.takeover))
        elif isinstance(verdict, Replay):
            self.emit(events.Replayed(delivery.task_name, delivery.task_id, delivery.key))
        elif isinstance(verdict, HandBack):
            self._hand_back(delivery, verdict, delivery.travel.deferrals + 1)
        elif isinstance(verdict, (DeadLetterNow, Fail)):
            if isinstance(verdict, DeadLetterNow):
                error = refusal(verdict.reason, delivery, verdict.why)
                cls = type(error)
                self._bury(delivery, verdict, ErrorReport(f"{cls.__module__}.{cls.__qualname__}", str(error)))
            if claim.state is ClaimState.CLAIMED:
                self._give_up(delivery, self._told(limits, NotStarted()), claim.progress)
        return verdict, claim

    def _expired(self, delivery: Delivery, limits: Limits) -> bool:
        deadline = deadline_of(delivery, limits)
        return deadline is not None and self.now() >= deadline

    def _isolate(self, delivery: Delivery, claim: Claim, limits: Limits, verdict: Run, room: Room) -> tuple[Verdict, Claim]:
        """Bring a suspect into quarantine: one in the fleet at a time, and nothing beside it in this worker.

        Where what runs beside it does not end, it runs all the same, and its loss will be one suspicion more; for each it waits
        the length of a lease longer.
        """
        key, holder = delivery.key, delivery.holder
        lane = self._persist(
            "claim",
            0.0,
            lambda: self.store.claim(QUARANTINE, holder=holder, fingerprint=None, lease=self.lease, owner=self.node),
        )
        if lane is None or lane.state is not ClaimState.CLAIMED:
            self._release(delivery, self._told(limits, NotStarted()))
            refused = replace(claim, state=ClaimState.REFUSED, wait=_QUARANTINE_WAIT, why=QUARANTINED)
            return self._decide(delivery, refused, NotStarted(), limits), refused
        patience = self.lease * claim.suspicions
        alone = room.alone(holder, patience if limits.quarantine_cap is None else min(patience, limits.quarantine_cap))
        self.emit(events.Quarantined(delivery.task_name, delivery.task_id, key, claim.suspicions, alone))
        if not alone:
            return verdict, claim
        # from now on losing it is proof
        proven = self._persist(
            "claim",
            0.0,
            lambda: self.store.claim(key, holder=holder, fingerprint=delivery.fingerprint, lease=self.lease, owner=self.node),
        )
        if proven is None or proven.state is ClaimState.CLAIMED:
            return verdict, claim
        self._release(delivery, self._told(limits, NotStarted()))  # it took too long: only the slot of its resource is left
        return self._decide(delivery, proven, NotStarted(), limits), proven

    def leave(self, delivery: Delivery) -> None:
        """Make room for others: a delivery does not run here any more, or never did."""
        if self.room is not None and self.room.leave(delivery.holder):
            self._persist("release", self.patience.release, lambda: self.store.release(QUARANTINE, holder=delivery.holder, drop=True))

    def _claim(self, delivery: Delivery, limits: Limits) -> Claim:
        asked: dict[str, Any] = {} if self.room is None else {"beside": True}
        if limits.resource is not None and not self._expired(delivery, limits):
            asked["ask"] = Ask(limits.resource, delivery.travel.throttled)
        try:
            claim = self.store.claim(
                delivery.key,
                holder=delivery.holder,
                fingerprint=delivery.fingerprint,
                lease=self.lease,
                owner=self.node,
                attempts=delivery.travel.attempts,
                **asked,
            )
        except StoreUnavailable as exc:
            self.emit(events.StoreFailed("claim", str(exc)))
            return Claim(ClaimState.UNAVAILABLE)
        if claim.now is not None:
            self.skew = claim.now - self.clock.now()
        return self._with_progress(claim, delivery, claim.steps) if PROGRESS in claim.steps else claim

    def _with_progress(self, claim: Claim, delivery: Delivery, steps: Mapping[str, StoredResult]) -> Claim:
        """Return a claim with what the recovery points of its key say of its loops."""
        kept = steps.get(PROGRESS)
        if kept is None:
            return claim
        progress = Progress.from_value(self.codec.unpack(kept))
        return replace(claim, progress=progress.as_of(attempt_number(delivery, claim) - 1, claim.losses))

    # -- while the body runs ----------------------------------------------------------------------------------

    def ensure_live(self, delivery: Delivery) -> None:
        """Extend the lease.

        Raises:
            LeaseLost: another execution has taken it.
            StoreUnavailable: the store did not answer.
        """
        if not self.store.renew([(delivery.key, delivery.holder)], self.lease)[0]:
            raise _lost(delivery)

    def remember(self, delivery: Delivery, name: str, value: Any) -> None:
        """Keep a recovery point that is done: what it did must not be done again, so this is as patient as a completion.

        Raises:
            LeaseLost: another execution has taken the lease.
            StoreUnavailable: the store did not answer for too long.
        """
        kept = self.codec.encode(value, delivery.task_id)
        done = self._persist(
            "step",
            self.patience.complete,
            lambda: self.store.save_step(delivery.key, holder=delivery.holder, name=name, value=kept),
        )
        if done is None:
            raise StoreUnavailable(f"step {name!r} of {delivery.key!r} is done, but the store would not remember it; see guardrails_store")
        if not done:
            raise _lost(delivery)

    def recall(self, claim: Claim, name: str) -> tuple[bool, Any]:
        """Return whether a recovery point is done, and the value that was kept with it."""
        kept = claim.steps.get(name)
        return kept is not None, self.codec.decode(kept)

    def save_progress(self, delivery: Delivery, progress: Progress, *, patient: bool) -> bool:
        """Keep how far the loops have come; False where the store did not answer.

        Raises:
            LeaseLost: another execution has taken the lease.
        """
        kept = self.codec.pack(progress.to_value())
        done = self._persist(
            "checkpoint",
            self.patience.release if patient else 0.0,
            lambda: self.store.save_step(delivery.key, holder=delivery.holder, name=PROGRESS, value=kept),
        )
        if done is False:
            raise _lost(delivery)
        return bool(done)

    def complete_within(self, transaction: Transaction, delivery: Delivery, claim: Claim, value: Any, retention: float) -> None:
        """Write the completion into the transaction that holds the body's effects.

        Raises:
            LeaseLost: another execution has taken the lease; the transaction must be rolled back.
        """
        result = self.codec.encode(value, delivery.task_id)
        if not transaction.complete(
            delivery.key,
            holder=delivery.holder,
            fingerprint=delivery.fingerprint,
            fence=claim.fence,
            result=result,
            retention=retention,
        ):
            raise _lost(delivery)

    def committed(self, delivery: Delivery, claim: Claim) -> bool | None:
        """Return whether this very claim has completed, after a commit whose answer did not come; None where nobody can say."""
        record = self._persist("lookup", self.patience.release, lambda: (self.store.lookup(delivery.key),))
        if record is None:
            return None
        found: Record | None = record[0]
        return found is not None and found.state is RecordState.COMPLETED and found.fence == claim.fence

    # -- after the body ---------------------------------------------------------------------------------------

    def settle(
        self,
        delivery: Delivery,
        claim: Claim,
        outcome: Outcome,
        limits: Limits,
        *,
        error: ErrorReport | None = None,
        retention: float = 86400.0,
    ) -> Verdict:
        """Decide on what the body did and carry it out; the caller acknowledges afterwards.

        Raises:
            PublishFailed: the message must stay in its queue.
        """
        verdict = self._decide(delivery, claim, outcome, limits)
        told = self._told(limits, outcome, delivery, claim)
        if isinstance(verdict, Complete) and isinstance(outcome, Returned):
            if self._complete(delivery, claim, outcome.value, retention, told):
                return verdict
            verdict = self._overtaken(delivery, claim, limits)
        elif isinstance(verdict, (DeadLetterNow, Fail)) and claim.state is ClaimState.CLAIMED and not self._still_held(delivery):
            # A process that was paused and has woken up must not bury what another one runs, or has completed.
            verdict = self._overtaken(delivery, claim, limits)
        elif isinstance(outcome, LeaseGone):
            self.emit(events.LeaseTaken(delivery.task_name, delivery.task_id, delivery.key))
        report = error or ErrorReport()
        if isinstance(verdict, RetryIn):
            # The charge first: were the copy published first, a crash in between would leave two messages and no charge.
            self._release(delivery, told, attempts=1)
            self._retry(delivery, verdict, report)
        elif isinstance(verdict, DeadLetterNow):
            # The letter first: it may be written twice, but never not at all.
            self._bury(delivery, verdict, report)
            self._give_up(delivery, told, claim.progress)
        elif isinstance(verdict, HandBack):
            self._release(delivery, told)
            # who left a loop where it goes on did not wait in vain
            self._hand_back(delivery, verdict, 0 if isinstance(outcome, Stopped) else delivery.travel.deferrals + 1)
        elif isinstance(verdict, Fail):
            self._give_up(delivery, told, claim.progress)
        elif isinstance(verdict, PassThrough):
            self._release(delivery, told, attempts=verdict.charge, drop=verdict.forget)
        return verdict

    def lost(self, delivery: Delivery, limits: Limits, report: ErrorReport) -> Verdict:
        """Settle a delivery whose process vanished (called in the worker's main process).

        A hand back is *not* carried out here: the caller returns the message itself to its queue at once.
        """
        self.leave(delivery)
        record = self._release(delivery, self._told(limits, NotStarted()), crashes=1)
        if record is None:  # it had completed, or never claimed: nothing to charge
            return HandBack(0.0, "crashed")
        self.emit(events.Crashed(delivery.task_name, delivery.task_id, delivery.key, record.crashes))
        claim = Claim(ClaimState.CLAIMED, attempts=record.attempts, crashes=record.crashes, suspicions=record.suspicions)
        claim = self._with_progress(claim, delivery, record.steps)
        verdict = self._decide(delivery, claim, Lost(record.crashes), limits)
        if isinstance(verdict, DeadLetterNow):
            self._bury(delivery, verdict, report)
        if isinstance(verdict, (DeadLetterNow, Fail)):
            self._forget_charges(delivery)
        return verdict

    def overran(self, delivery: Delivery, limits: Limits, raised: Raised, report: ErrorReport) -> Verdict:
        """Settle a delivery that a hard time limit is about to kill (called in the worker's main process).

        A hand back is *not* carried out here: the caller returns the message itself to its queue at once.
        """
        self.leave(delivery)
        record = self._release(delivery, self._told(limits, raised), attempts=1)
        if record is None and self._is_anothers(delivery):
            # It has completed in this very moment, or another execution has the key: what is redelivered finds out.
            return HandBack(0.0, "lease lost")
        attempts = record.attempts - 1 if record is not None else delivery.travel.attempts
        claim = Claim(ClaimState.CLAIMED, attempts=attempts, crashes=record.crashes if record else 0)
        claim = self._with_progress(claim, delivery, record.steps if record is not None else {})
        verdict = self._decide(delivery, claim, raised, limits)
        if isinstance(verdict, RetryIn):
            self._retry(delivery, verdict, report)
        elif isinstance(verdict, DeadLetterNow):
            self._bury(delivery, verdict, report)
        if isinstance(verdict, (DeadLetterNow, Fail)):
            self._forget_charges(delivery)
        return verdict

    def _is_anothers(self, delivery: Delivery) -> bool:
        """Whether the key has completed, or another execution holds its lease."""
        found = self._persist("lookup", self.patience.release, lambda: (self.store.lookup(delivery.key),))
        record: Record | None = found[0] if found else None
        return record is not None and record.state is not RecordState.IDLE

    def surrender(self, delivery: Delivery, limits: Limits) -> None:
        """Give the lease of a delivery back that this worker will not finish, so that another starts at once."""
        self.leave(delivery)
        self._release(delivery, self._told(limits, NotStarted()))

    def hand_over(self, delivery: Delivery, limits: Limits) -> None:
        """Give the lease of a task back that another goes on with: without its charges, but with its recovery points."""
        self._give_up(delivery, self._told(limits, NotStarted()))

    def postpone(self, delivery: Delivery, seconds: float) -> None:
        """Let a message that is not due yet wait in the broker.

        Raises:
            PublishFailed: the message must stay in its queue.
        """
        travel = delivery.travel.evolve(origin=delivery.origin)
        self.broker.delay(delivery.again(travel), delivery.queue, seconds)

    # -- carrying out -----------------------------------------------------------------------------------------

    def _decide(self, delivery: Delivery, claim: Claim, outcome: Outcome, limits: Limits) -> Verdict:
        return decide(delivery, claim, outcome, limits, now=self.now(), fraction=self.clock.fraction())

    def _overtaken(self, delivery: Delivery, claim: Claim, limits: Limits) -> Verdict:
        self.emit(events.LeaseTaken(delivery.task_name, delivery.task_id, delivery.key))
        return self._decide(delivery, claim, LeaseGone(), limits)

    def _still_held(self, delivery: Delivery) -> bool:
        """Whether the lease is still this holder's; a store that is away does not keep a failure from being settled."""
        answer = self._persist("renew", self.patience.release, lambda: self.store.renew([(delivery.key, delivery.holder)], self.lease))
        return answer is None or bool(answer[0])

    def tell(self, delivery: Delivery, claim: Claim, limits: Limits, outcome: Outcome) -> None:
        """Tell the task's resource how an execution went whose completion was committed with its effects."""
        if limits.resource is None or not isinstance(self.store, ResourceStore):
            return
        told, store = self._told(limits, outcome, delivery, claim)["tell"], self.store
        self._persist("tell", self.patience.release, lambda: store.tell(told, holder=delivery.holder))

    def _told(self, limits: Limits, outcome: Outcome, delivery: Delivery | None = None, claim: Claim | None = None) -> dict[str, Tell]:
        """Return what a call that settles says besides, of the task's resource.

        With delivery and claim it knows what the execution took of the retry budget, which a success gives back.
        """
        if limits.resource is None:
            return {}
        retry = delivery is not None and claim is not None and not is_first(claim)
        cost = Ask(limits.resource, delivery.travel.throttled).cost if delivery is not None and retry else 0.0
        return {"tell": Tell(limits.resource, effect_of(outcome), self.clock.fraction(), cost, claim.now if claim is not None else None)}

    def _complete(self, delivery: Delivery, claim: Claim, value: Any, retention: float, told: Mapping[str, Tell]) -> bool:
        result = self.codec.encode(value, delivery.task_id)
        done = self._persist(
            "complete",
            self.patience.complete,
            lambda: self.store.complete(
                delivery.key,
                holder=delivery.holder,
                fingerprint=delivery.fingerprint,
                fence=claim.fence,
                result=result,
                retention=retention,
                **told,
            ),
        )
        if done is False:
            return False
        # None: the store stayed away. The effect is done: acknowledging is better than repeating it.
        attempt = attempt_number(delivery, claim)
        if done:
            self.emit(events.Completed(delivery.task_name, delivery.task_id, delivery.key, attempt))
        return True

    def _release(
        self, delivery: Delivery, told: Mapping[str, Tell], *, attempts: int = 0, crashes: int = 0, drop: bool = False
    ) -> Record | None:
        record: Record | None = self._persist(
            "release",
            self.patience.release,
            lambda: self.store.release(delivery.key, holder=delivery.holder, attempts=attempts, crashes=crashes, drop=drop, **told),
        )
        return record

    def _give_up(self, delivery: Delivery, told: Mapping[str, Tell], progress: Progress | None = None) -> None:
        """Give the lease of a task that has failed for good back, and forget its charges: a replay starts afresh."""
        if progress is not None and progress.stalls:  # else the next one would find itself stalled before it has begun
            try:
                self.save_progress(delivery, progress.afresh(), patient=True)
            except LeaseLost:
                return
        self._persist("reset", self.patience.release, lambda: self.store.reset(delivery.key, holder=delivery.holder, **told))

    def _forget_charges(self, delivery: Delivery) -> None:
        """The same where the lease has been given back already."""
        self._persist("reset", self.patience.release, lambda: self.store.reset(delivery.key, holder=None))

    def _persist(self, operation: str, patience: float, call: Callable[[], Any]) -> Any:
        """Call the store, again with backoff while it is away; None when patience ran out."""
        end, wait = self.clock.now() + patience, 0.1
        while True:
            try:
                return call()
            except StoreUnavailable as exc:
                self.emit(events.StoreFailed(operation, str(exc)))
                if self.clock.now() + wait > end:
                    return None
                self.clock.sleep(wait * (0.5 + self.clock.fraction() / 2))
                wait = min(wait * 2, 2.0)

    def _publish(self, call: Callable[[], None]) -> None:
        end, wait = self.clock.now() + self.patience.publish, 0.2
        while True:
            try:
                return call()
            except PublishFailed:
                if self.clock.now() + wait > end:
                    raise
                self.clock.sleep(wait * (0.5 + self.clock.fraction() / 2))
                wait = min(wait * 2, 5.0)

    def _retry(self, delivery: Delivery, verdict: RetryIn, report: ErrorReport) -> None:
        travel = delivery.travelled(self.clock.now()).evolve(
            attempts=verdict.attempts,
            deferrals=0,
            waited=verdict.delay,
            throttled=verdict.throttled,
            history=remembered(delivery.travel.history, past_attempt(report, attempt=verdict.attempts, now=self.now())),
        )
        message = delivery.again(travel, retries=verdict.attempts)
        self._publish(lambda: self.broker.delay(message, delivery.queue, verdict.delay))
        self.emit(
            events.Retrying(
                delivery.task_name,
                delivery.task_id,
                delivery.key,
                verdict.attempts,
                verdict.delay,
                f"{report.error}: {report.message}",
                report.rule,
            )
        )

    def _hand_back(self, delivery: Delivery, verdict: HandBack, deferrals: int) -> None:
        travel = delivery.travelled(self.clock.now()).evolve(deferrals=deferrals)
        message = delivery.again(travel)
        self._publish(lambda: self.broker.delay(message, delivery.queue, verdict.delay))
        self.emit(events.HandedBack(delivery.task_name, delivery.task_id, delivery.key, verdict.delay, verdict.why))

    def _bury(self, delivery: Delivery, verdict: DeadLetterNow, report: ErrorReport) -> None:
        if delivery.raw is None:
            return
        certificate = certify(
            delivery, report, reason=verdict.reason, attempts=verdict.attempts, crashes=verdict.crashes, now=self.now(), worker=self.node
        )
        raw = delivery.raw
        self._publish(lambda: self.broker.dead_letter(raw, delivery.queue, certificate))
        self.emit(events.DeadLettered(delivery.queue, certificate))


def _lost(delivery: Delivery) -> LeaseLost:
    return LeaseLost(f"another execution has taken over the lease of {delivery.key!r}")
