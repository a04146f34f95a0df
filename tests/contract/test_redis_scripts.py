"""What the store's scripts leave in Redis: how long a record is kept, by whose clock, and what it holds. The contract cannot see it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from celery_guardrails.policy.breaker import Condition, Effect
from celery_guardrails.policy.lease import ClaimState, RecordState, StoredResult
from celery_guardrails.policy.rate import Rate
from celery_guardrails.policy.resource import Ask, Resource, Tell
from celery_guardrails.ports import IdempotencyStore
from celery_guardrails.stores import open_store
from tests.support import RedisServer

LEASE = 30.0
#: Seconds that a record is kept while its key is not completed; the store's own default.
MEMORY = 86_400.0
#: Seconds that a record with recovery points is kept at least.
STEPS = 30 * 86_400.0
VALUE = StoredResult("application/json", "utf-8", b"1")
NAMESPACE = "scripts"


@pytest.fixture
def store(redis_url: str) -> Iterator[IdempotencyStore]:
    store = open_store(redis_url, namespace=NAMESPACE)
    yield store
    store.close()


@pytest.fixture
def client(redis_server: RedisServer, redis_url: str) -> Iterator[Any]:
    with redis_server.client(int(redis_url.rpartition("/")[2])) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"k{uuid.uuid4().hex}"


@pytest.fixture
def kept(client: Any, key: str) -> Any:
    """Seconds for which the record is kept from now on, compared with what is expected: a second may pass meanwhile."""

    def compare(expected: float) -> bool:
        left = client.pttl(f"{NAMESPACE}:guard:{key}") / 1000
        return expected - 10 < left <= expected

    return compare


def write(client: Any, key: str, *fields: Any) -> None:
    """Write a record as a script would have, at any time and with any fence."""
    text = ", ".join(repr(field) if isinstance(field, str) else str(field) for field in fields)
    client.eval(f"redis.call('SET', KEYS[1], cmsgpack.pack({{{text}}}))", 1, f"{NAMESPACE}:guard:{key}")


# -- how long -------------------------------------------------------------------------------------------------------


def test_a_lease_is_remembered_for_longer_than_it_lasts(store, key, kept):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    assert kept(MEMORY + LEASE)


def test_a_lease_that_follows_another_is_remembered_as_long(store, key, kept):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    store.release(key, holder="a")
    store.claim(key, holder="b", fingerprint=None, lease=2 * LEASE)
    assert kept(MEMORY + 2 * LEASE)


def test_a_claim_that_is_repeated_begins_lease_and_memory_anew(store, key, kept):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    store.claim(key, holder="a", fingerprint=None, lease=4 * LEASE)
    assert kept(MEMORY + 4 * LEASE)
    assert 4 * LEASE - 5 < store.lookup(key).until - store.now() <= 4 * LEASE


def test_a_renewal_begins_lease_and_memory_anew(store, key, kept):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    assert store.renew([(key, "a")], 4 * LEASE) == [True]
    assert kept(MEMORY + 4 * LEASE)
    assert 4 * LEASE - 5 < store.lookup(key).until - store.now() <= 4 * LEASE


def test_a_key_that_was_released_or_broken_is_remembered_for_its_memory(store, key, kept):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    store.release(key, holder="a", attempts=1)
    assert kept(MEMORY)
    store.claim(key, holder="b", fingerprint=None, lease=LEASE)
    store.break_lease(key)
    assert kept(MEMORY)


def test_a_completion_is_kept_for_its_retention(store, key, kept):
    claim = store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    store.complete(key, holder="a", fingerprint=None, fence=claim.fence, result=VALUE, retention=500)
    assert kept(500)


def test_recovery_points_are_kept_for_thirty_days_at_least(store, key, kept):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    assert store.save_step(key, holder="a", name="s", value=VALUE)
    assert kept(STEPS)
    assert store.renew([(key, "a")], LEASE) == [True]
    assert kept(STEPS)
    store.release(key, holder="a")
    assert kept(STEPS)
    assert store.reset(key)
    assert kept(STEPS)
    store.claim(key, holder="b", fingerprint=None, lease=LEASE)
    assert kept(STEPS)


def test_a_longer_memory_holds_for_recovery_points_too(redis_url, client, key, kept):
    from celery_guardrails.stores.redis import RedisStore

    store = RedisStore.from_url(redis_url, namespace=NAMESPACE, memory=2 * STEPS)
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    assert store.save_step(key, holder="a", name="s", value=VALUE)
    assert kept(2 * STEPS + LEASE)
    client.pexpire(f"{NAMESPACE}:guard:{key}", 5000)
    store.release(key, holder="a")
    assert kept(2 * STEPS)
    assert store.reset(key)
    assert kept(2 * STEPS)
    store.close()


def test_a_step_saved_after_the_lease_has_expired_shortens_nothing(redis_url, client, key, kept):
    from celery_guardrails.stores.redis import RedisStore

    store = RedisStore.from_url(redis_url, namespace=NAMESPACE, memory=2 * STEPS)
    now = int(store.now() * 1000)
    write(client, key, 1, "", 7, 0, 0, "a", now - 500_000, now - 600_000, "")
    assert store.save_step(key, holder="a", name="s", value=VALUE)
    assert kept(2 * STEPS)
    store.close()


# -- the clock and the fence ----------------------------------------------------------------------------------------


def test_every_time_in_an_answer_is_the_servers_own(store, client, key):
    seconds, microseconds = client.time()
    before = seconds + microseconds / 1e6
    first = store.claim(key, holder="a", fingerprint="f", lease=LEASE)
    record = store.lookup(key)
    answers = [
        first,
        store.claim(key, holder="a", fingerprint="f", lease=LEASE),
        store.claim(key, holder="b", fingerprint="f", lease=LEASE),
        store.claim(key, holder="b", fingerprint="g", lease=LEASE),
    ]
    store.complete(key, holder="a", fingerprint="f", fence=first.fence, result=VALUE, retention=LEASE)
    answers.append(store.claim(key, holder="b", fingerprint="f", lease=LEASE))
    completed = store.lookup(key)
    seconds, microseconds = client.time()
    after = seconds + microseconds / 1e6
    assert [answer.state.value for answer in answers] == ["claimed", "claimed", "busy", "conflict", "completed"]
    for moment in (*(answer.now for answer in answers), record.claimed_at, record.until - LEASE, completed.claimed_at, first.fence / 1e6):
        assert before - 0.002 <= moment <= after


def test_a_fence_rises_where_the_clock_was_set_back(store, client, key):
    write(client, key, 0, "", 8_000_000_000_000_000, 2, 1, "", 0, 0, "")
    claim = store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    assert (claim.fence, claim.attempts, claim.crashes) == (8_000_000_000_000_001, 2, 1)
    assert store.lookup(key).fence == 8_000_000_000_000_001
    store.break_lease(key)
    assert store.lookup(key).fence == 8_000_000_000_000_002


def test_a_fence_is_the_time_where_the_last_one_is_older(store, client, key):
    write(client, key, 0, "", 5, 0, 0, "", 0, 0, "")
    claim = store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    assert claim.fence / 1e6 == pytest.approx(claim.now, abs=0.01)


def test_a_lease_is_over_at_its_end_and_not_before(store, client, key):
    now = int(store.now() * 1000)
    write(client, key, 1, "", 7, 0, 0, "a", now + 5000, now, "")
    assert store.claim(key, holder="b", fingerprint=None, lease=LEASE).state is ClaimState.BUSY
    write(client, key, 1, "", 7, 0, 0, "a", now - 1, now, "")
    claim = store.claim(key, holder="b", fingerprint=None, lease=LEASE)
    assert (claim.state, claim.takeover, claim.crashes) == (ClaimState.CLAIMED, True, 1)


# -- what a record holds --------------------------------------------------------------------------------------------


def test_a_claim_by_a_message_that_has_been_tried_before_starts_from_there(store, key):
    claim = store.claim(key, holder="a", fingerprint="f", lease=LEASE, owner="host/1", attempts=3)
    assert (claim.attempts, claim.crashes, claim.takeover) == (3, 0, False)
    record = store.lookup(key)
    assert (record.attempts, record.crashes, record.holder, record.owner, record.fingerprint) == (3, 0, "a", "host/1", "f")


def test_of_message_and_record_the_larger_number_of_attempts_counts(store, key):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    store.release(key, holder="a", attempts=2)
    assert store.claim(key, holder="b", fingerprint=None, lease=LEASE, attempts=1).attempts == 2
    store.release(key, holder="b")
    assert store.claim(key, holder="c", fingerprint=None, lease=LEASE, attempts=5).attempts == 5
    assert store.lookup(key).attempts == 5


def test_a_takeover_counts_a_crash_unless_the_message_says_that_the_attempt_was_settled(store, client, key):
    for known, crashes in ((0, 2), (2, 2), (3, 1)):
        write(client, key, 1, "", 7, 2, 1, "gone", 1, 1, "")
        assert store.claim(key, holder="b", fingerprint=None, lease=LEASE, attempts=known).crashes == crashes
        assert store.lookup(key).crashes == crashes


def test_busy_says_what_has_been_charged(store, client, key):
    now = int(store.now() * 1000)
    write(client, key, 1, "", 7, 4, 2, "a", now + 20_000, now, "")
    claim = store.claim(key, holder="b", fingerprint=None, lease=LEASE)
    assert (claim.state, claim.attempts, claim.crashes) == (ClaimState.BUSY, 4, 2)
    again = store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    assert (again.state, again.fence, again.attempts, again.crashes, again.takeover) == (ClaimState.CLAIMED, 7, 4, 2, False)


def test_a_released_record_holds_no_holder_and_no_time(store, key):
    claim = store.claim(key, holder="a", fingerprint="f", lease=LEASE, owner="host/1")
    released = store.release(key, holder="a", attempts=1, crashes=2)
    assert (released.attempts, released.crashes, released.fence, released.fingerprint) == (1, 2, claim.fence, "f")
    record = store.lookup(key)
    assert (record.state, record.holder, record.owner, record.until) == (RecordState.IDLE, "", "", 0)
    assert record.claimed_at == pytest.approx(claim.now, abs=0.01)


def test_a_broken_lease_holds_no_holder_and_no_time_and_keeps_its_charges(store, key):
    store.claim(key, holder="a", fingerprint="f", lease=LEASE)
    store.save_step(key, holder="a", name="s", value=VALUE)
    store.release(key, holder="a", attempts=4, crashes=2)
    claim = store.claim(key, holder="b", fingerprint="f", lease=LEASE, owner="host/1")
    before = store.break_lease(key)
    assert (before.state, before.holder, before.steps, before.attempts) == (RecordState.LEASED, "b", {"s": VALUE}, 4)
    assert before.until - claim.now == pytest.approx(LEASE, abs=0.01)
    record = store.lookup(key)
    assert (record.state, record.holder, record.owner, record.until) == (RecordState.IDLE, "", "", 0)
    assert (record.fingerprint, record.fence, record.attempts, record.crashes) == ("f", claim.fence + 1, 4, 2)
    assert record.steps == {"s": VALUE}


def test_a_key_given_up_with_recovery_points_holds_nothing_else(store, key):
    claim = store.claim(key, holder="a", fingerprint="f", lease=LEASE, owner="host/1", attempts=4)
    store.save_step(key, holder="a", name="s", value=VALUE)
    assert store.reset(key, holder="a")
    record = store.lookup(key)
    assert (record.state, record.holder, record.owner, record.until) == (RecordState.IDLE, "", "", 0)
    assert (record.fingerprint, record.fence, record.attempts, record.crashes) == ("f", claim.fence, 0, 0)
    assert record.steps == {"s": VALUE}


def test_only_a_lease_is_given_up_by_name(store, client, key):
    write(client, key, 0, "", 7, 1, 0, "", 0, 1, "")
    assert not store.reset(key, holder="a")
    write(client, key, 1, "", 7, 1, 0, "", 0, 1, "")  # nobody's name is nobody
    assert not store.reset(key)
    assert store.lookup(key) is not None


def test_a_fingerprint_is_that_of_the_first_claim_that_had_one(store, key):
    store.claim(key, holder="a", fingerprint=None, lease=LEASE)
    store.release(key, holder="a")
    store.claim(key, holder="b", fingerprint="f", lease=LEASE)
    assert store.lookup(key).fingerprint == "f"
    store.release(key, holder="b")
    claim = store.claim(key, holder="c", fingerprint=None, lease=LEASE)
    assert store.lookup(key).fingerprint == "f"
    store.complete(key, holder="c", fingerprint=None, fence=claim.fence, result=VALUE, retention=LEASE)
    assert store.lookup(key).fingerprint == "f"


def test_a_completion_of_a_record_that_vanished_has_the_holders_fingerprint(store, key):
    claim = store.claim(key, holder="a", fingerprint="f", lease=LEASE)
    store.forget(key)
    assert store.complete(key, holder="a", fingerprint="f", fence=claim.fence, result=VALUE, retention=LEASE)
    record = store.lookup(key)
    assert (record.state, record.fingerprint, record.fence) == (RecordState.COMPLETED, "f", claim.fence)


def test_the_name_of_a_former_holder_opens_nothing(store, client, key):
    for state in (0, 2):
        write(client, key, state, "", 7, 1, 0, "a", 0, 1, "")
        assert store.renew([(key, "a")], LEASE) == [False]
        assert store.release(key, holder="a") is None
        assert not store.save_step(key, holder="a", name="s", value=VALUE)
    write(client, key, 0, "", 7, 1, 0, "a", 0, 1, "")
    assert not store.complete(key, holder="a", fingerprint=None, fence=7, result=VALUE, retention=LEASE)
    assert not store.reset(key, holder="a")


def test_a_record_that_an_older_release_wrote_is_read_by_its_number(store, client, key):
    write(client, key, 0, "f", 7, 1, 0, "", 0, 1, "")
    assert store.reset(key), "0 is idle"
    write(client, key, 1, "f", 7, 1, 0, "a", 0, 1, "")
    assert store.renew([(key, "a")], LEASE) == [True], "1 is leased"
    write(client, key, 2, "f", 7, 1, "t", "j", "u", "1")
    assert store.claim(key, holder="b", fingerprint="f", lease=LEASE).state is ClaimState.COMPLETED


# -- resources ------------------------------------------------------------------------------------------------------

RESOURCE = Resource("api", max_concurrency=5, rate=Rate(100))


def asked_of(client: Any) -> dict[str, int]:
    """Commands since the statistics were reset that came from a client, by the server's count: a script's own come from none."""
    stats = client.info("commandstats")
    inside = {"get", "set", "time", "zscore", "zadd", "zrem", "zcount", "zremrangebyscore", "pexpire"}
    names = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    return {name: count for name, count in names.items() if name not in {*inside, "info", "config|resetstat"}}


def a_task(store, key, **resource):
    """Claim and settle as a guard does."""
    ask = {"ask": Ask(resource["of"])} if resource else {}
    tell = {"tell": Tell(resource["of"], Effect.SUCCESS)} if resource else {}
    claim = store.claim(key, holder="a", fingerprint="f", lease=LEASE, **ask)
    assert store.complete(key, holder="a", fingerprint="f", fence=claim.fence, result=VALUE, retention=LEASE, **tell)


def test_a_task_with_a_resource_makes_no_more_round_trips_than_one_without(store, client, key):
    for warm in ({}, {"of": RESOURCE}):  # connects, and loads the scripts
        a_task(store, key + str(warm), **warm)
    found = []
    for number, kind in enumerate(({}, {"of": RESOURCE})):
        client.config_resetstat()
        for task in range(20):
            a_task(store, f"{key}.{number}.{task}", **kind)
        found.append(asked_of(client))
    assert found == [{"evalsha": 40}, {"evalsha": 40}]


def test_what_a_resource_is_asked_while_it_lets_nobody_in_is_one_round_trip(store, client, key):
    store.force("api", Condition.OPEN, LEASE)
    store.claim(key, holder="a", fingerprint="f", lease=LEASE, ask=Ask(RESOURCE))
    client.config_resetstat()
    assert store.claim(key, holder="a", fingerprint="f", lease=LEASE, ask=Ask(RESOURCE)).state is ClaimState.REFUSED
    assert asked_of(client) == {"evalsha": 1}
    assert client.exists(f"{NAMESPACE}:guard:{key}") == 0


def test_many_slots_are_held_and_many_resources_looked_at_in_one_round_trip(store, client, key):
    resources = [Resource(f"api{number}") for number in range(10)]
    for number, resource in enumerate(resources):
        store.claim(f"{key}.{number}", holder="a", fingerprint="f", lease=LEASE, ask=Ask(resource))
    for call in (lambda: store.hold([(one.name, "a") for one in resources], LEASE), lambda: store.view(resources)):
        call()
        client.config_resetstat()
        before = client.info("stats")["total_reads_processed"]
        call()
        assert client.info("stats")["total_reads_processed"] - before == 2, "the commands came together; one is this question"
        assert asked_of(client) == {"evalsha": 10}


def test_a_resource_is_forgotten_when_nobody_has_used_it_for_ten_days(store, client, key):
    ten_days = 10 * 86_400.0
    a_task(store, key, of=RESOURCE)
    store.claim(f"{key}.held", holder="b", fingerprint="f", lease=LEASE, ask=Ask(RESOURCE))
    names = sorted(name.decode() for name in client.keys(f"{NAMESPACE}:resource:*"))
    assert names == [f"{NAMESPACE}:resource:{{=api}}", f"{NAMESPACE}:resource:{{=api}}:slots"]
    assert all(ten_days - 10 < client.pttl(name) / 1000 <= ten_days for name in names)
    store.force("api", Condition.OPEN, 20 * 86_400.0)
    assert 30 * 86_400.0 - 10 < client.pttl(names[0]) / 1000 <= 30 * 86_400.0, "not before an operator's word is over"
