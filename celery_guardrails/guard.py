"""Admit → run → settle: carries deliveries to the verdict and the verdict away.

The guard talks to its ports and knows no Celery. Order is everything here, so each step says why it comes when it does;
what a step does is in :mod:`.carrier`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import events
from .carrier import Carrier, Patience, lease_lost
from .errors import StoreUnavailable
from .policy.deadletter import ErrorReport
from .policy.delivery import Delivery
from .policy.lease import Claim, ClaimState, Record, RecordState, StoredResult
from .policy.progress import PROGRESS, Progress
from .policy.refusal import refusal
from .policy.resource import Ask
from .policy.suspicion import QUARANTINE, QUARANTINED
from .policy.verdict import (
    Complete,
    Crowded,
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
)
from .ports import ResourceStore, Room, Transaction

__all__ = ["ErrorReport", "Guard", "Patience"]

#: Seconds before a message asks again that found somebody in quarantine; the policy doubles it from time to time.
_QUARANTINE_WAIT = 0.5


@dataclass
class Guard(Carrier):
    """The engine: it asks for the verdict, and says in which order the steps of a :class:`.Carrier` come.

    Args:
        room: where the tasks of this worker run side by side; None outside of a worker. The others are the carrier's.
    """

    room: Room | None = None

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
        if isinstance(verdict, Run) and verdict.alone and self.room is not None and self.room.shared():
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

        Where what runs beside it does not end it is tried elsewhere, and waits longer there; after so many tries it runs all the same,
        and its loss will be one suspicion more.
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
        patience = self.lease * (claim.suspicions + delivery.travel.vain)
        alone = room.alone(holder, patience if limits.quarantine_cap is None else min(patience, limits.quarantine_cap))
        if not alone:
            crowded = self._decide(delivery, claim, Crowded(), limits)
            if isinstance(crowded, HandBack):
                self._release(delivery, self._told(limits, NotStarted()))
            if not isinstance(crowded, Run):
                return crowded, claim
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

    def expose(self, delivery: Delivery) -> None:
        """Say of a delivery that may be running that others may run beside it from now on, so that losing it is no proof any more.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        if self.store.renew([(delivery.key, delivery.holder)], self.lease)[0]:
            self.store.claim(
                delivery.key, holder=delivery.holder, fingerprint=delivery.fingerprint, lease=self.lease, owner=self.node, beside=True
            )

    def _beside(self) -> bool:
        return self.room is not None and self.room.shared()

    def _claim(self, delivery: Delivery, limits: Limits) -> Claim:
        beside = self._beside()
        asked: dict[str, Any] = {"beside": True} if beside else {}
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
        if claim.state is ClaimState.CLAIMED and not beside and self._beside():  # the pool has grown in this moment
            self._persist("claim", self.patience.release, lambda: self.expose(delivery))
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
            raise lease_lost(delivery)

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
            raise lease_lost(delivery)

    def recall(self, claim: Claim, name: str) -> tuple[bool, Any]:
        """Return whether a recovery point is done, and the value that was kept with it."""
        kept = claim.steps.get(name)
        return kept is not None, self.codec.decode(kept)

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
            raise lease_lost(delivery)

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
        published: list[Verdict] | None = None,
    ) -> Verdict:
        """Decide on what the body did and carry it out; the caller acknowledges afterwards.

        Args:
            delivery: that has run.
            claim: it ran under.
            outcome: of its body.
            limits: of its task.
            error: for the letter.
            retention: seconds that a completion is kept.
            published: gets the verdict as soon as the broker has what it says. Given again, where a signal has cut in meanwhile, nothing is
                published once more, whatever has become of the lease.

        Raises:
            PublishFailed: the message must stay in its queue.
        """
        published = [] if published is None else published
        told = self._told(limits, outcome, delivery, claim)
        if published:
            if isinstance(published[0], DeadLetterNow):
                self._give_up(delivery, told, claim.progress)
            return published[0]
        verdict = self._decide(delivery, claim, outcome, limits)
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
            published.append(verdict)
        elif isinstance(verdict, DeadLetterNow):
            # The letter first: it may be written twice, but never not at all.
            self._bury(delivery, verdict, report)
            published.append(verdict)
            self._give_up(delivery, told, claim.progress)
        elif isinstance(verdict, HandBack):
            self._release(delivery, told)
            # who left a loop where it goes on did not wait in vain
            self._hand_back(delivery, verdict, 0 if isinstance(outcome, Stopped) else delivery.travel.deferrals + 1)
            published.append(verdict)
        elif isinstance(verdict, Fail):
            self._give_up(delivery, told, claim.progress)
        elif isinstance(verdict, PassThrough):
            self._release(delivery, told, attempts=verdict.charge, drop=verdict.forget)
        return verdict

    def tell(self, delivery: Delivery, claim: Claim, limits: Limits, outcome: Outcome) -> None:
        """Tell the task's resource how an execution went whose completion was committed with its effects."""
        if limits.resource is None or not isinstance(self.store, ResourceStore):
            return
        told, store = self._told(limits, outcome, delivery, claim)["tell"], self.store
        self._persist("tell", self.patience.release, lambda: store.tell(told, holder=delivery.holder))

    # -- where the child cannot -------------------------------------------------------------------------------

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

    # -- deciding ---------------------------------------------------------------------------------------------

    def _decide(self, delivery: Delivery, claim: Claim, outcome: Outcome, limits: Limits) -> Verdict:
        return decide(delivery, claim, outcome, limits, now=self.now(), fraction=self.clock.fraction())

    def _overtaken(self, delivery: Delivery, claim: Claim, limits: Limits) -> Verdict:
        self.emit(events.LeaseTaken(delivery.task_name, delivery.task_id, delivery.key))
        return self._decide(delivery, claim, LeaseGone(), limits)
