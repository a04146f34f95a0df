"""The store in a Django database passes the suite on every database, and keeps to its connections."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_guardrails.errors import GuardrailsConfigError, StoreUnavailable
from celery_guardrails.policy.lease import ClaimState, RecordState, StoredResult
from celery_guardrails.ports import IdempotencyStore, TransactionalStore
from celery_guardrails.stores import open_store
from celery_guardrails.testing.resource_contract import ResourceContract
from celery_guardrails.testing.store_contract import StoreContract
from tests.support import free_port
from tests.support.postgres import POSTGRES_VARIABLE
from tests.support.processes import ROOT

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")

from django.db import connections, transaction

from tests.support import django as dj

LONG = 30.0
RESULT = StoredResult("application/json", "utf-8", b"42", "task-1")


def opened(alias: str) -> Any:
    return open_store(f"django://{alias}", namespace=f"test-{uuid.uuid4().hex}")


class DjangoContract(StoreContract):
    @pytest.fixture
    def store(self, alias: str) -> Iterator[IdempotencyStore]:
        store = opened(alias)
        yield store
        store.close()


@pytest.fixture(scope="module")
def sqlite_alias(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dj.database("sqlite", f"sqlite:///{tmp_path_factory.mktemp('db') / 'db.sqlite3'}", OPTIONS={"timeout": 20}) as alias:
        yield alias


@pytest.fixture(scope="module")
def postgres_alias(postgres: Any) -> Iterator[str]:
    url = postgres.fresh_url()
    with dj.database("postgres", url) as alias:
        yield alias
    postgres.drop(url)


@pytest.fixture(scope="module")
def mariadb_alias(mariadb: Any) -> Iterator[str]:
    url = mariadb.fresh_url()
    with dj.database("mariadb", url, OPTIONS={"charset": "utf8mb4"}) as alias:  # Django 5.0's default
        yield alias
    mariadb.drop(url)


class TestDjangoStoreOnSQLite(DjangoContract):
    @pytest.fixture
    def alias(self, sqlite_alias: str) -> str:
        return sqlite_alias


class TestDjangoStoreOnPostgreSQL(DjangoContract):
    @pytest.fixture
    def alias(self, postgres_alias: str) -> str:
        return postgres_alias


class TestDjangoStoreOnMariaDB(DjangoContract):
    @pytest.fixture
    def alias(self, mariadb_alias: str) -> str:
        return mariadb_alias


class DjangoResources(ResourceContract):
    crowd = 40

    @pytest.fixture
    def store(self, alias: str) -> Iterator[IdempotencyStore]:
        store = opened(alias)
        yield store
        store.close()


class TestDjangoResourcesOnSQLite(DjangoResources):
    @pytest.fixture
    def alias(self, sqlite_alias: str) -> str:
        return sqlite_alias


@pytest.mark.chaos  # `make test` has the same SQL on this database through SQLAlchemy
class TestDjangoResourcesOnPostgreSQL(DjangoResources):
    @pytest.fixture
    def alias(self, postgres_alias: str) -> str:
        return postgres_alias


@pytest.mark.chaos  # `make test` has the same SQL on this database through SQLAlchemy
class TestDjangoResourcesOnMariaDB(DjangoResources):
    @pytest.fixture
    def alias(self, mariadb_alias: str) -> str:
        return mariadb_alias


@pytest.fixture(scope="module")
def bound_alias(postgres_alias: str) -> Iterator[str]:
    if dj.psycopg_version() < 3:
        pytest.skip("psycopg 2 has no server-side binding")
    with dj.database("bound", dj.url_of(postgres_alias), migrate=False, OPTIONS={"server_side_binding": True}) as alias:
        yield alias


class TestDjangoStoreWithServerSideBinding(DjangoContract):
    """Parameters travel beside the statement, so PostgreSQL must find out their types."""

    @pytest.fixture
    def alias(self, bound_alias: str) -> str:
        return bound_alias


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def any_alias(request: pytest.FixtureRequest) -> str:
    alias: str = request.getfixturevalue(f"{request.param}_alias")
    return alias


@pytest.fixture(params=["postgres", "mariadb"])
def server_alias(request: pytest.FixtureRequest) -> str:
    alias: str = request.getfixturevalue(f"{request.param}_alias")
    return alias


def claimed(store: IdempotencyStore, key: str = "k", holder: str = "a", lease: float = LONG) -> int:
    claim = store.claim(key, holder=holder, fingerprint=None, lease=lease)
    assert claim.state is ClaimState.CLAIMED
    return claim.fence


def complete(where: Any, fence: int, key: str = "k", holder: str = "a") -> bool:
    done: bool = where.complete(key, holder=holder, fingerprint=None, fence=fence, result=RESULT, retention=LONG)
    return done


def state(store: IdempotencyStore, key: str = "k") -> RecordState:
    record = store.lookup(key)
    assert record is not None
    return record.state


def elsewhere(call: Any) -> Any:
    """Call it in another thread, which has connections of its own."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(call())
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert answers, "it failed, or waits"
    return answers[0]


@contextlib.contextmanager
def rolled_back(block: Any) -> Iterator[Any]:
    """Run in a transaction that ends with an error."""
    with contextlib.suppress(ZeroDivisionError), block as inside:
        yield inside
        raise ZeroDivisionError


def session_of(connection: Any) -> int:
    """Return the server's number of a connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()" if connection.vendor == "postgresql" else "SELECT connection_id()")
        number: int = cursor.fetchone()[0]
        return number


def end_session(alias: str, number: int) -> None:
    def end() -> bool:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"SELECT pg_terminate_backend({number})" if connections[alias].vendor == "postgresql" else f"KILL {number}")
        return True

    assert elsewhere(end)


# -- transactions ---------------------------------------------------------------------------------------------------


def test_a_completion_in_a_transaction_takes_effect_with_its_commit(any_alias: str) -> None:
    store = opened(any_alias)
    fence = claimed(store)
    with store.transaction(None) as body:
        assert complete(body, fence)
        if any_alias != "sqlite":
            assert elsewhere(lambda: state(store)) is RecordState.LEASED
    assert state(store) is RecordState.COMPLETED
    assert store.claim("k", holder="b", fingerprint=None, lease=LONG).result == RESULT


def test_a_completion_in_a_transaction_is_rolled_back_with_it(any_alias: str) -> None:
    store = opened(any_alias)
    fence = claimed(store)
    with rolled_back(store.transaction(any_alias)) as body:
        assert complete(body, fence)
    assert state(store) is RecordState.LEASED


def test_a_holder_that_lost_its_lease_cannot_complete_in_a_transaction(any_alias: str) -> None:
    store = opened(any_alias)
    fence = claimed(store)
    store.break_lease("k")
    claimed(store, holder="b")
    with store.transaction(None) as body:
        assert not complete(body, fence)
    record = store.lookup("k")
    assert record is not None
    assert (record.state, record.holder) == (RecordState.LEASED, "b")


def test_a_lease_that_is_taken_over_during_the_transaction_is_seen_at_its_end(server_alias: str) -> None:
    store = opened(server_alias)
    fence = claimed(store)
    with store.transaction(None) as body:
        with connections[server_alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM guardrails_record")  # where a snapshot is taken, it is taken here
        elsewhere(lambda: (store.break_lease("k"), claimed(store, holder="b")))
        assert not complete(body, fence)


def test_a_recovery_point_survives_the_rollback_of_the_transaction_around_it(server_alias: str) -> None:
    store = opened(server_alias)
    claimed(store)
    with rolled_back(store.transaction(None)):
        assert store.save_step("k", holder="a", name="paid", value=RESULT)
    assert list(store.lookup("k").steps) == ["paid"]


def test_on_sqlite_a_recovery_point_is_rolled_back_with_the_transaction_and_does_not_wait_for_it(sqlite_alias: str) -> None:
    store = opened(sqlite_alias)
    claimed(store)
    with rolled_back(store.transaction(None)):
        assert store.save_step("k", holder="a", name="paid", value=RESULT)
    assert list(store.lookup("k").steps) == []


def test_a_recovery_point_in_a_transaction_does_not_hold_up_the_renewal_of_the_lease(server_alias: str) -> None:
    store = opened(server_alias)
    claimed(store)
    with store.transaction(None):
        assert store.save_step("k", holder="a", name="paid", value=RESULT)
        assert elsewhere(lambda: store.renew([("k", "a")], LONG)) == [True]


def test_a_task_that_is_about_to_commit_does_not_hold_up_the_renewal_of_the_others(server_alias: str) -> None:
    store = opened(server_alias)
    fence = claimed(store)
    claimed(store, "other")
    with store.transaction(None) as body:
        assert complete(body, fence)
        assert elsewhere(lambda: store.renew([("k", "a"), ("other", "a")], LONG)) == [True, True]


def test_a_transaction_on_sqlite_waits_for_another_writer_instead_of_failing(sqlite_alias: str) -> None:
    store = opened(sqlite_alias)
    fence = claimed(store)
    begun, end = threading.Event(), threading.Event()

    def write() -> None:
        with transaction.atomic(using=sqlite_alias), connections[sqlite_alias].cursor() as cursor:
            cursor.execute("DELETE FROM guardrails_record WHERE id = ''")
            begun.set()
            end.wait(10)
        connections.close_all()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(10)
    threading.Timer(0.3, end.set).start()
    with store.transaction(None) as body:
        with connections[sqlite_alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM guardrails_record")  # it would be a reader only
            cursor.fetchall()
        assert complete(body, fence)
    thread.join()


def test_another_database_than_the_records_is_refused_with_both_names(any_alias: str) -> None:
    store = opened(any_alias)
    assert isinstance(store, TransactionalStore)
    with pytest.raises(GuardrailsConfigError, match=f"'elsewhere'.*'{any_alias}'.*guardrails_store"):
        store.transaction("elsewhere")


def test_a_transaction_that_would_not_be_the_outermost_is_refused(any_alias: str) -> None:
    store = opened(any_alias)
    with transaction.atomic(using=any_alias), pytest.raises(GuardrailsConfigError, match="AUTOCOMMIT"), store.transaction(None):
        pass


# -- connections ----------------------------------------------------------------------------------------------------


def test_outside_of_a_transaction_the_store_uses_djangos_own_connection(server_alias: str) -> None:
    store = opened(server_alias)
    claimed(store)
    assert store._mine.second is None
    own = connections[server_alias]
    before = session_of(own)
    store.lookup("k")
    assert session_of(own) == before


def test_the_second_connection_is_closed_with_the_transaction(server_alias: str) -> None:
    store = opened(server_alias)
    claimed(store)
    with store.transaction(None):
        store.lookup("k")
        second = store._mine.second
        number = session_of(second)
        assert number != session_of(connections[server_alias])
        store.lookup("k")
        assert session_of(second) == number
    assert second.connection is None


@pytest.mark.parametrize(("max_age", "kept"), [(0, False), (60, True), (None, True)])
def test_outside_of_a_task_the_second_connection_lives_as_conn_max_age_says(
    server_alias: str, max_age: int | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(server_alias)
    claimed(store)
    monkeypatch.setitem(connections[server_alias].settings_dict, "CONN_MAX_AGE", max_age)
    with transaction.atomic(using=server_alias):
        assert store.lookup("k") is not None
        assert (store._mine.second.connection is not None) is kept
    store.close()
    assert store._mine.second.connection is None


def test_what_is_written_inside_of_a_block_of_the_projects_own_survives_its_rollback(server_alias: str) -> None:
    store = opened(server_alias)
    with rolled_back(transaction.atomic(using=server_alias)):
        claimed(store)
    assert state(store) is RecordState.LEASED


def test_with_autocommit_switched_off_the_store_still_commits(server_alias: str) -> None:
    store = opened(server_alias)
    transaction.set_autocommit(False, using=server_alias)
    try:
        claimed(store)
        transaction.rollback(using=server_alias)
    finally:
        transaction.set_autocommit(True, using=server_alias)
    assert state(store) is RecordState.LEASED


def test_a_connection_that_died_is_replaced_within_the_call(server_alias: str) -> None:
    store = opened(server_alias)
    claimed(store)
    end_session(server_alias, session_of(connections[server_alias]))
    assert state(store) is RecordState.LEASED
    with transaction.atomic(using=server_alias):
        connections[server_alias].settings_dict["CONN_MAX_AGE"] = None
        try:
            store.lookup("k")
            end_session(server_alias, session_of(store._mine.second))
            assert store.renew([("k", "a")], LONG) == [True]
        finally:
            connections[server_alias].settings_dict["CONN_MAX_AGE"] = 0
            store.close()


def test_a_statement_that_was_interrupted_leaves_no_answer_behind(server_alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(server_alias)
    claimed(store)
    before = session_of(connections[server_alias])

    class SoftTimeLimit(Exception):
        pass

    def interrupted(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        execute(sql, params, many, context)
        raise SoftTimeLimit

    with connections[server_alias].execute_wrapper(interrupted), pytest.raises(SoftTimeLimit):
        store.lookup("k")
    assert session_of(connections[server_alias]) != before


# -- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_a_database_that_is_away_is_told_and_nothing_else(scheme: str) -> None:
    with dj.database(f"away-{scheme}", f"{scheme}://nobody@127.0.0.1:{free_port()}/nothing", migrate=False) as alias:
        store = opened(alias)
        for call in (
            lambda: store.claim("k", holder="a", fingerprint=None, lease=1),
            lambda: store.complete("k", holder="a", fingerprint=None, fence=1, result=RESULT, retention=1),
            lambda: store.release("k", holder="a"),
            lambda: store.reset("k"),
            lambda: store.renew([("k", "a")], 1),
            lambda: store.save_step("k", holder="a", name="s", value=RESULT),
            lambda: store.lookup("k"),
            lambda: store.forget("k"),
            lambda: list(store.leases()),
            lambda: store.break_lease("k"),
            lambda: store.prune(1),
            store.now,
            store.ping,
        ):
            with pytest.raises(StoreUnavailable, match=f"guardrails_store = 'django://{alias}'"):
                call()


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_a_table_that_is_missing_is_told_with_the_command_that_makes_it(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.sqlite3'}" if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")
    with dj.database(f"empty-{kind}", url, migrate=False) as alias:
        store = opened(alias)
        for call in (store.ping, lambda: store.claim("k", holder="a", fingerprint=None, lease=1), lambda: store.renew([("k", "a")], 1)):
            with pytest.raises(StoreUnavailable, match=f"guardrails_record.*python manage.py migrate --database {alias}"):
                call()


@pytest.mark.parametrize("url", ["django://nowhere", "django://default/path", "django://default?x=1"])
def test_a_wrong_url_is_refused_with_what_is_allowed(url: str, sqlite_alias: str) -> None:
    with pytest.raises(GuardrailsConfigError, match="guardrails_store = .*(allowed are .*'default'.*'sqlite'|django://default)"):
        open_store(url, namespace="x")


def test_a_database_in_memory_serves_one_process_only() -> None:
    dj.configure()
    assert opened("default").one_process_only
    assert opened("").alias == "default"


def test_a_file_serves_many_processes(sqlite_alias: str) -> None:
    assert not opened(sqlite_alias).one_process_only


def test_a_server_that_comes_back_is_used_again(private_postgres: Any) -> None:
    server = private_postgres()
    with dj.database("restarted", server.fresh_url()) as alias:
        store = opened(alias)
        claimed(store)
        server.kill()
        with pytest.raises(StoreUnavailable):
            store.lookup("k")
        server.start()
        assert state(store) is RecordState.LEASED


# -- the table ------------------------------------------------------------------------------------------------------


def test_the_migrations_are_what_the_models_say() -> None:
    from django.core.management import call_command

    dj.configure()
    call_command("makemigrations", "guardrails", check=True, dry_run=True, verbosity=0)


def test_the_tables_columns_are_the_models(any_alias: str) -> None:
    from celery_guardrails.contrib.django.models import IdempotencyRecord

    store = opened(any_alias)
    claimed(store, "a key")
    (found,) = IdempotencyRecord.objects.using(any_alias).filter(namespace=store._namespace)
    assert (str(found), found.get_state_display(), found.holder) == ("a key", "leased", "a")
    assert found.until_us - found.claimed_us == pytest.approx(LONG * 1e6, abs=1000)


def test_the_migration_can_be_taken_back(postgres_url: str) -> None:
    from django.core.management import call_command

    with dj.database("backwards", postgres_url) as alias:
        call_command("migrate", "guardrails", "zero", database=alias, verbosity=0)
        assert not [name for name in connections[alias].introspection.table_names() if name.startswith("guardrails_")]


def test_postgresql_keeps_no_second_index_on_the_key(postgres_alias: str) -> None:
    with connections[postgres_alias].cursor() as cursor:
        cursor.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'guardrails_record' ORDER BY 1")
        assert [name for (name,) in cursor.fetchall()] == ["guardrails_record_expires", "guardrails_record_pkey"]


# -- drivers --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(dj.PSYCOPG2_VARIABLE in os.environ, reason="this is the run of the other test")
def test_everything_holds_with_psycopg_2_too(postgres: Any) -> None:
    pytest.importorskip("psycopg2")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "PostgreSQL or (postgres and not mariadb)"]
    environment = {**os.environ, dj.PSYCOPG2_VARIABLE: "1", POSTGRES_VARIABLE: postgres.admin_url}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
