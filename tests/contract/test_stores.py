"""Every store passes the one suite."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from celery_guardrails.errors import GuardrailsConfigError, StoreUnavailable
from celery_guardrails.ports import IdempotencyStore
from celery_guardrails.stores import open_store
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.resource_contract import ResourceContract
from celery_guardrails.testing.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> IdempotencyStore:
        return MemoryStore()


class TestRedisStore(StoreContract):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[IdempotencyStore]:
        store = open_store(redis_url, namespace=f"test-{uuid.uuid4().hex}")
        yield store
        store.close()

    def test_a_store_that_is_away_says_so_and_nothing_else(self) -> None:
        store = open_store("redis://127.0.0.1:1/0", namespace="away")
        for call in (
            lambda: store.claim("k", holder="a", fingerprint=None, lease=1),
            lambda: store.release("k", holder="a"),
            lambda: store.renew([("k", "a")], 1),
            lambda: store.lookup("k"),
            lambda: store.forget("k"),
            store.ping,
        ):
            with pytest.raises(StoreUnavailable, match="guardrails_store"):
                call()

    def test_a_server_that_forgot_its_scripts_is_taught_again(self, store: IdempotencyStore, redis_url: str) -> None:
        import redis

        store.claim("scripts", holder="a", fingerprint=None, lease=30)
        assert store.renew([("scripts", "a")], 30) == [True]
        redis.Redis.from_url(redis_url).script_flush()
        assert store.renew([("scripts", "a")], 30) == [True]
        redis.Redis.from_url(redis_url).script_flush()
        assert store.release("scripts", holder="a") is not None


class TestResourcesInMemory(ResourceContract):
    one_step = True

    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


class TestResourcesInRedis(ResourceContract):
    one_step = True

    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[IdempotencyStore]:
        store = open_store(redis_url, namespace=f"test-{uuid.uuid4().hex}")
        yield store
        store.close()


@pytest.mark.parametrize("url", ["mongodb://x", "nothing", "redis+nowhere://"])
def test_an_unknown_store_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(GuardrailsConfigError, match="guardrails_store = .*redis://"):
        open_store(url, namespace="x")


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(GuardrailsConfigError) as caught:
        open_store("mongodb://user:secret@host", namespace="x")
    assert "secret" not in str(caught.value)
