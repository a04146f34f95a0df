"""Leases and completion records in Redis or Valkey."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from ...errors import StoreUnavailable
from ...policy.lease import Claim, ClaimState, Record, RecordState, StoredResult
from .scripts import Scripts

__all__ = ["RedisStore"]

T = TypeVar("T")

#: Short names for what nearly every record says, to keep a million of them small.
_SHORT = {"application/json": "j", "utf-8": "u", "binary": "b", "application/x-python-serialize": "p"}
_LONG = {short: long for long, short in _SHORT.items()}
#: Name of a script → its parts.
_SCRIPTS = {
    "claim": ("record", "claim"),
    "complete": ("record", "complete"),
    "release": ("record", "release"),
    "reset": ("record", "reset"),
    "renew": ("record", "renew"),
    "step": ("record", "step"),
    "lookup": ("record", "fields", "lookup"),
    "break": ("record", "fields", "break"),
}
#: Keys looked at in one round trip when leases are listed.
_BATCH = 1000
#: First bytes of a record that is leased: a msgpack array of nine or ten, then the state.
_LEASED = (b"\x99\x01", b"\x9a\x01")


def _script(name: str) -> str:
    folder = resources.files(__package__)
    return "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in _SCRIPTS[name])


class RedisStore:
    """One key of Redis per idempotency key; each method is one Lua script and one round trip.

    Args:
        client: of redis-py, bytes in and out.
        namespace: prefix of every key.
        memory: seconds that a record is kept while its key is not completed.
    """

    def __init__(self, client: redis.Redis, *, namespace: str, memory: float = 86400.0) -> None:
        self._client = client
        self._prefix = f"{namespace}:guard:"
        self._memory = _milliseconds(memory)
        self._scripts = Scripts(client, {name: _script(name) for name in _SCRIPTS})

    @classmethod
    def from_url(cls, url: str, *, namespace: str, memory: float = 86400.0) -> RedisStore:
        """Connect lazily to ``redis://``, ``rediss://``, ``unix://`` (or Celery's ``redis+socket://``, ``valkey://``)."""
        parts = urlsplit(url)
        scheme = {"redis+socket": "unix", "valkey": "redis", "valkeys": "rediss"}.get(parts.scheme, parts.scheme)
        query = parts.query.replace("virtual_host=", "db=") if parts.scheme == "redis+socket" else parts.query
        client = redis.Redis.from_url(
            urlunsplit((scheme, parts.netloc, parts.path, query, "")) if parts.netloc else f"{scheme}://{parts.path}?{query}",
            socket_timeout=5.0,
            socket_connect_timeout=2.0,
            # the first command after a server's restart meets a dead connection: every script may be repeated, so repeat it
            retry=Retry(ConstantBackoff(0.05), 1),
            health_check_interval=0,
        )
        return cls(client, namespace=namespace, memory=memory)

    def claim(self, key: str, *, holder: str, fingerprint: str | None, lease: float, owner: str = "", attempts: int = 0) -> Claim:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        answer = self._run("claim", key, holder, fingerprint or "", _milliseconds(lease), self._memory, owner, attempts)
        more: Sequence[bytes] = ()
        if not isinstance(answer, bytes):
            answer, *more = answer
        state, *words = answer.split()
        now = int(words[-1]) / 1000
        if state == b"claimed":
            return Claim(
                ClaimState.CLAIMED,
                fence=int(words[0]),
                attempts=int(words[1]),
                crashes=int(words[2]),
                takeover=words[3] == b"1",
                steps=_steps(more) if more else {},
                now=now,
            )
        if state == b"busy":
            return Claim(ClaimState.BUSY, wait=int(words[0]) / 1000, attempts=int(words[1]), crashes=int(words[2]), now=now)
        if state == b"completed":
            return Claim(ClaimState.COMPLETED, fence=int(words[0]), result=_result(*more), now=now)
        return Claim(ClaimState.CONFLICT, now=now)

    def complete(self, key: str, *, holder: str, fingerprint: str | None, fence: int, result: StoredResult, retention: float) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        answer = self._run(
            "complete",
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

    def release(self, key: str, *, holder: str, attempts: int = 0, crashes: int = 0, drop: bool = False) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        answer = self._run("release", key, holder, attempts, crashes, int(drop), self._memory)
        if not answer:
            return None
        return Record(
            attempts=int(answer[0]),
            crashes=int(answer[1]),
            fence=int(answer[2]),
            fingerprint=answer[3].decode() or None,
            steps=_steps(answer[4:]),
        )

    def reset(self, key: str, *, holder: str | None = None) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return bool(self._run("reset", key, holder or "", self._memory))

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
        return self._guarded(lambda: self._renew(wanted, lease))

    def _renew(self, wanted: list[tuple[str, str]], lease: float) -> list[bool]:
        scripts, answers = self._scripts, []
        for _ in range(2):
            pipeline = self._client.pipeline(transaction=False)
            for key, holder in wanted:
                pipeline.evalsha(scripts.sha("renew"), 1, self._prefix + key, holder, _milliseconds(lease), self._memory)
            answers = pipeline.execute(raise_on_error=False)
            # a restarted server has forgotten its scripts
            if not any(isinstance(answer, NoScriptError) for answer in answers):
                break
            self._client.script_load(scripts.text("renew"))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [bool(answer) for answer in answers]

    def lookup(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return _record(self._run("lookup", key))

    def break_lease(self, key: str) -> Record | None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return _record(self._run("break", key, self._memory))

    def leases(self) -> Iterator[tuple[str, Record]]:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`; it looks at the first bytes of every record there is."""
        pattern = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in self._prefix) + "*"
        keys = self._client.scan_iter(match=pattern, count=_BATCH)
        seen: set[bytes] = set()
        while batch := self._guarded(lambda: list(islice(keys, _BATCH))):
            heads = self._guarded(lambda batch=batch: self._heads(batch))  # type: ignore[misc]
            for name, head in zip(batch, heads, strict=True):
                if head in _LEASED and name not in seen:
                    seen.add(name)  # a scan may meet a key twice
                    key = name.decode("utf-8", "surrogateescape")[len(self._prefix) :]
                    record = self.lookup(key)
                    if record is not None and record.state is RecordState.LEASED:
                        yield key, record

    def _heads(self, names: Sequence[bytes]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.getrange(name, 0, 1)
        return pipeline.execute()

    def prune(self, limit: int) -> int:
        """Nothing to do: Redis lets its keys expire."""
        return 0

    def forget(self, key: str) -> bool:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        return bool(self._guarded(lambda: self._client.delete(self._prefix + key)))

    def now(self) -> float:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        seconds, microseconds = self._guarded(self._client.time)
        return float(seconds) + microseconds / 1_000_000

    def ping(self) -> None:
        """See :class:`~celery_guardrails.ports.IdempotencyStore`."""
        self._guarded(self._client.ping)

    def close(self) -> None:
        """Close the connections of this process."""
        self._scripts.close()
        self._client.close()

    def _run(self, name: str, key: str, *args: Any) -> Any:
        try:
            return self._scripts.run(name, self._prefix + key, *args)
        except (RedisError, OSError) as exc:
            raise _unavailable(exc) from exc

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (RedisError, OSError) as exc:
            raise _unavailable(exc) from exc


def _unavailable(exc: BaseException) -> StoreUnavailable:
    return StoreUnavailable(f"guardrails_store: {exc!r} (pid {os.getpid()})")


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
        crashes=int(fields[4]),
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
