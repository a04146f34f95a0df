"""What the store asks of Redis, whether one server or a cluster answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any, Protocol

from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError, ResponseError

__all__ = ["FAILURES", "Head", "Runner", "heads_of", "refused_write", "script_texts", "sha_of"]

#: What redis-py raises when the store cannot be had; its cluster's own errors have a root of their own.
FAILURES = (RedisError, RedisClusterException, OSError)
#: A record's name and its first two bytes; None where they could not be read, because the record is moving.
Head = tuple[bytes, "bytes | None"]

#: Name of a script → its parts; those with a + have a resource as well.
_SCRIPTS = {
    "claim": ("record", "apart", "claim"),
    "complete": ("record", "apart", "complete"),
    "release": ("record", "apart", "release"),
    "reset": ("record", "apart", "reset"),
    "claim+": ("record", "resource", "ask", "claim"),
    "complete+": ("record", "resource", "tell", "complete"),
    "release+": ("record", "resource", "tell", "release"),
    "reset+": ("record", "resource", "tell", "reset"),
    "enter": ("record", "resource", "ask", "enter"),
    "leave": ("record", "resource", "tell", "leave"),
    "hold": ("record", "resource", "hold"),
    "force": ("record", "resource", "force"),
    "state": ("record", "resource", "state"),
    "renew": ("record", "renew"),
    "step": ("record", "step"),
    "lookup": ("record", "fields", "lookup"),
    "break": ("record", "fields", "break"),
}


class Runner(Protocol):
    """Runs scripts, each on one key. Every method raises one of :data:`FAILURES` where it gets no answer."""

    #: Whether a script may touch keys besides its own: not where they may lie on another node.
    together: bool

    def run(self, name: str, key: str, *args: Any) -> Any:
        """Return what a script answers."""

    def run_many(self, name: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run a script for many keys, each given as (key, arguments...), in few round trips; answers in the same order.

        What can be done is done, also where an error is raised for the rest.
        """

    def heads(self, pattern: str) -> Iterator[list[Head]]:
        """Yield the heads of all records whose names match, in batches; a name may come twice."""

    def delete(self, key: str) -> int:
        """Delete a record; how many there were."""

    def time(self) -> tuple[int, int]:
        """Return unix time by the servers' clock: seconds, and microseconds of the second."""

    def ping(self) -> None:
        """Do nothing on every server that keeps records."""

    def vitals(self) -> list[dict[str, Any]]:
        """Return how each server that keeps records is (:func:`~.vitals.vitals`)."""

    def close(self) -> None:
        """Close the connections of this process; the next call opens others."""


@cache
def script_texts() -> dict[str, str]:
    """Return the store's scripts by name."""
    folder = resources.files(__package__)
    return {name: "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts) for name, parts in _SCRIPTS.items()}


def sha_of(text: str) -> str:
    """Return the digest by which a server knows a script."""
    return hashlib.sha1(text.encode("utf-8"), usedforsecurity=False).hexdigest()


def refused_write(answer: object) -> bool:
    """Whether an error says that the server is a replica; before Redis 7 one inside a script says so in its text only."""
    return isinstance(answer, ReadOnlyError) or (isinstance(answer, ResponseError) and "READONLY" in str(answer))


def heads_of(server: Any, pattern: str, size: int = 1000) -> Iterator[list[Head]]:
    """Yield the heads of the records on one server, with two round trips for every ``size`` names."""
    names = server.scan_iter(match=pattern, count=size)
    while batch := list(islice(names, size)):
        pipeline = server.pipeline(transaction=False)
        for name in batch:
            pipeline.getrange(name, 0, 1)
        answers = pipeline.execute(raise_on_error=False)
        yield [(name, None if isinstance(head, Exception) else head) for name, head in zip(batch, answers, strict=True)]
