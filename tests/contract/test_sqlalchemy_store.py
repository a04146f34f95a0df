# ruff: noqa: PT012 - a block that commits where it ends is what raises
"""The store on SQLAlchemy, on every database it is for, and bodies that commit with their completion."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from celery_guardrails import Guardrails, GuardrailsConfigError, GuardrailsError, StoreUnavailable
from celery_guardrails.contrib.sqlalchemy import SQLAlchemyStore, metadata, record_table, session, use_session
from celery_guardrails.policy.lease import ClaimState, RecordState, StoredResult
from celery_guardrails.ports import IdempotencyStore, TransactionalStore
from celery_guardrails.stores import open_store
from celery_guardrails.testing.resource_contract import ResourceContract
from celery_guardrails.testing.store_contract import StoreContract

RESULT = StoredResult("application/json", "utf-8", b"1", "t")


class Base(DeclarativeBase):
    pass


class Charge(Base):
    __tablename__ = "charge"
    id: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str] = mapped_column(sa.String(100), unique=True)


@pytest.fixture(scope="module")
def postgres_store_url(postgres: Any) -> Iterator[str]:
    url = postgres.fresh_url()
    yield "sqlalchemy+" + url.replace("postgresql://", "postgresql+psycopg://")
    postgres.drop(url)


@pytest.fixture(scope="module")
def psycopg2_store_url(postgres_store_url: str) -> str:
    return postgres_store_url.replace("+psycopg:", "+psycopg2:")


@pytest.fixture(scope="module")
def mariadb_store_url(mariadb: Any) -> Iterator[str]:
    url = mariadb.fresh_url()
    yield "sqlalchemy+" + url.replace("mysql://", "mysql+pymysql://")
    mariadb.drop(url)


@pytest.fixture(scope="module")
def sqlite_store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlalchemy+sqlite:///{tmp_path_factory.mktemp('sqlite')}/store.db"


class Everywhere:
    """One class a database; ``url_fixture`` names it."""

    url_fixture = ""

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue(self.url_fixture))

    @pytest.fixture
    def store(self, url: str) -> Iterator[SQLAlchemyStore]:
        store = open_store(url, namespace=f"test-{uuid.uuid4().hex}")
        assert isinstance(store, SQLAlchemyStore)
        yield store
        store.close()


class Atomic(Everywhere):
    """What a transaction promises."""

    @pytest.fixture
    def order(self) -> str:
        return uuid.uuid4().hex

    @pytest.fixture
    def engine(self, url: str) -> Iterator[sa.Engine]:
        engine = sa.create_engine(url.partition("+")[2])
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()

    def charges(self, engine: sa.Engine, order: str) -> int:
        with Session(engine) as other:
            return other.query(Charge).filter_by(order=order).count()

    def claimed(self, store: IdempotencyStore, key: str) -> int:
        claim = store.claim(key, holder="a", fingerprint=None, lease=30)
        assert claim.state is ClaimState.CLAIMED
        return claim.fence

    def complete(self, transaction: Any, key: str, fence: int) -> bool:
        return bool(transaction.complete(key, holder="a", fingerprint=None, fence=fence, result=RESULT, retention=30))

    def test_effect_and_completion_commit_together(self, store, engine, order) -> None:
        fence = self.claimed(store, order)
        with store.transaction(None) as transaction:
            session().add(Charge(order=order))
            assert self.complete(transaction, order, fence)
            if not store.dialect.own_writer:
                assert store.lookup(order).state is RecordState.LEASED, "nobody sees it before the commit"
        assert self.charges(engine, order) == 1
        assert store.lookup(order).state is RecordState.COMPLETED

    def test_an_error_takes_both_back(self, store, engine, order) -> None:
        fence = self.claimed(store, order)
        with pytest.raises(ZeroDivisionError), store.transaction(None) as transaction:
            session().add(Charge(order=order))
            assert self.complete(transaction, order, fence)
            raise ZeroDivisionError
        assert self.charges(engine, order) == 0
        assert store.lookup(order).state is RecordState.LEASED

    def test_a_lease_that_is_anothers_is_not_completed(self, store, engine, order) -> None:
        fence = self.claimed(store, order)
        store.break_lease(order)
        store.claim(order, holder="b", fingerprint=None, lease=30)
        with pytest.raises(RuntimeError), store.transaction(None) as transaction:
            session().add(Charge(order=order))
            assert not self.complete(transaction, order, fence)
            raise RuntimeError
        assert store.lookup(order).holder == "b"
        assert self.charges(engine, order) == 0

    def test_what_the_body_has_left_to_write_fails_as_its_own_error(self, store, engine, order) -> None:
        with Session(engine) as other:
            other.add(Charge(order=order))
            other.commit()
        fence = self.claimed(store, order)
        with pytest.raises(sa.exc.IntegrityError), store.transaction(None) as transaction:
            session().add(Charge(order=order))
            self.complete(transaction, order, fence)
        assert store.lookup(order).state is RecordState.LEASED

    def test_a_commit_within_the_body_is_refused_and_a_savepoint_is_not(self, store, engine, order) -> None:
        fence = self.claimed(store, order)
        with pytest.raises(GuardrailsError, match="atomic=True"), store.transaction(None):
            session().add(Charge(order=order))
            session().commit()
        assert self.charges(engine, order) == 0
        with store.transaction(None) as transaction:
            with session().begin_nested():
                session().add(Charge(order=order))
            with pytest.raises(sa.exc.IntegrityError), session().begin_nested():
                session().add(Charge(order=order))
                session().flush()
            assert self.complete(transaction, order, fence)
        assert self.charges(engine, order) == 1

    def test_a_step_survives_the_rollback_of_the_body(self, store, engine, order) -> None:
        self.claimed(store, order)
        with pytest.raises(ZeroDivisionError), store.transaction(None):
            session().add(Charge(order=order))
            session().flush()
            assert store.save_step(order, holder="a", name="gateway", value=RESULT)
            raise ZeroDivisionError
        # SQLite has one writer: there the step is a part of the transaction
        assert set(store.lookup(order).steps) == (set() if store.dialect.own_writer else {"gateway"})

    def test_sessions_of_the_projects_own(self, store, engine, order) -> None:
        registry = scoped_session(sessionmaker(engine))
        rails = Guardrails(Celery(set_as_current=False), store="memory://")
        use_session(rails, registry)
        rails._store_hooks[0](store)
        fence = self.claimed(store, order)
        with store.transaction(None) as transaction:
            registry.add(Charge(order=order))
            assert session() is registry()
            assert self.complete(transaction, order, fence)
        assert self.charges(engine, order) == 1
        registry.commit()
        registry.remove()


class AtomicWithLockedRows(Atomic):
    """What holds where a transaction locks rows and not the whole database."""

    def test_while_a_body_commits_other_leases_are_renewed_and_its_own_counts_as_held(self, store, engine, order) -> None:
        fence = self.claimed(store, order)
        store.claim(f"{order}-2", holder="b", fingerprint=None, lease=30)
        until = store.lookup(f"{order}-2").until
        with store.transaction(None) as transaction:
            self.complete(transaction, order, fence)
            answers: list[list[bool]] = []
            renewing = threading.Thread(target=lambda: answers.append(store.renew([(order, "a"), (f"{order}-2", "b")], 60)))
            renewing.start()
            renewing.join(10)
            assert answers == [[True, True]], "the renewal waited for the row that a task has locked"
        assert store.lookup(f"{order}-2").until > until + 20


class TestSqlite(StoreContract, Everywhere):
    url_fixture = "sqlite_store_url"


class TestPostgreSQL(StoreContract, Everywhere):
    url_fixture = "postgres_store_url"


class TestPostgreSQLWithPsycopg2(StoreContract, Everywhere):
    url_fixture = "psycopg2_store_url"


class TestMariaDB(StoreContract, Everywhere):
    url_fixture = "mariadb_store_url"


class Resources(ResourceContract, Everywhere):
    crowd = 40


class TestResourcesOnSqlite(Resources):
    url_fixture = "sqlite_store_url"


class TestResourcesOnPostgreSQL(Resources):
    url_fixture = "postgres_store_url"


class TestResourcesOnMariaDB(Resources):
    url_fixture = "mariadb_store_url"


class TestAtomicOnSqlite(Atomic):
    url_fixture = "sqlite_store_url"


class TestAtomicOnPostgreSQL(AtomicWithLockedRows):
    url_fixture = "postgres_store_url"


class TestAtomicOnMariaDB(AtomicWithLockedRows):
    url_fixture = "mariadb_store_url"


# -- the store by itself ----------------------------------------------------------------------------------------------


def test_it_is_transactional_and_needs_pruning(sqlite_store_url: str) -> None:
    store = open_store(sqlite_store_url, namespace="x")
    assert isinstance(store, TransactionalStore)
    assert isinstance(store, SQLAlchemyStore)
    assert store.needs_pruning


def test_a_database_in_memory_is_for_one_process() -> None:
    store = open_store("sqlalchemy+sqlite://", namespace="x")
    assert isinstance(store, SQLAlchemyStore)
    assert store.one_process_only


@pytest.mark.parametrize(
    "url", ["sqlalchemy+oracle://u:secret@h/d", "sqlalchemy+nonsense://u:secret@h/d", "sqlalchemy+", "sqlalchemy+mysql+nodriver://u:secret@h/d"]
)
def test_a_url_that_it_cannot_use_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(GuardrailsConfigError, match="guardrails_store = ") as caught:
        open_store(url, namespace="x")
    assert "secret" not in str(caught.value)


def test_a_database_that_is_away_says_so_and_nothing_else() -> None:
    store = open_store("sqlalchemy+postgresql+psycopg://nobody:secret@127.0.0.1:1/none", namespace="x")
    calls: list[Callable[[], Any]] = [
        lambda: store.claim("k", holder="a", fingerprint=None, lease=1),
        lambda: store.renew([("k", "a")], 1),
        lambda: store.lookup("k"),
        store.ping,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="guardrails_store") as caught:
            call()
        assert "secret" not in str(caught.value)


def test_a_server_that_was_restarted_is_asked_again(private_postgres: Callable[..., Any]) -> None:
    server = private_postgres()
    url = server.fresh_url().replace("postgresql://", "postgresql+psycopg://")
    store = open_store(f"sqlalchemy+{url}", namespace="x")
    store.claim("k", holder="a", fingerprint=None, lease=30)
    server.kill()
    with pytest.raises(StoreUnavailable):
        store.claim("k", holder="a", fingerprint=None, lease=30)
    server.start()
    assert store.claim("k", holder="a", fingerprint=None, lease=30).state is ClaimState.CLAIMED
    store.close()


def test_many_processes_may_make_the_table_at_once(tmp_path: Path, postgres_url: str) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    failed: list[BaseException] = []
    gate = threading.Barrier(8)

    def begin() -> None:
        store = SQLAlchemyStore(url, namespace="x")
        gate.wait()
        try:
            store.ping()
        except BaseException as exc:  # noqa: BLE001 - told below
            failed.append(exc)
        store.close()

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_session_of_another_database_is_refused(tmp_path: Path) -> None:
    store = open_store(f"sqlalchemy+sqlite:///{tmp_path}/one.db", namespace="x")
    assert isinstance(store, SQLAlchemyStore)
    store.source = sessionmaker(sa.create_engine(f"sqlite:///{tmp_path}/two.db"))
    with pytest.raises(GuardrailsConfigError, match=r"one\.db"), store.transaction(None):
        pass


def test_the_name_of_a_database_is_refused(tmp_path: Path) -> None:
    store = open_store(f"sqlalchemy+sqlite:///{tmp_path}/one.db", namespace="x")
    assert isinstance(store, SQLAlchemyStore)
    with pytest.raises(GuardrailsConfigError, match="atomic = 'other'"), store.transaction("other"):
        pass


def test_session_outside_of_an_atomic_task_says_so() -> None:
    with pytest.raises(GuardrailsError, match="atomic=True"):
        session()


def test_the_table_is_there_for_migrations() -> None:
    assert metadata.tables["guardrails_record"] is record_table
