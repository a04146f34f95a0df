"""What the Redis store is asked, counted at the server, and what a record takes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable
from typing import Any

from celery_guardrails.policy.lease import StoredResult
from celery_guardrails.stores.redis import RedisStore
from tests.support import RedisServer

from .contestant import Contestant
from .report import Table, median

#: No renewal falls into a measurement: the first would come after a third of it.
LONG_LEASE = {"guardrails_lease_seconds": 3600}


def calls(server: RedisServer) -> dict[str, int]:
    """Return how often the server was asked, by command."""
    with server.client() as client:
        stats: dict[str, Any] = client.info("commandstats")
    return {name.removeprefix("cmdstat_").replace("|", " "): int(stat["calls"]) for name, stat in stats.items()}


def round_trips(contestant: Contestant, server: RedisServer, *, tasks: int) -> Table:
    """Count the store's commands for tasks that run, and for duplicates of tasks that have completed."""
    table = Table(
        f"Store round trips, counted by INFO commandstats on a server of the store's own: {tasks} tasks",
        ["tasks", "EVALSHA a task", "others a task", "bytes in a task", "bytes out a task"],
        notes=[
            "others: whatever a client sent besides (connecting, SCRIPT LOAD), without what the scripts call inside the server",
            "with a resource the worker's one look a second at it is among the EVALSHA",
            "renewals are left out by a lease of an hour: one pipelined call every guardrails_lease_seconds / 3 a worker",
        ],
    )
    contestant.start()
    try:
        first = 10_000_000  # keys of its own
        for title, effects in (("first delivery", tasks), ("duplicate of a completed key", 0)):
            contestant.publish(tasks, first=first)
            before, traffic = calls(server), _traffic(server)
            if effects:
                contestant.drain(tasks)
            else:
                contestant.skim(tasks)
            after, moved = calls(server), [now - was for now, was in zip(_traffic(server), traffic, strict=True)]
            asked = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
            inside = {"get", "set", "del", "time", "info", "evalsha", "zadd", "zrem", "zscore", "zcount", "zremrangebyscore", "pexpire"}
            others = sum(count for name, count in asked.items() if name not in inside)
            table.rows.append([title, asked.get("evalsha", 0) / tasks, others / tasks, moved[0] / tasks, moved[1] / tasks])
    finally:
        contestant.stop()
    return table


def _traffic(server: RedisServer) -> tuple[int, int]:
    with server.client() as client:
        stats = client.info("stats")
    return int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"])


def records(server: RedisServer, *, sizes: tuple[int, ...]) -> list[Table]:
    """Measure claim and complete, and the memory of completion records, while the number of records grows."""
    database = int(server.fresh_url().rsplit("/", 1)[1])
    store = RedisStore.from_url(server.url(database), namespace="bench")
    speed = Table(
        "Claim and complete of a fresh key, one client, by the number of records that are there",
        ["records", "claim µs", "complete µs", "EVALSHA µs in the server"],
    )
    memory = Table(
        "Memory of completion records (result: null as JSON, key of 16 characters and the prefix)",
        ["records", "bytes a record", "key", "value", "beyond key and value"],
        notes=["used_memory with the records minus used_memory without, by the number of records"],
    )
    numbers = itertools.count()
    with server.client(database) as client:
        _one(store, next(numbers))  # connects and loads the scripts
        template = bytes(client.get(next(client.scan_iter(count=10))))
        client.flushdb()
        base = int(client.info("memory")["used_memory"])
        there = 0
        for size in sizes:
            _fill(client, template, itertools.islice(numbers, max(0, size - there)))
            there = max(there, size)
            grown = int(client.info("memory")["used_memory"]) - base
            name = next(client.scan_iter(count=10))
            memory.rows.append(
                [size, grown / size, len(name), int(client.strlen(name)), grown / size - len(name) - int(client.strlen(name))]
            )
            client.config_resetstat()
            timed = [_one(store, next(numbers)) for _ in range(1000)]
            there += 1000
            inside = client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]
            speed.rows.append([size, median([claim for claim, _ in timed]), median([done for _, done in timed]), float(inside)])
    store.close()
    return [memory, speed]


def _fill(client: Any, record: bytes, numbers: Iterable[int]) -> None:
    """Write completion records as the store writes them, but many at a time: a million would take minutes."""
    pipeline = client.pipeline(transaction=False)
    for count, number in enumerate(numbers, 1):
        pipeline.set(f"bench:guard:charge:{number:09d}", record, px=86_400_000)
        if count % 10_000 == 0:
            pipeline.execute()
    pipeline.execute()


def _one(store: RedisStore, number: int) -> tuple[float, float]:
    """Claim and complete one key as a worker does; return the microseconds of each."""
    key, holder, task = f"charge:{number:09d}", os.urandom(8).hex(), "0f9c2f0a-4c1b-4a43-9d53-2f6bb2b3c3aa"
    start = time.perf_counter()
    claim = store.claim(key, holder=holder, fingerprint="0123456789abcdef", lease=60.0, owner="worker@host/12345")
    middle = time.perf_counter()
    result = StoredResult("application/json", "utf-8", b"null", task)
    store.complete(key, holder=holder, fingerprint="0123456789abcdef", fence=claim.fence, result=result, retention=86400.0)
    end = time.perf_counter()
    return (middle - start) * 1e6, (end - middle) * 1e6
