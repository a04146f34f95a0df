"""Every store beside the model, in histories that hypothesis makes up."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_guardrails.ports import IdempotencyStore
from celery_guardrails.stores import open_store
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.clock import FakeClock
from celery_guardrails.testing.store_machine import StoreMachineContract


class TestMemoryStore(StoreMachineContract):
    examples = 80

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def store(self, clock: FakeClock) -> IdempotencyStore:
        return MemoryStore(now=clock.now)


class TestRedisStore(StoreMachineContract):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[IdempotencyStore]:
        store = open_store(redis_url, namespace=f"test-{uuid.uuid4().hex}")
        yield store
        store.close()


class SqlMachine(StoreMachineContract):
    examples = 8

    @pytest.fixture
    def store(self, url: str) -> Iterator[IdempotencyStore]:
        store = open_store(f"sqlalchemy+{url}", namespace="machine")
        yield store
        store.close()


class TestSqliteStore(SqlMachine):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'db.sqlite3'}"


class TestPostgresStore(SqlMachine):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url.replace("postgresql:", "postgresql+psycopg:")


class TestMariaStore(SqlMachine):
    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url.replace("mysql:", "mysql+pymysql:")


class TestDjangoStore(StoreMachineContract):
    examples = 8

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[IdempotencyStore]:
        dj = pytest.importorskip("tests.support.django", reason="pip install 'celery-guardrails[django]'")
        with dj.database("machine", f"sqlite:///{tmp_path / 'db.sqlite3'}") as alias:
            store = open_store(f"django://{alias}", namespace="machine")
            yield store
            store.close()
