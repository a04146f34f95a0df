"""The record of one idempotency key, and what a claim of it answers.

The transitions here are the specification of every store: the memory store runs them as they are, the Redis store
carries them out in Lua, and one contract suite holds both to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from .progress import Progress
from .suspicion import Losses

__all__ = [
    "Claim",
    "ClaimState",
    "Record",
    "RecordState",
    "StoredResult",
    "break_lease",
    "claim",
    "complete",
    "release",
    "renew",
    "reset",
    "save_step",
]


_NOWHERE = Progress()


class RecordState(str, Enum):
    """State of a key."""

    IDLE = "idle"
    LEASED = "leased"
    COMPLETED = "completed"


class ClaimState(str, Enum):
    """Answer to a claim."""

    CLAIMED = "claimed"
    BUSY = "busy"
    COMPLETED = "completed"
    CONFLICT = "conflict"
    #: The key is free, but its resource let nobody in: nothing has changed.
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class StoredResult:
    """A task's serialised return value.

    Args:
        content_type: of the serializer, or None where the value itself could not be kept.
        content_encoding: of the serializer.
        data: the bytes.
        task_id: the task that completed the key.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    data: bytes = b""
    task_id: str = ""

    @property
    def has_value(self) -> bool:
        """Whether the value itself was kept."""
        return self.content_type is not None


@dataclass(frozen=True)
class Record:
    """What a store remembers of one key.

    Args:
        state: idle, leased or completed.
        fingerprint: of the arguments it was first claimed with.
        fence: fencing token of the last claim.
        attempts: attempts charged.
        crashes: holders that vanished while they ran it, and nobody else can have been the reason.
        holder: of the lease, or who completed it.
        until: unix time in seconds at which the lease ends.
        claimed_at: unix time in seconds of the last claim.
        owner: free text for operators: host and pid of the holder.
        result: of a completed key.
        steps: values of the recovery points that are done, by name; a completed key has none.
        suspicions: holders that vanished with a worker in which others ran, too (:mod:`.suspicion`).
        beside: others may run beside the present holder.
    """

    state: RecordState = RecordState.IDLE
    fingerprint: str | None = None
    fence: int = 0
    attempts: int = 0
    crashes: int = 0
    holder: str = ""
    until: float = 0.0
    claimed_at: float = 0.0
    owner: str = ""
    result: StoredResult | None = None
    steps: Mapping[str, StoredResult] = field(default_factory=dict)
    suspicions: int = 0
    beside: bool = False

    @property
    def losses(self) -> Losses:
        """Crashes, suspicions, and what the next loss would be."""
        return Losses(self.crashes, self.suspicions, self.beside)


@dataclass(frozen=True)
class Claim:
    """Answer of a store to a claim.

    Args:
        state: what happened.
        fence: fencing token of the new lease (claimed).
        attempts: attempts that the record remembers.
        crashes: holders of this key that vanished and are charged to it, the one taken over now included.
        takeover: the lease was taken from a holder that let it expire.
        wait: seconds until the present lease ends (busy), or before the resource may be asked again (refused).
        why: what of the resource there was none of (refused).
        result: of the completed key.
        steps: the recovery points that are done (claimed).
        now: unix time in seconds by the store's clock, which all workers share; None where the store did not say.
        progress: of the task's loops, which the guard reads from a step (claimed).
        suspicions: holders of this key that vanished together with others.
    """

    state: ClaimState
    fence: int = 0
    attempts: int = 0
    crashes: int = 0
    takeover: bool = False
    wait: float = 0.0
    why: str = ""
    result: StoredResult | None = None
    steps: Mapping[str, StoredResult] = field(default_factory=dict)
    now: float | None = field(default=None, compare=False)
    progress: Progress = _NOWHERE
    suspicions: int = 0

    @property
    def losses(self) -> int:
        """Holders of this key that vanished, whoever is to blame."""
        return self.crashes + self.suspicions


def claim(
    record: Record | None,
    *,
    holder: str,
    fingerprint: str | None,
    lease: float,
    now: float,
    owner: str = "",
    attempts: int = 0,
    beside: bool = False,
) -> tuple[Record, Claim]:
    """Try to take the lease of a key.

    The same holder may claim again (its first answer was lost on the way) and gets the same fence. The fence is
    ``max(last + 1, now in microseconds)``: it rises with every claim, also after the record has expired.

    ``attempts`` are those that the message knows of. Where it knows more than the record does, the former holder
    settled its attempt and only the store did not hear of it: taking its lease over charges no crash.

    ``beside``: others may run beside the holder, so that losing it will be a suspicion and no crash. A holder that is alone
    now says so by claiming again.
    """
    record = record or Record()
    if fingerprint is not None and record.fingerprint is not None and fingerprint != record.fingerprint:
        return record, Claim(ClaimState.CONFLICT, now=now)
    if record.state is RecordState.COMPLETED:
        return record, Claim(ClaimState.COMPLETED, fence=record.fence, result=record.result, now=now)
    settled = attempts > record.attempts
    known = max(attempts, record.attempts)
    losses, takeover = record.losses, False
    said = Claim(
        ClaimState.CLAIMED, record.fence, record.attempts, record.crashes, suspicions=record.suspicions, steps=record.steps, now=now
    )
    if record.state is RecordState.LEASED:
        if record.holder == holder:
            return replace(record, until=now + lease, beside=beside), said
        if record.until > now:
            return record, replace(said, state=ClaimState.BUSY, fence=0, wait=record.until - now, steps={})
        losses, takeover = losses if settled else losses.vanished(), True
    fence = max(record.fence + 1, int(now * 1_000_000))
    taken = replace(
        record,
        state=RecordState.LEASED,
        fingerprint=fingerprint if fingerprint is not None else record.fingerprint,
        fence=fence,
        attempts=known,
        crashes=losses.crashes,
        suspicions=losses.suspicions,
        beside=beside,
        holder=holder,
        until=now + lease,
        claimed_at=now,
        owner=owner,
        result=None,
    )
    return taken, replace(said, fence=fence, attempts=known, crashes=losses.crashes, suspicions=losses.suspicions, takeover=takeover)


def renew(record: Record | None, *, holder: str, lease: float, now: float) -> tuple[Record | None, bool]:
    """Extend the lease if this holder still has it (an expired lease that nobody took counts as still held)."""
    if record is None or record.state is not RecordState.LEASED or record.holder != holder:
        return record, False
    return replace(record, until=now + lease), True


def complete(
    record: Record | None, *, holder: str, fingerprint: str | None, fence: int, result: StoredResult, now: float
) -> tuple[Record | None, bool]:
    """Mark the key completed, unless another holder has taken it or completed it since.

    Done twice by the same holder (its first answer was lost) it answers True again. A record that has vanished
    (a store that lost its memory) is written anew: nobody else holds it, and the effect has been done.
    """
    if record is not None:
        if record.state is RecordState.COMPLETED:
            return record, record.fence == fence
        if record.state is not RecordState.LEASED or record.holder != holder:
            return record, False
    return (
        Record(
            state=RecordState.COMPLETED,
            fingerprint=record.fingerprint if record is not None else fingerprint,
            fence=fence,
            holder=holder,
            claimed_at=now,
            result=result,
        ),
        True,
    )


def release(record: Record | None, *, holder: str, attempts: int = 0, crashes: int = 0, drop: bool = False) -> tuple[Record | None, bool]:
    """Give the lease back, charging attempts or crashes; with ``drop`` the record is forgotten altogether.

    An attempt that came to an end has not killed its worker: no suspicion is left.
    """
    if record is None or record.state is not RecordState.LEASED or record.holder != holder:
        return record, False
    if drop:
        return None, True
    losses = record.losses.charged(crashes)
    if attempts:
        losses = losses._replace(suspicions=0)
    return _idle(record, attempts=record.attempts + attempts, losses=losses), True


def reset(record: Record | None, *, holder: str | None = None) -> tuple[Record | None, bool]:
    """Forget the charges of a key that is given up, so that whoever brings it back starts afresh.

    The recovery points that are done stay: their effects do. Without any the record is forgotten altogether. It is
    for the ``holder`` of the lease, or without one for a key that nobody holds.
    """
    if record is None:
        return None, False
    held = record.state is RecordState.LEASED and record.holder == holder
    if not (held or (holder is None and record.state is RecordState.IDLE)):
        return record, False
    return (_idle(record, attempts=0, losses=Losses()) if record.steps else None), True


def save_step(record: Record | None, *, holder: str, name: str, value: StoredResult) -> tuple[Record | None, bool]:
    """Remember that a recovery point is done, unless another holder has taken the key since."""
    if record is None or record.state is not RecordState.LEASED or record.holder != holder:
        return record, False
    return replace(record, steps={**record.steps, name: value}), True


def break_lease(record: Record | None) -> tuple[Record | None, bool]:
    """Take the lease from its holder, by an operator's hand: the fence rises and nothing is charged."""
    if record is None or record.state is not RecordState.LEASED:
        return record, False
    return replace(_idle(record, attempts=record.attempts, losses=record.losses), fence=record.fence + 1), True


def _idle(record: Record, *, attempts: int, losses: Losses) -> Record:
    return replace(
        record,
        state=RecordState.IDLE,
        attempts=attempts,
        crashes=losses.crashes,
        suspicions=losses.suspicions,
        beside=False,
        holder="",
        until=0.0,
        owner="",
    )
