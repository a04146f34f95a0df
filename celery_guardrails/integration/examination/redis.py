"""What ``INFO`` of a Redis means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...doctor.facts import RedisFacts

__all__ = ["redis_facts"]


def redis_facts(vitals: Mapping[str, Any], role: str) -> RedisFacts:
    """Return the facts of a server.

    Args:
        vitals: of :func:`celery_guardrails.stores.redis.vitals.vitals`.
        role: ``"broker"`` or ``"store"``.
    """
    version = [int(part) for part in str(vitals.get("redis_version", "0")).split(".")[:2] if part.isdigit()]
    return RedisFacts(
        roles=(role,),
        address=str(vitals["address"]),
        run_id=str(vitals.get("run_id") or vitals["address"]),
        version=tuple(version),
        policy=str(vitals.get("maxmemory_policy", "noeviction")),
        maxmemory=int(vitals.get("maxmemory", 0)),
        used=int(vitals.get("used_memory", 0)),
        persists=_persists(vitals),
        refuses_writes=_refuses(vitals),
        replicas=int(vitals.get("connected_slaves", 0)),
        # INFO has the line only where min-replicas-to-write is set
        waits_for_replicas="min_slaves_good_slaves" in vitals,
    )


def _persists(vitals: Mapping[str, Any]) -> bool | None:
    if int(vitals.get("aof_enabled", 0)):
        return True
    save = vitals.get("save")
    return None if save is None else bool(str(save).strip())


def _refuses(vitals: Mapping[str, Any]) -> str | None:
    if str(vitals.get("role")) in ("slave", "replica"):
        return "it is a replica"
    if str(vitals.get("aof_last_write_status", "ok")) != "ok":
        return "its append-only file could not be written (aof_last_write_status)"
    return None
