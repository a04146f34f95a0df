"""Redis and Valkey, as the broker and as the store."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Facts, RedisFacts
from .finding import Said, check

__all__ = ["CHECKS"]

#: Since which BLMOVE is there, by which a message is taken and noted in one step (worker/safe_pop.py).
_SAFE = (6, 2)
#: Of maxmemory.
_NEARLY_FULL = 0.8

_FORGETS = "a completed key is forgotten and its task runs again (a customer is charged twice), a lease vanishes while its task runs"


def _evicts(server: RedisFacts) -> bool:
    """Whether it may throw away what is ours: records have a time to live, kombu's lists have none."""
    if not server.maxmemory:
        return False
    return server.policy.startswith("allkeys-") or ("store" in server.roles and server.policy.startswith("volatile-"))


@check("E020", "Redis throws keys away when its memory is full", live=True)
def evicts(facts: Facts) -> Iterator[Said]:
    for server in filter(_evicts, facts.redis):
        lost = [
            *(["whole queues vanish"] if "broker" in server.roles and server.policy.startswith("allkeys-") else []),
            *([_FORGETS] if "store" in server.roles else []),
        ]
        yield Said(
            server.name,
            f"maxmemory-policy is {server.policy}, with a limit of {server.maxmemory} bytes.",
            f"When the limit is reached {'; '.join(lost)}.",
            f"redis-cli {_at(server)} CONFIG SET maxmemory-policy noeviction  # and in redis.conf, or in the provider's parameter group",
        )


@check("E021", "Redis refuses writes", live=True)
def refuses_writes(facts: Facts) -> Iterator[Said]:
    for server in facts.redis:
        if server.refuses_writes:
            yield Said(
                server.name,
                f"{server.refuses_writes}.",
                "No task can be published, claimed or completed there.",
                f"redis-cli {_at(server)} INFO persistence  # free the disk, then BGSAVE; or name the primary in the URL",
            )


@check("W020", "the broker is a Redis older than 6.2", live=True)
def too_old(facts: Facts) -> Iterator[Said]:
    for server in facts.redis:
        if "broker" in server.roles and server.version < _SAFE:
            yield Said(
                server.name,
                f"version {'.'.join(map(str, server.version))}.",
                "It has no BLMOVE: a message that it has just handed out is lost when the worker's main process is killed in that moment.",
                "apt-get install redis-server  # 6.2 or later, or Valkey",
            )


@check("W021", "Redis keeps nothing over a restart", live=True)
def forgets_on_restart(facts: Facts) -> Iterator[Said]:
    for server in facts.redis:
        if server.persists is False:
            lost = [
                *(["all tasks that wait, or are held by workers, are gone"] if "broker" in server.roles else []),
                *(["what has been completed is forgotten: a message that comes again runs again"] if "store" in server.roles else []),
            ]
            yield Said(
                server.name,
                "neither an append-only file nor snapshots are on.",
                f"After a restart {'; '.join(lost)}.",
                f"redis-cli {_at(server)} CONFIG SET appendonly yes  # and in redis.conf",
            )


@check("W022", "Redis is nearly full", live=True)
def nearly_full(facts: Facts) -> Iterator[Said]:
    for server in facts.redis:
        if server.maxmemory and server.used > _NEARLY_FULL * server.maxmemory:
            yield Said(
                server.name,
                f"{server.used} of {server.maxmemory} bytes are used.",
                "At the limit it refuses writes, or throws keys away: publishing fails, and no task can be claimed or completed.",
                f"redis-cli {_at(server)} CONFIG SET maxmemory {2 * server.maxmemory}  # and in redis.conf",
            )


@check("I004", "Redis has replicas and does not wait for any", live=True)
def waits_for_no_replica(facts: Facts) -> Iterator[Said]:
    for server in facts.redis:
        if server.replicas and not server.waits_for_replicas:
            yield Said(
                server.name,
                f"{server.replicas} replicas, min-replicas-to-write is 0.",
                "A primary that is cut off from its replicas goes on taking writes, and they are lost when a replica takes over.",
                f"redis-cli {_at(server)} CONFIG SET min-replicas-to-write 1  # and in redis.conf",
            )


def _at(server: RedisFacts) -> str:
    host, separator, port = server.address.rpartition(":")
    return f"-h {host} -p {port}" if separator and port.isdigit() else f"-s {server.address}"


CHECKS = (evicts, refuses_writes, too_old, forgets_on_restart, nearly_full, waits_for_no_replica)
