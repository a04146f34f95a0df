"""How a server of Redis or Valkey is, for :mod:`celery_guardrails.doctor`."""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

__all__ = ["vitals"]


def vitals(client: Any) -> dict[str, Any]:
    """Return what ``INFO`` says, with ``address`` and what ``CONFIG GET save`` says (``save``), None where that is forbidden.

    Managed servers know no CONFIG; INFO they all have.

    Raises:
        redis.exceptions.RedisError: the server does not answer.
    """
    found: dict[str, Any] = dict(client.info())
    pool = client.connection_pool
    where = pool.connection_kwargs
    # a pool that asks sentinels knows the address since it has connected
    host, port = getattr(pool, "master_address", None) or (where.get("host", "localhost"), where.get("port", 6379))
    found["address"] = str(where.get("path") or f"{host}:{port}")
    try:
        found["save"] = client.config_get("save").get("save")
    except RedisError:
        found["save"] = None
    return found
