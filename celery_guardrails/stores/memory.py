"""A store in this process's memory: for tests, and for workers of one process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..policy import lease as transitions
from ..policy.breaker import Condition
from ..policy.key import is_ours
from ..policy.lease import Claim, ClaimState, Record, RecordState, StoredResult
from ..policy.occupancy import Occupancy, is_first, refused
from ..policy.resource import Ask, Resource, ResourceView, Tell
from . import STEPS_SECONDS

__all__ = ["MemoryStore"]


class MemoryStore:
    """Leases and completion records in a dictionary; the transitions are those of :mod:`..policy.lease`.

    Args:
        memory: seconds that a record is kept while its key is not completed.
        now: clock, unix time in seconds.
    """

    #: Refused by a worker whose tasks run in other processes.
    one_process_only = True
    #: Records that are over stay in memory until they are deleted.
    needs_pruning = True

    def __init__(self, *, memory: float = 86400.0, now: Callable[[], float] = time.time) -> None:
        self._records: dict[str, tuple[Record, float]] = {}
        self._resources: dict[str, Occupancy] = {}
        self._lock = threading.Lock()
        self._memory = memory
        self._now = now

    @classmethod
    def from_url(cls, url: str, *, namespace: str, memory: float) -> MemoryStore:
        """Return a new, empty store; the URL says nothing but ``memory://``."""
        return cls(memory=memory)

    def claim(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        lease: float,
        owner: str = "",
        attempts: int = 0,
        beside: bool = False,
        ask: Ask | None = None,
    ) -> Claim:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            record, claim = transitions.claim(
                self._get(key),
                holder=holder,
                fingerprint=fingerprint,
                lease=lease,
                now=self._now(),
                owner=owner,
                attempts=attempts,
                beside=beside,
            )
            if ask is not None and claim.state is ClaimState.CLAIMED:
                refused = self._enter(ask, holder, claim, lease)
                if refused is not None:
                    return refused
            if record.state is RecordState.LEASED:
                self._put(key, record, self._kept(record) + lease)
            return claim

    def complete(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        fence: int,
        result: StoredResult,
        retention: float,
        tell: Tell | None = None,
    ) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            self._leave(tell, holder)
            before = self._get(key)
            record, done = transitions.complete(before, holder=holder, fingerprint=fingerprint, fence=fence, result=result, now=self._now())
            if done and record is not before:
                self._put(key, record, retention)
            return done

    def release(
        self, key: str, *, holder: str, attempts: int = 0, crashes: int = 0, drop: bool = False, tell: Tell | None = None
    ) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            self._leave(tell, holder)
            record, done = transitions.release(self._get(key), holder=holder, attempts=attempts, crashes=crashes, drop=drop)
            if not done:
                return None
            self._put(key, record, self._kept(record))
            return record

    def reset(self, key: str, *, holder: str | None = None, tell: Tell | None = None) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            self._leave(tell, holder or "")
            record, done = transitions.reset(self._get(key), holder=holder)
            if done:
                self._put(key, record, self._kept(record))
            return done

    def renew(self, leases: Iterable[tuple[str, str]], lease: float) -> list[bool]:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        answers = []
        with self._lock:
            for key, holder in leases:
                record, done = transitions.renew(self._get(key), holder=holder, lease=lease, now=self._now())
                if done:
                    self._put(key, record, self._kept(record) + lease)
                answers.append(done)
        return answers

    def save_step(self, key: str, *, holder: str, name: str, value: StoredResult) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            record, done = transitions.save_step(self._get(key), holder=holder, name=name, value=value)
            if done and record is not None:
                self._put(key, record, self._kept(record) + max(0.0, record.until - self._now()))
            return done

    def lookup(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            return self._get(key)

    def forget(self, key: str) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            known = self._get(key) is not None
            self._records.pop(key, None)
            return known

    def leases(self) -> Iterator[tuple[str, Record]]:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            found = [(key, self._get(key)) for key in list(self._records)]
        for key, record in found:
            if record is not None and record.state is RecordState.LEASED:
                yield key, record

    def census(self) -> Iterator[Mapping[RecordState, int]]:
        """See :class:`~celery_guardrails.ports.CountingStore`."""
        with self._lock:
            found = [self._get(key) for key in list(self._records) if not is_ours(key)]
        yield Counter(record.state for record in found if record is not None)

    def break_lease(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            before = self._get(key)
            record, done = transitions.break_lease(before)
            if done:
                self._put(key, record, self._kept(record))
            return before if done else None

    def prune(self, limit: int) -> int:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        with self._lock:
            now = self._now()
            over = [key for key, (_, expires) in self._records.items() if expires <= now][:limit]
            for key in over:
                del self._records[key]
            return len(over)

    # -- resources --------------------------------------------------------------------------------------------

    def _enter(self, ask: Ask, holder: str, claim: Claim, lease: float) -> Claim | None:
        """Let the holder into its resource; the answer to its claim where it must wait."""
        now, name = self._now(), ask.resource.name
        occupancy, refusal = self._occupancy(name).enter(ask, holder=holder, first=is_first(claim), lease=lease, now=now)
        self._resources[name] = occupancy
        return None if refusal is None else refused(claim, refusal)

    def _leave(self, tell: Tell | None, holder: str) -> None:
        if tell is not None:
            name = tell.resource.name
            self._resources[name] = self._occupancy(name).leave(tell, holder=holder, now=self._now())

    def _occupancy(self, name: str) -> Occupancy:
        return self._resources.get(name) or Occupancy()

    def tell(self, tell: Tell, *, holder: str) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        with self._lock:
            self._leave(tell, holder)

    def hold(self, slots: Iterable[tuple[str, str]], lease: float) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        with self._lock:
            for name, holder in slots:
                self._resources[name] = self._occupancy(name).hold(holder, lease=lease, now=self._now())

    def view(self, resources: Iterable[Resource]) -> list[ResourceView]:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        with self._lock:
            return [self._occupancy(resource.name).view(resource, self._now()) for resource in resources]

    def force(self, name: str, condition: Condition | None, seconds: float) -> None:
        """See :class:`~celery_guardrails.ports.ResourceStore`."""
        with self._lock:
            self._resources[name] = self._occupancy(name).force(condition, seconds, self._now())

    # -- the rest ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return self._now()

    def ping(self) -> None:
        """Always there."""

    def close(self) -> None:
        """Nothing to close."""

    def _kept(self, record: Record | None) -> float:
        return max(self._memory, STEPS_SECONDS) if record is not None and record.steps else self._memory

    def _get(self, key: str) -> Record | None:
        found = self._records.get(key)
        if found is None:
            return None
        record, expires = found
        if expires <= self._now():
            del self._records[key]
            return None
        return record

    def _put(self, key: str, record: Record | None, seconds: float) -> None:
        if record is None:
            self._records.pop(key, None)
        else:
            self._records[key] = (record, self._now() + seconds)
