"""The store's suite wherever Redis can be: a Unix socket, TLS, behind sentinels, in a cluster."""

from __future__ import annotations

import itertools
import uuid

import pytest

from celery_guardrails.policy.lease import ClaimState, RecordState, StoredResult
from celery_guardrails.testing.resource_contract import ResourceContract
from celery_guardrails.testing.store_contract import StoreContract

LONG = 30.0


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid.uuid4().hex}"


def calls(servers, command):
    """How often the servers were asked, since their statistics were reset."""
    return sum(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"] for client in servers)


class RedisContract(StoreContract):
    """What holds of every Redis besides."""

    @pytest.mark.parametrize("odd", ["{42}", "a{b}c", "{}x", "}{", "*", "?", "[a-z]", "\\", "a b\r\nc", "ключ", "", "x" * 5000])
    def test_a_key_may_look_as_it_likes(self, store, odd):
        claim = store.claim(odd, holder="a", fingerprint="f", lease=LONG)
        assert claim.state is ClaimState.CLAIMED
        assert store.claim(odd, holder="b", fingerprint="f", lease=LONG).state is ClaimState.BUSY
        assert store.renew([(odd, "a")], LONG) == [True]
        assert [key for key, _ in store.leases()] == [odd]
        result = StoredResult("application/json", "utf-8", b"1", "t")
        assert store.complete(odd, holder="a", fingerprint="f", fence=claim.fence, result=result, retention=LONG)
        assert store.lookup(odd).result == result
        assert store.forget(odd)

    def test_many_leases_are_renewed_in_one_call_each_as_it_is(self, store, key):
        keys = [f"{key}.{number}" for number in range(500)]
        for number, name in enumerate(keys):
            if number % 5:
                store.claim(name, holder="a", fingerprint=None, lease=LONG)
        assert store.renew([(name, "a") for name in keys], 2 * LONG) == [bool(number % 5) for number in range(500)]
        assert all(store.lookup(name).until > store.now() + 1.5 * LONG for number, name in enumerate(keys) if number % 5)

    def test_scripts_that_are_forgotten_are_taught_again(self, store, key, servers):
        keys = [f"{key}.{number}" for number in range(50)]
        for step in (
            lambda: [store.claim(name, holder="a", fingerprint=None, lease=LONG).state for name in keys] == [ClaimState.CLAIMED] * 50,
            lambda: store.renew([(name, "a") for name in keys], LONG) == [True] * 50,
            lambda: all(store.release(name, holder="a") for name in keys),
        ):
            for client in servers:
                client.script_flush()
                client.config_resetstat()
            assert step()
            assert (calls(servers, "eval"), calls(servers, "script|load")) == (0, len(servers)), "each server once"

    def test_the_list_of_leases_shows_no_completed_record_and_changes_none(self, store, key, servers):
        result = StoredResult("application/json", "utf-8", b"\x99\x01", "t")
        for number in range(1500):
            claim = store.claim(f"{key}.done.{number}", holder="a", fingerprint=None, lease=LONG)
            store.complete(f"{key}.done.{number}", holder="a", fingerprint=None, fence=claim.fence, result=result, retention=3600)
        held = {f"{key}.held.{number}" for number in range(20)}
        for number, name in enumerate(sorted(held)):
            store.claim(name, holder=f"h{number}", fingerprint=None, lease=LONG)
            if number % 2:  # a record with steps has one field more
                store.save_step(name, holder=f"h{number}", name="s", value=result)
        store.claim(f"{key}.idle", holder="a", fingerprint=None, lease=LONG)
        store.release(f"{key}.idle", holder="a", attempts=1)
        before = self._everything(servers)
        assert len(list(store.leases())) == 20  # the servers know the script then
        for client in servers:
            client.config_resetstat()
        listed = list(store.leases())
        assert calls(servers, "evalsha") == 20, "of the others no more than two bytes are read"
        assert sorted(name for name, _ in listed) == sorted(held)
        assert {record.state for _, record in listed} == {RecordState.LEASED}
        assert self._everything(servers) == before
        assert len(before) == 1521

    @staticmethod
    def _everything(servers):
        """Every record, byte for byte, with the time at which it expires; of this test alone."""
        found = {}
        for client in servers:
            for name in client.scan_iter(match="test-*", count=1000):
                found[name] = (client.get(name), client.execute_command("PEXPIRETIME", name))
        return found

    def test_a_store_that_was_closed_opens_itself_again(self, store, key):
        store.claim(key, holder="a", fingerprint=None, lease=LONG)
        store.close()
        assert store.renew([(key, "a")], LONG) == [True]
        store.close()
        assert store.claim(key, holder="a", fingerprint=None, lease=LONG).state is ClaimState.CLAIMED


class TestUnixSocket(RedisContract):
    @pytest.fixture(params=["unix://{}?db={}", "redis+socket://{}?virtual_host={}"], ids=["unix", "redis+socket"])
    def store(self, request, redis_socket, opened, namespace):
        database = next(_databases)
        self.database = database
        return opened(request.param.format(redis_socket, database), namespace)

    @pytest.fixture
    def servers(self, redis_socket, store):
        import redis

        return [redis.Redis(unix_socket_path=str(redis_socket), db=self.database)]


_databases = itertools.count(1)


class TestTls(RedisContract):
    @pytest.fixture
    def database(self):
        return next(_databases)

    @pytest.fixture
    def store(self, redis_tls, opened, namespace, database):
        return opened(redis_tls.url(database), namespace)

    @pytest.fixture
    def servers(self, redis_tls, database):
        import redis

        return [redis.Redis.from_url(redis_tls.url(database))]


class TestSentinel(RedisContract):
    @pytest.fixture
    def database(self):
        return next(_databases)

    @pytest.fixture
    def store(self, redis_sentinel, opened, namespace, database):
        return opened(redis_sentinel.url(database), namespace)

    @pytest.fixture
    def servers(self, redis_sentinel, database):
        return [redis_sentinel.master().client(database)]


class TestCluster(RedisContract):
    @pytest.fixture
    def store(self, redis_cluster, opened, namespace):
        for node in redis_cluster.nodes:  # it has one database for all
            with node.client() as client:
                client.flushall()
        return opened(redis_cluster.url(), namespace)

    @pytest.fixture
    def servers(self, redis_cluster):
        return [node.client() for node in redis_cluster.nodes]

    def test_the_records_are_on_all_nodes(self, store, key, servers):
        for number in range(100):
            store.claim(f"{key}.{number}", holder="a", fingerprint=None, lease=LONG)
        assert all(client.dbsize() > 10 for client in servers)
        assert sum(client.dbsize() for client in servers) == 100


class TestResourcesBehindSentinels(ResourceContract):
    one_step = True

    @pytest.fixture
    def store(self, redis_sentinel, opened, namespace):
        return opened(redis_sentinel.url(next(_databases)), namespace)


class TestResourcesInACluster(ResourceContract):
    @pytest.fixture
    def store(self, redis_cluster, opened, namespace):
        return opened(redis_cluster.url(), namespace)
