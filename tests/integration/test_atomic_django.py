"""Tasks that commit with their completion: one row a key, whatever is killed, frozen or raised; on real databases and workers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import Guardrails
from tests.support import BrokerUnderTest, Ledger, RedisServer, Worker, Workers, consistently, eventually
from tests.support.databases import query
from tests.support.processes import ROOT

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")

from tests.support.django import database_settings

PROJECT = Path(__file__).parent / "atomic_project"
LEASE = 2
#: On Redis what a dead worker held comes back after the visibility timeout and the next sweep.
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


class Site:
    """The project of ``atomic_project`` on one database, and a publisher that knows nothing of its code."""

    def __init__(
        self,
        url: str,
        broker: BrokerUnderTest,
        *,
        queue: str,
        backend: str,
        ledger: Ledger,
        workers: Workers,
        databases: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.url = url
        self.broker = broker
        self.queue = queue
        self.ledger = ledger
        self.workers = workers
        default = database_settings(url)
        if url.startswith("sqlite:"):
            default["OPTIONS"] = {"timeout": 20}
        chosen = {"guardrails_store": "django://default", "guardrails_lease_seconds": LEASE, **settings}
        if broker.kind == "redis":
            chosen.setdefault("broker_transport_options", REDIS)
        strangers = ("CELERY_", "DJANGO_", "ATOMIC_", "GUARDRAILS_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
        self.env |= {
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{ROOT}",
            "DJANGO_SETTINGS_MODULE": "atomic_site.settings",
            "ATOMIC_DATABASES": json.dumps({"default": default, **(databases or {})}),
            "ATOMIC_BROKER_URL": broker.url,
            "ATOMIC_RESULT_BACKEND": backend,
            "ATOMIC_QUEUE": queue,
            "ATOMIC_LEDGER": str(ledger.path),
            "ATOMIC_SETTINGS": json.dumps({name: value for name, value in chosen.items() if value is not None}),
        }
        broker.used += [queue, f"{queue}.dead"]
        self.client = Celery("client", broker=broker.url, backend=backend, set_as_current=False)
        self.client.conf.update(task_default_queue=queue)
        Guardrails(self.client, store="memory://")  # else it would declare the queue without its dead letter exchange

    def migrate(self) -> Site:
        self.manage("migrate", "--run-syncdb", "-v", "0")
        return self

    def manage(self, *arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(command, env={**self.env, **env}, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def shell(self, code: str) -> str:
        return self.manage("shell", "-v", "0", "-c", code).stdout.strip()

    def start(self, **options: Any) -> Worker:
        return self.workers.start("atomic_site", **{**options, "env": {**self.env, **options.get("env", {})}})

    def start_many(self, number: int, **options: Any) -> list[Worker]:
        return self.workers.start_many(number, "atomic_site", **{**options, "env": {**self.env, **options.get("env", {})}})

    def send(self, task: str, *args: Any) -> Any:
        return self.client.send_task(f"effects.tasks.{task}", args)

    def effects(self) -> Counter[str]:
        return Counter(dict(query(self.url, "SELECT key_, count(*) FROM effects_effect GROUP BY key_")))

    def run_of(self, name: str) -> str:
        ((run,),) = query(self.url, f"SELECT run FROM effects_effect WHERE key_ = '{name}'")
        return str(run)

    def states(self) -> Counter[int]:
        return Counter(state for (state,) in query(self.url, "SELECT state FROM guardrails_record"))


@pytest.fixture
def make_site(
    broker: BrokerUnderTest, redis_server: RedisServer, queue: str, ledger: Ledger, workers: Workers
) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(url: str, **settings: Any) -> Site:
        settings.setdefault("backend", redis_server.fresh_url())
        site = Site(url, broker, queue=queue, ledger=ledger, workers=workers, **settings)
        made.append(site)
        return site

    yield make
    workers.destroy()  # before their database goes
    for site in made:
        site.client.close()


@pytest.fixture
def site(make_site: Callable[..., Site], postgres_url: str) -> Site:
    """The project on PostgreSQL."""
    return make_site(postgres_url).migrate()


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def site_anywhere(request: pytest.FixtureRequest, make_site: Callable[..., Site], tmp_path: Path) -> Site:
    """The project on each database."""
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}" if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_url")
    return make_site(url).migrate()


# -- kill -9 --------------------------------------------------------------------------------------------------------


def one_row_each(site: Site, names: list[str], timeout: float = 90) -> None:
    """Wait until every key has completed, and check that it has one row."""
    eventually(lambda: site.states() == {2: len(names)}, timeout, every=0.2, because=lambda: f"all complete; now {site.states()}")
    assert site.effects() == dict.fromkeys(names, 1)


def kill_at_random(site: Site) -> None:
    """Publish many duplicates, kill children and workers at random moments, and see one row for each key."""
    chance = random.Random(7)
    names: list[str] = []
    workers = site.start_many(2, concurrency=3)
    for killed in range(18):
        fresh = [f"k{killed}.{number}" for number in range(2)]
        for name in chance.sample(fresh * 4, 8):
            site.send("record", name, chance.uniform(0, 0.15), chance.uniform(0, 0.15))
        names += fresh
        time.sleep(chance.uniform(0.02, 0.3))
        victim = chance.choice(workers)
        if killed in (6, 12):
            victim.kill()
            workers[workers.index(victim)] = site.start(concurrency=3)
        elif len(children := victim.children()) > 1:  # a pool whose last child goes while it starts gives up
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(children), signal.SIGKILL)
    one_row_each(site, names)
    assert site.broker.depth(f"{site.queue}.dead") == 0


@pytest.mark.long_on("redis")
def test_kills_at_random_moments_under_many_duplicates_leave_one_row_for_each_key(site: Site) -> None:
    kill_at_random(site)


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_on_mariadb_they_leave_one_row_for_each_key_too(make_site: Callable[..., Site], mariadb_url: str) -> None:
    kill_at_random(make_site(mariadb_url).migrate())


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_on_sqlite_they_leave_one_row_for_each_key_too(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(f"sqlite:///{tmp_path / 'db.sqlite3'}").migrate()
    chance = random.Random(7)
    names = [f"k{number}" for number in range(12)]
    worker = site.start(concurrency=1)
    for name in chance.sample(names * 3, 3 * len(names)):
        site.send("record", name, chance.uniform(0, 0.1), chance.uniform(0, 0.1))
    for _ in range(8):
        time.sleep(chance.uniform(0.1, 0.5))
        with contextlib.suppress(ProcessLookupError):
            worker.kill_child()
    one_row_each(site, names)


@pytest.mark.brokers("redis")
def test_a_child_that_dies_right_after_the_commit_has_done_it(site_anywhere: Site) -> None:
    site = site_anywhere
    site.start(concurrency=1)
    result = site.send("hook_dies", "a")
    assert result.get(timeout=30) == site.run_of("a")
    assert site.ledger.count("a", "start") == 1
    assert site.effects() == {"a": 1}


# -- errors ---------------------------------------------------------------------------------------------------------


def test_an_error_rolls_the_effect_back_and_the_next_attempt_does_it(site: Site) -> None:
    site.start()
    run = site.send("fail", "a", 2).get(timeout=30)
    assert site.ledger.count("a", "start") == 3
    assert site.run_of("a") == run


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_the_same_holds_on_every_database(site_anywhere: Site) -> None:
    site = site_anywhere
    site.start(concurrency=1)
    assert site.send("fail", "a").get(timeout=30) == site.run_of("a")
    assert site.send("plain", "b").get(timeout=30) == site.run_of("b")
    assert site.send("plain", "b").get(timeout=30) == site.run_of("b")
    assert site.ledger.counts("start") == {"a": 2, "b": 1}


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_a_task_that_fails_for_good_leaves_no_effect(site: Site) -> None:
    site.start()
    site.send("fail", "a", 99)
    eventually(lambda: site.broker.depth(f"{site.queue}.dead") == 1, 30)
    assert site.effects() == {}


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("database", ["postgres", "mariadb"])
def test_a_step_is_not_repeated_though_the_effects_around_it_were_rolled_back(
    make_site: Callable[..., Site], database: str, request: pytest.FixtureRequest
) -> None:
    site = make_site(request.getfixturevalue(f"{database}_url")).migrate()
    site.start()
    value = site.send("step", "a").get(timeout=30)
    (outside,) = site.ledger.entries(event="outside")
    assert outside.run == value, "the step's value was kept"
    first, second = site.ledger.entries(event="start")
    assert outside.run == first.run
    assert site.run_of("a") == second.run


@pytest.mark.brokers("redis")
def test_an_error_in_an_on_commit_hook_does_not_run_the_task_again(site: Site) -> None:
    worker = site.start()
    assert site.send("hook_fails", "a").get(timeout=30) == site.run_of("a")
    worker.wait_log("has committed all the same")
    assert site.ledger.count("a", "start") == 1


@pytest.mark.brokers("redis")
def test_what_is_published_on_commit_is_published_once_and_not_for_an_attempt_that_was_rolled_back(site: Site) -> None:
    site.start()
    site.send("spawn", "a").get(timeout=30)
    eventually(lambda: site.effects() == {"a": 1, "a.child": 1}, 20)
    assert site.ledger.count("a", "start") == 2
    consistently(lambda: site.ledger.count("a.child", "start") == 1, 0.5)


# -- lost leases ----------------------------------------------------------------------------------------------------


def test_a_worker_that_was_frozen_beyond_its_lease_commits_nothing(site: Site) -> None:
    workers = site.start_many(2, concurrency=1)
    site.send("wait", "a")
    (first,) = site.ledger.wait("written", "a")
    frozen = next(worker for worker in workers if first.pid in worker.children())
    frozen.freeze()
    again = [site.send("wait", "a") for _ in range(4)]  # RabbitMQ gives some of them to the frozen one
    _, second = site.ledger.wait("written", "a", times=2, timeout=30)
    eventually(lambda: site.states() == {2: 1})
    site.ledger.record("go", "a")
    frozen.thaw()
    site.ledger.wait("end", "a", times=2)
    frozen.wait_log("lost the lease of key effect:a")
    assert [result.get(timeout=30) for result in again] == [second.run] * 4
    assert site.run_of("a") == second.run


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("database", ["postgres", pytest.param("mariadb", marks=pytest.mark.chaos)])
def test_a_lease_broken_by_an_operator_rolls_the_effect_back(
    make_site: Callable[..., Site], database: str, request: pytest.FixtureRequest
) -> None:
    site = make_site(request.getfixturevalue(f"{database}_url")).migrate()
    worker = site.start(concurrency=2)
    site.send("wait", "a")
    site.ledger.wait("written", "a")
    again = site.send("wait", "a")
    told = site.shell(
        "from celery import current_app as app\n"
        "((key, record),) = app.guardrails.leases()\n"
        "print(key, app.guardrails.break_lease(key).holder == record.holder)"
    )
    assert told == "effect:a True"
    value = again.get(timeout=30)
    site.ledger.record("go", "a")
    worker.wait_log("lost the lease of key effect:a")
    assert value == site.run_of("a")
    assert value == site.ledger.entries(event="start")[1].run


@pytest.mark.long_on("amqp")
def test_a_task_longer_than_its_lease_keeps_it(site: Site) -> None:
    site.start(concurrency=2)
    long = site.send("record", "a", 0.2, 2.5 * LEASE)
    site.ledger.wait("written", "a")
    again = site.send("record", "a")
    assert long.get(timeout=30) == again.get(timeout=30) == site.run_of("a")
    assert site.ledger.count("a", "start") == 1


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_on_sqlite_a_task_longer_than_its_lease_ends_well_though_it_could_not_be_renewed(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site(f"sqlite:///{tmp_path / 'db.sqlite3'}").migrate()
    site.start(concurrency=1)
    assert site.send("record", "a", 0.2, 2.5 * LEASE).get(timeout=30) == site.run_of("a")
    assert site.ledger.count("a", "start") == 1


# -- the database ---------------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_a_database_that_is_restarted_delays_the_tasks_and_loses_none(make_site: Callable[..., Site], private_postgres: Any) -> None:
    server = private_postgres()
    site = make_site(server.fresh_url()).migrate()
    site.start(concurrency=2)
    names = [f"k{number}" for number in range(20)]
    for name in names:
        site.send("record", name, 0.1, 0.1)
    site.ledger.wait("written", times=3)
    server.kill()
    time.sleep(1.0)  # an outage has a length
    server.start()
    one_row_each(site, names)


@pytest.mark.chaos
@pytest.mark.brokers("redis")
@pytest.mark.parametrize("options", [{"CONN_MAX_AGE": None}, {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}], ids=["for ever", "checked"])
def test_connections_that_are_kept_are_not_shared_with_children(
    make_site: Callable[..., Site], postgres_url: str, options: dict[str, Any]
) -> None:
    kept = {**database_settings(postgres_url), **options}
    site = make_site(postgres_url, databases={"default": kept}, db_reuse_max=10).migrate()
    site.start(concurrency=4)
    names = [f"k{number}" for number in range(40)]
    for name in names * 2:
        site.send("record", name)
    one_row_each(site, names)
    assert site.ledger.counts("start") == dict.fromkeys(names, 1)


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_threads_have_connections_of_their_own(site: Site) -> None:
    site.start(pool="threads", concurrency=4)
    names = [f"k{number}" for number in range(30)]
    for name in names * 2:
        site.send("record", name, 0.0, 0.02)
    one_row_each(site, names)


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_a_router_of_the_project_has_no_say_in_the_store(make_site: Callable[..., Site], postgres_url: str) -> None:
    nowhere = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": 1, "NAME": "nowhere"}
    site = make_site(postgres_url, databases={"replica": nowhere}).migrate()
    site.start()
    assert site.send("fail", "a").get(timeout=30) == site.run_of("a")


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.brokers("redis")
def test_a_store_that_cannot_do_it_is_refused_at_the_workers_start(make_site: Callable[..., Site], tmp_path: Path, redis_url: str) -> None:
    site = make_site(f"sqlite:///{tmp_path / 'db.sqlite3'}", guardrails_store=redis_url)
    worker = site.start(wait=False)
    assert worker.wait(40) != 0
    assert "effects.tasks." in worker.log()
    assert "guardrails_store" in worker.log()
    refused = site.shell(
        "from celery_guardrails import GuardrailsConfigError\n"
        "from effects.tasks import record\n"
        "try: record.delay('a')\n"
        "except GuardrailsConfigError as exc: print(exc)"
    )
    assert "effects.tasks.record: atomic = True" in refused
    assert "guardrails_store" in refused
    done = site.manage("check", code=1)
    assert "guardrails.E002" in done.stderr
    assert "effects.tasks.record" in done.stderr
    assert site.broker.depth(site.queue) == 0


@pytest.mark.brokers("redis")
def test_a_database_that_does_not_hold_the_records_is_refused_at_the_workers_start(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(f"sqlite:///{tmp_path / 'db.sqlite3'}").migrate()
    worker = site.start(wait=False, env={"ATOMIC_WRONG_DATABASE": "1"})
    assert worker.wait(40) != 0
    assert "'elsewhere'" in worker.log()
    assert "guardrails.E002" in site.manage("check", code=1, ATOMIC_WRONG_DATABASE="1").stderr


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_a_table_that_is_missing_delays_the_tasks_until_it_is_made(make_site: Callable[..., Site], postgres_url: str) -> None:
    site = make_site(postgres_url)
    assert "guardrails.W002" in site.manage("check", "--database", "default").stderr
    worker = site.start()
    result = site.send("record", "a")
    worker.wait_log("python manage.py migrate")
    site.migrate()
    assert result.get(timeout=40) == site.run_of("a")
    assert "no issues" in site.manage("check", "--database", "default").stdout


# -- the default ----------------------------------------------------------------------------------------------------


@pytest.mark.brokers("amqp")
def test_without_a_redis_the_store_is_the_default_database(make_site: Callable[..., Site], postgres_url: str) -> None:
    site = make_site(postgres_url, backend="cache+memory://", guardrails_store=None).migrate()
    assert site.shell("from celery import current_app as app; print(app.guardrails.store_url)") == "django://default"
    site.start()
    site.send("record", "a")
    eventually(lambda: site.states() == {2: 1}, 20)
    assert site.effects() == {"a": 1}


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_with_a_redis_the_store_is_that(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(f"sqlite:///{tmp_path / 'db.sqlite3'}", guardrails_store=None)
    assert site.shell("from celery import current_app as app; print(app.guardrails.store_url)") == site.broker.url


# -- pruning --------------------------------------------------------------------------------------------------------


@pytest.mark.brokers("redis")
def test_a_worker_deletes_records_whose_time_is_over(make_site: Callable[..., Site], postgres_url: str) -> None:
    site = make_site(postgres_url, guardrails_result_retention=1).migrate()
    site.start()
    for number in range(5):
        site.send("record", f"k{number}")
    eventually(lambda: sum(site.effects().values()) == 5, 20)
    time.sleep(1.2)  # what is pruned is what the database's own clock says is over
    site.start()
    eventually(lambda: site.states() == {}, 20)
