"""Leases and completion records in Redis or Valkey."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import RedisError

from ...errors import StoreUnavailable
from ...policy.key import is_ours
from ...policy.lease import Claim, ClaimState, Record, RecordState, StoredResult
from ...policy.resource import Ask, Tell
from ...policy.suspicion import Losses
from .cluster import Cluster
from .resources import RedisResources
from .runner import FAILURES, Head, Runner
from .server import Server
from .urls import Mode, parse

__all__ = ["RedisStore"]

T = TypeVar("T")

#: Short names for what nearly every record says, to keep a million of them small.
_SHORT = {"application/json": "j", "utf-8": "u", "binary": "b", "application/x-python-serialize": "p"}
_LONG = {short: long for long, short in _SHORT.items()}
#: First bytes of a record that is leased: a msgpack array of nine or ten, then the state.
_LEASED = (b"\x99\x01", b"\x9a\x01")
#: The same for every state; a record that is completed is an array of eight.
_STATE_OF = {
    b"\x99\x00": RecordState.IDLE,
    b"\x9a\x00": RecordState.IDLE,
    **dict.fromkeys(_LEASED, RecordState.LEASED),
    b"\x98\x02": RecordState.COMPLETED,
}


class RedisStore(RedisResources):
    """One key of Redis per idempotency key; each method is one Lua script and one round trip.

    Args:
        runner: one server, or a cluster.
        namespace: prefix of every key.
        memory: seconds that a record is kept while its key is not completed.
    """

    def __init__(self, runner: Runner, *, namespace: str, memory: float = 86400.0) -> None:
        self._runner = runner
        self._namespace = namespace
        self._prefix = f"{namespace}:guard:"
        self._memory = _milliseconds(memory)

    @classmethod
    def from_url(cls, url: str, *, namespace: str, memory: float = 86400.0) -> RedisStore:
        """Connect lazily to what one of the URLs of :mod:`.urls` names.

        Raises:
            ValueError: it cannot be used.
        """
        place = parse(url)
        try:
            runner: Runner = Cluster.at(place) if place.mode is Mode.CLUSTER else Server.at(place)
        except TypeError as exc:
            raise ValueError(f"an option that redis-py does not know: {exc}") from exc
        except RedisError as exc:
            raise ValueError(str(exc)) from exc
        return cls(runner, namespace=namespace, memory=memory)

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
        words = (key, holder, fingerprint or "", _milliseconds(lease), self._memory, owner, attempts, int(beside))
        if ask is None:
            return _claimed(self._run("claim", *words))
        if self._runner.together:
            return _claimed(self._run("claim+", *words, *self._asked(ask)))
        return self._enter(_claimed(self._run("claim", *words)), ask, key=key, holder=holder, lease=lease)

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
        answer = self._settle(
            "complete",
            tell,
            holder,
            key,
            holder,
            fingerprint or "",
            fence,
            _milliseconds(retention),
            result.task_id,
            _shorten(result.content_type),
            _shorten(result.content_encoding),
            result.data,
        )
        return bool(answer)

    def release(
        self, key: str, *, holder: str, attempts: int = 0, crashes: int = 0, drop: bool = False, tell: Tell | None = None
    ) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        answer = self._settle("release", tell, holder, key, holder, attempts, crashes, int(drop), self._memory)
        if not answer:
            return None
        return Record(
            attempts=int(answer[0]),
            **Losses.unpack(int(answer[1]))._asdict(),
            fence=int(answer[2]),
            fingerprint=answer[3].decode() or None,
            steps=_steps(answer[4:]),
        )

    def reset(self, key: str, *, holder: str | None = None, tell: Tell | None = None) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return bool(self._settle("reset", tell, holder or "", key, holder or "", self._memory))

    def _settle(self, name: str, tell: Tell | None, holder: str, key: str, *args: Any) -> Any:
        if tell is None:
            return self._run(name, key, *args)
        if self._runner.together:
            return self._run(f"{name}+", key, *args, *self._told(tell))
        self.tell(tell, holder=holder)
        return self._run(name, key, *args)

    def save_step(self, key: str, *, holder: str, name: str, value: StoredResult) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        answer = self._run(
            "step", key, holder, self._memory, name, _shorten(value.content_type), _shorten(value.content_encoding), value.data
        )
        return bool(answer)

    def renew(self, leases: Iterable[tuple[str, str]], lease: float) -> list[bool]:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        wanted = list(leases)
        if not wanted:
            return []
        length = _milliseconds(lease)
        calls = [(self._prefix + key, holder, length, self._memory) for key, holder in wanted]
        return [bool(answer) for answer in self._guarded(lambda: self._runner.run_many("renew", calls))]

    def lookup(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return _record(self._run("lookup", key))

    def break_lease(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return _record(self._run("break", key, self._memory))

    def leases(self) -> Iterator[tuple[str, Record]]:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`; it looks at the first bytes of every record there is.

        In a cluster a lease whose slot moves to another node meanwhile may be missing.
        """
        seen: set[bytes] = set()
        for batch in self._heads():
            for name, head in batch:
                if (head is None or head in _LEASED) and name not in seen:
                    seen.add(name)  # a scan may meet a key twice
                    key = self._key_of(name)
                    record = self.lookup(key)
                    if record is not None and record.state is RecordState.LEASED:
                        yield key, record

    def census(self) -> Iterator[Mapping[RecordState, int]]:
        """See :class:`~celery_guardrails.ports.CountingStore`; a record may count twice while Redis makes its table larger or smaller."""
        for batch in self._heads():
            yield Counter(_STATE_OF[head] for name, head in batch if head in _STATE_OF and not is_ours(self._key_of(name)))

    def _heads(self) -> Iterator[list[Head]]:
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in self._prefix) + "*"
        batches = self._runner.heads(pattern)
        while batch := self._guarded(lambda: next(batches, None)):
            yield batch

    def _key_of(self, name: bytes) -> str:
        return name.decode("utf-8", "surrogateescape")[len(self._prefix) :]

    def prune(self, limit: int) -> int:
        """Nothing to do: Redis lets its keys expire."""
        return 0

    def forget(self, key: str) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return bool(self._guarded(lambda: self._runner.delete(self._prefix + key)))

    def now(self) -> float:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        seconds, microseconds = self._guarded(self._runner.time)
        return seconds + microseconds / 1_000_000

    def ping(self) -> None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        self._guarded(self._runner.ping)

    def vitals(self) -> list[dict[str, Any]]:
        """Return how each server that keeps records is, as :func:`~.vitals.vitals` has it.

        Raises:
            StoreUnavailable: one does not answer.
        """
        return self._guarded(self._runner.vitals)

    def close(self) -> None:
        """Close the connections of this process."""
        self._runner.close()

    def _run(self, name: str, key: str, *args: Any) -> Any:
        try:
            return self._runner.run(name, self._prefix + key, *args)
        except FAILURES as exc:
            raise _unavailable(exc) from exc

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except FAILURES as exc:
            raise _unavailable(exc) from exc


def _claimed(answer: Any) -> Claim:
    """Read what ``claim.lua`` answers."""
    more: Sequence[bytes] = ()
    if not isinstance(answer, bytes):
        answer, *more = answer
    state, *words = answer.split()
    now = int(words[-1]) / 1000
    if state == b"claimed":
        suspicions, crashes = divmod(int(words[2]), 1000)
        return Claim(
            ClaimState.CLAIMED,
            fence=int(words[0]),
            attempts=int(words[1]),
            crashes=crashes,
            takeover=words[3] == b"1",
            steps=_steps(more) if more else {},
            now=now,
            suspicions=suspicions,
        )
    if state == b"busy":
        suspicions, crashes = divmod(int(words[2]), 1000)
        return Claim(ClaimState.BUSY, wait=int(words[0]) / 1000, attempts=int(words[1]), crashes=crashes, now=now, suspicions=suspicions)
    if state == b"completed":
        return Claim(ClaimState.COMPLETED, fence=int(words[0]), result=_result(*more), now=now)
    if state == b"refused":
        suspicions, crashes = divmod(int(words[3]), 1000)
        return Claim(
            ClaimState.REFUSED,
            why=words[0].decode(),
            wait=int(words[1]) / 1000,
            attempts=int(words[2]),
            crashes=crashes,
            now=now,
            suspicions=suspicions,
        )
    return Claim(ClaimState.CONFLICT, now=now)


def _unavailable(exc: BaseException) -> StoreUnavailable:
    # redis-py 8 leaves the text out of repr()
    return StoreUnavailable(f"guardrails_store: {type(exc).__name__}: {exc} (pid {os.getpid()})")


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _shorten(name: str | None) -> str:
    return "" if name is None else _SHORT.get(name, name)


def _record(fields: Sequence[bytes]) -> Record | None:
    if not fields:
        return None
    fingerprint, fence = fields[1].decode() or None, int(fields[2])
    if int(fields[0]) == 2:
        return Record(
            state=RecordState.COMPLETED,
            fingerprint=fingerprint,
            fence=fence,
            claimed_at=int(fields[3]) / 1000,
            result=_result(*fields[4:8]),
        )
    return Record(
        state=RecordState.LEASED if int(fields[0]) == 1 else RecordState.IDLE,
        fingerprint=fingerprint,
        fence=fence,
        attempts=int(fields[3]),
        **Losses.unpack(int(fields[4]))._asdict(),
        holder=fields[5].decode(),
        until=int(fields[6]) / 1000,
        claimed_at=int(fields[7]) / 1000,
        owner=fields[8].decode(),
        steps=_steps(fields[9:]),
    )


def _steps(flat: Sequence[bytes]) -> dict[str, StoredResult]:
    """Return a mapping of a flat list: name, content type, content encoding, data, and so on."""
    return {flat[at].decode(): _result(b"", *flat[at + 1 : at + 4]) for at in range(0, len(flat), 4)}


def _result(task_id: bytes, content_type: bytes, content_encoding: bytes, data: bytes) -> StoredResult:
    short, encoding = content_type.decode(), content_encoding.decode()
    return StoredResult(_LONG.get(short, short) or None, _LONG.get(encoding, encoding) or None, data, task_id.decode())
