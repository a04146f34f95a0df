"""One step each: a call of a port with patience, and the event that tells of it. In which order they come is the guard's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import events
from .errors import LeaseLost, PublishFailed, StoreUnavailable
from .policy.deadletter import ErrorReport, certify, past_attempt
from .policy.delivery import Delivery
from .policy.history import remembered
from .policy.lease import Claim, Record, RecordState
from .policy.occupancy import is_first
from .policy.progress import PROGRESS, Progress
from .policy.resource import Ask, Tell
from .policy.suspicion import CROWDED
from .policy.verdict import DeadLetterNow, HandBack, Limits, Outcome, RetryIn, attempt_number, effect_of
from .ports import Broker, Clock, IdempotencyStore, ResultCodec

__all__ = ["Carrier", "Patience", "lease_lost"]


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
class Carrier:
    """Carries verdicts away: completes, gives leases back, publishes, buries. It decides nothing.

    Args:
        store: leases and records.
        broker: delayed messages and dead letters.
        codec: serialises results.
        clock: time and chance.
        emit: hears every event.
        lease: seconds.
        node: name of this worker, for dead letters and lookups.
        patience: see :class:`Patience`; the worker's main process has none, since it must not block.
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
    skew: float = 0.0

    def now(self) -> float:
        """Return unix time in seconds by the clock of the store, which workers whose own clocks disagree have in common."""
        return self.clock.now() + self.skew

    # -- the lease --------------------------------------------------------------------------------------------

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
            raise lease_lost(delivery)
        return bool(done)

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

    def _still_held(self, delivery: Delivery) -> bool:
        """Whether the lease is still this holder's; a store that is away does not keep a failure from being settled."""
        answer = self._persist("renew", self.patience.release, lambda: self.store.renew([(delivery.key, delivery.holder)], self.lease))
        return answer is None or bool(answer[0])

    def _is_anothers(self, delivery: Delivery) -> bool:
        """Whether the key has completed, or another execution holds its lease."""
        found = self._persist("lookup", self.patience.release, lambda: (self.store.lookup(delivery.key),))
        record: Record | None = found[0] if found else None
        return record is not None and record.state is not RecordState.IDLE

    # -- the message ------------------------------------------------------------------------------------------

    def _retry(self, delivery: Delivery, verdict: RetryIn, report: ErrorReport) -> None:
        travel = delivery.travelled(self.clock.now()).evolve(
            attempts=verdict.attempts,
            deferrals=0,
            vain=0,
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
        vain = delivery.travel.vain + (verdict.why == CROWDED)
        travel = delivery.travelled(self.clock.now()).evolve(deferrals=deferrals, vain=vain)
        message = delivery.again(travel)
        self._publish(lambda: self.broker.delay(message, delivery.queue, verdict.delay))
        self.emit(events.HandedBack(delivery.task_name, delivery.task_id, delivery.key, verdict.delay, verdict.why))

    def echo(self, delivery: Delivery, seconds: float) -> None:
        """Have the message of a key that has completed come once more, ``seconds`` from now: what follows it may not have begun.

        Raises:
            PublishFailed: the message must stay in its queue.
        """
        message = delivery.again(delivery.travelled(self.clock.now()).evolve(echo=True))
        self._publish(lambda: self.broker.delay(message, delivery.queue, seconds))

    def _bury(self, delivery: Delivery, verdict: DeadLetterNow, report: ErrorReport) -> None:
        if delivery.raw is None:
            return
        certificate = certify(
            delivery, report, reason=verdict.reason, attempts=verdict.attempts, crashes=verdict.crashes, now=self.now(), worker=self.node
        )
        raw = delivery.raw
        self._publish(lambda: self.broker.dead_letter(raw, delivery.queue, certificate))
        self.emit(events.DeadLettered(delivery.queue, certificate))

    # -- again and again --------------------------------------------------------------------------------------

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


def lease_lost(delivery: Delivery) -> LeaseLost:
    """Return the error for an execution whose lease another one has."""
    return LeaseLost(f"another execution has taken over the lease of {delivery.key!r}")
