"""Whether broker and store can be had, and how the store keeps time."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from .facts import Facts
from .finding import Said, check
from .words import seconds

__all__ = ["CHECKS"]

#: Of a lease. It is renewed at a third of it, and an operation takes a round trip or two.
_SHARE = 0.1


@check("E010", "the broker does not answer", live=True)
def broker_away(facts: Facts) -> Iterator[Said]:
    if facts.broker_error:
        yield Said(
            facts.app.broker_url,
            facts.broker_error,
            "Nothing can be published or consumed. What was found below was found without it.",
            _reach(facts.app.broker, facts.app.broker_url) + "  # start it, or mend broker_url",
        )


def _reach(kind: str, urls: str) -> str:
    url = urls.partition(";")[0]  # of a failover list the first
    if kind != "redis":
        return "rabbitmq-diagnostics ping"
    scheme, _, rest = url.partition("://")
    if scheme in ("redis", "rediss"):
        return _ping(url)
    if scheme == "sentinel":
        return "redis-cli -p 26379 SENTINEL masters"
    return shlex.join(["redis-cli", "-s", rest.partition("?")[0], "PING"])


def _ping(url: str) -> str:
    return shlex.join(["redis-cli", "-u", url, "PING"])


@check("E011", "the broker is none that the guard can use", live=True)
def broker_unfit(facts: Facts) -> Iterator[Said]:
    if facts.broker_unfit:
        yield Said(
            "broker_url",
            facts.broker_unfit,
            "Dead letters and delays need confirms or atomic steps: a worker does not start.",
            facts.app.assign("broker_url", "amqp://"),
        )


@check("E012", "the store cannot be used", live=True)
def store_away(facts: Facts) -> Iterator[Said]:
    store = facts.store
    if store is not None and store.error:
        yield Said(
            store.url,
            store.error,
            "No guarded task can start: each is handed back until the store is there (or runs unguarded, with guardrails_store_failure = "
            "'open').",
            _mend(facts, store.url),
        )


def _mend(facts: Facts, url: str) -> str:
    if url.startswith("django"):
        alias = url.partition("://")[2] or "default"
        return "python manage.py migrate" + ("" if alias == "default" else f" --database {alias}")
    if url.startswith(("redis://", "rediss://")):
        return f"{_ping(url)}  # start it, or mend guardrails_store"
    return facts.app.assign("guardrails_store", "redis://localhost:6379/1") + "  # a store that answers"


@check("W040", "the store is in the memory of one process", live=True)
def store_in_memory(facts: Facts) -> Iterator[Said]:
    if facts.store is not None and facts.store.one_process:
        yield Said(
            facts.store.url,
            "no other process sees what it keeps.",
            "Every worker and every publisher has leases and completions of its own: the same key runs in each, and a restart forgets all.",
            facts.app.assign("guardrails_store", "redis://localhost:6379/1"),
        )


@check("W041", "the store is too slow for the lease", live=True)
def store_slow(facts: Facts) -> Iterator[Said]:
    store, lease = facts.store, facts.app.lease_seconds
    if store is not None and store.latency > _SHARE * lease:
        yield Said(
            store.url,
            f"a round trip takes {seconds(store.latency)}, a lease lasts {seconds(lease)}.",
            "A renewal that comes too late lets another worker take over what still runs.",
            facts.app.assign("guardrails_lease_seconds", round(store.latency / _SHARE * 2)),
        )


@check("W042", "this host's clock is not the store's", live=True)
def clock_skewed(facts: Facts) -> Iterator[Said]:
    store, lease = facts.store, facts.app.lease_seconds
    if store is not None and abs(store.skew) > _SHARE * lease:
        yield Said(
            store.url,
            f"this host's clock is {seconds(abs(store.skew))} {'behind' if store.skew > 0 else 'ahead of'} the store's.",
            "Deadlines, ETAs and expiry dates are written by the publisher's clock and read by the store's: tasks are dead-lettered too "
            "early, or run too late.",
            "timedatectl set-ntp true  # on this host, or on the store's",
        )


CHECKS = (broker_away, broker_unfit, store_away, store_in_memory, store_slow, clock_skewed)
