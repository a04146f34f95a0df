"""Fixtures of all tests: brokers, workers, the ledger, an app deployed on them.

A server that cannot be had skips a test on a laptop, with what to install; under ``make`` and in CI it fails it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from tests.support import BrokerUnderTest, Deployment, Ledger, Proxy, RabbitNode, RedisServer, Workers
from tests.support.http import HttpServer
from tests.support.mariadb import MariaDatabases, MariaServer, find_mariadb, mariadb_databases, mariadb_program
from tests.support.own_server import OwnServer
from tests.support.postgres import PostgresDatabases, PostgresServer, find_postgres, postgres_databases, postgres_programs
from tests.support.provision import AMQP_MEND, MARIADB_MEND, POSTGRES_MEND, REDIS_MEND, foreign_amqp
from tests.support.rabbitmq import find_scripts
from tests.support.redis import find_server

HERE = Path(__file__).parent
KINDS = ("unit", "contract", "integration", "chaos", "simulation", "smoke", "typing")
APPS = "tests.integration.apps"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with the kind that its directory says."""
    for item in items:
        if HERE in item.path.parents:
            kind = item.path.relative_to(HERE).parts[0]
            if kind in KINDS:
                item.add_marker(kind)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Start what several tests share in one of xdist's processes only (its own ``loadgroup`` does nothing under pytest 9.2)."""
    from tests.support.scheduling import OneSetOfWorkers

    return OneSetOfWorkers(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Show the workers' logs and the ledger with a failed test."""
    report = yield
    fixtures = getattr(item, "funcargs", {})
    if report.failed and call.when in ("setup", "call"):
        for fixture in fixtures.values():
            if isinstance(fixture, Workers):
                report.sections += fixture.logs()
            elif isinstance(fixture, Ledger):
                report.sections.append(("ledger", str(fixture)))
    return report


def missing(mend: str) -> NoReturn:
    """Skip, or fail where a test run must be complete."""
    if os.environ.get("CI") == "true" or os.environ.get("GUARDRAILS_TEST_REQUIRE_BROKERS") == "1":
        pytest.fail(mend, pytrace=False)
    pytest.skip(mend)


# -- servers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's own Redis. Not to be stopped: ask ``private_redis`` for one that may be."""
    if find_server() is None:
        missing(REDIS_MEND)
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of a Redis database of the test's own."""
    return redis_server.fresh_url()


@pytest.fixture(scope="session")
def amqp_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """The session's own RabbitMQ node. Not to be stopped: ask ``private_rabbitmq`` for one that may be."""
    if find_scripts() is None:
        missing(AMQP_MEND)
    node = RabbitNode(tmp_path_factory.mktemp("mq"))
    node.start()
    yield node
    node.stop()


@pytest.fixture
def amqp_broker(request: pytest.FixtureRequest) -> Iterator[BrokerUnderTest]:
    """A virtual host of the test's own, or the RabbitMQ that is there where no node can be started."""
    foreign = foreign_amqp()
    if foreign is not None:
        broker = BrokerUnderTest("amqp", foreign, None)
    else:
        node = request.getfixturevalue("amqp_node")
        broker = BrokerUnderTest("amqp", node.fresh_url(), node)
    yield broker
    broker.clean()


@pytest.fixture
def redis_broker(redis_server: RedisServer) -> BrokerUnderTest:
    """A Redis database of the test's own, as a broker."""
    return BrokerUnderTest("redis", redis_server.fresh_url(), redis_server)


@pytest.fixture
def amqp_url(amqp_broker: BrokerUnderTest) -> str:
    """URL of a RabbitMQ virtual host of the test's own."""
    return amqp_broker.url


def kinds_of_broker(metafunc: pytest.Metafunc) -> list[Any]:
    """Return the parameters of a test that runs on each kind of broker."""
    found = {name: [kind for mark in metafunc.definition.iter_markers(name) for kind in mark.args] for name in ("brokers", "long_on")}
    return [
        pytest.param(kind, marks=[pytest.mark.chaos] if kind in found["long_on"] else []) for kind in found["brokers"] or ["redis", "amqp"]
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``broker`` on each kind, or on those of ``@pytest.mark.brokers("redis")``.

    On those of ``@pytest.mark.long_on("amqp")`` it is one of the long tests: what they prove is proved on the other kind in each run.
    """
    if "broker" in metafunc.fixturenames:
        metafunc.parametrize("broker", kinds_of_broker(metafunc), indirect=True)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> BrokerUnderTest:
    """Each kind of broker in turn, or those that the ``brokers`` marker names."""
    chosen: BrokerUnderTest = request.getfixturevalue(f"{request.param}_broker")
    return chosen


Server = TypeVar("Server", bound=OwnServer)


def _private(make: Callable[..., Server], end: Callable[[Server], None]) -> Iterator[Callable[..., Server]]:
    """Yield what starts servers of a kind, and end them."""
    servers: list[Server] = []

    def start(*args: Any, **options: Any) -> Server:
        servers.append(make(*args, **options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        end(server)


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start Redis servers that the test may kill, stop, freeze and start again: ``private_redis(persistent=True)``."""
    if find_server() is None:
        missing(REDIS_MEND)
    numbers = count()
    yield from _private(lambda **options: RedisServer(tmp_path / f"redis{next(numbers)}", **options), RedisServer.kill)


@pytest.fixture
def private_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RabbitNode]]:
    """Start RabbitMQ nodes that the test may kill, stop, freeze and start again; six seconds each."""
    if find_scripts() is None:
        missing(AMQP_MEND)
    yield from _private(lambda **options: RabbitNode(tmp_path_factory.mktemp("mq"), **options), RabbitNode.kill)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresDatabases]:
    """The session's own PostgreSQL. Not to be stopped: ask ``private_postgres`` for one that may be."""
    if find_postgres() is None:
        missing(POSTGRES_MEND)
    databases = postgres_databases()
    yield databases
    databases.close()


@pytest.fixture
def postgres_url(postgres: PostgresDatabases) -> Iterator[str]:
    """URL of an empty PostgreSQL database of the test's own."""
    url = postgres.fresh_url()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDatabases]:
    """The session's own MariaDB. Not to be stopped: ask ``private_mariadb`` for one that may be."""
    if find_mariadb() is None:
        missing(MARIADB_MEND)
    databases = mariadb_databases()
    yield databases
    databases.close()


@pytest.fixture
def mariadb_url(mariadb: MariaDatabases) -> Iterator[str]:
    """URL of an empty MariaDB database of the test's own."""
    url = mariadb.fresh_url()
    yield url
    mariadb.drop(url)


@pytest.fixture
def private_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """Start PostgreSQL servers that the test may kill, freeze and start again; a second each."""
    if postgres_programs() is None:
        missing(POSTGRES_MEND)
    yield from _private(PostgresServer, PostgresServer.close)


@pytest.fixture
def private_mariadb() -> Iterator[Callable[..., MariaServer]]:
    """Start MariaDB servers that the test may kill, freeze and start again; a second each."""
    if mariadb_program() is None:
        missing(MARIADB_MEND)
    yield from _private(MariaServer, MariaServer.close)


@pytest.fixture
def receiver() -> Iterator[HttpServer]:
    """An HTTP server that answers "ok", until it is told otherwise: what alerts are sent to."""
    server = HttpServer()
    server.answer(200, b"ok")
    yield server
    server.close()


@pytest.fixture
def proxy() -> Iterator[Callable[[int], Proxy]]:
    """Put a proxy before a port: ``proxy(server.port).cut()``."""
    proxies: list[Proxy] = []

    def start(port: int) -> Proxy:
        proxies.append(Proxy(port))
        return proxies[-1]

    yield start
    for one in proxies:
        one.close()


# -- applications ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What the tasks of this test really did."""
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Start real workers; their logs are shown when the test fails, and nothing is left of them afterwards."""
    started = Workers(tmp_path / "workers")
    yield started
    started.destroy()


@pytest.fixture
def queue() -> str:
    """A name for a queue that nobody else uses."""
    return f"q{uuid.uuid4().hex[:8]}"


@pytest.fixture
def deploy(
    broker: BrokerUnderTest, redis_server: RedisServer, ledger: Ledger, workers: Workers, queue: str
) -> Iterator[Callable[..., Deployment]]:
    """Deploy an app: ``deploy()`` the guarded one of ``apps/basic.py`` on each broker in turn.

    ``deploy("plain")`` chooses another module, ``on=`` another broker; further ``store_url=``, ``backend_url=``,
    ``namespace=``, ``retry=``, ``env=``. Every other keyword is a Celery setting.
    """
    deployed: list[Deployment] = []
    ours = ("store_url", "backend_url", "namespace", "retry", "env")

    def start(module: str = "basic", *, on: BrokerUnderTest | None = None, **options: Any) -> Deployment:
        known = {name: options.pop(name) for name in ours if name in options}
        known.setdefault("store_url", redis_server.fresh_url())
        known.setdefault("backend_url", redis_server.fresh_url())
        known.setdefault("namespace", queue)
        deployment = Deployment(
            f"{APPS}.{module}",
            broker=on or broker,
            queue=queue if not deployed else f"{queue}-{len(deployed)}",
            ledger=ledger,
            workers=workers,
            settings=options,
            **known,
        )
        deployed.append(deployment)
        return deployment

    yield start
    for deployment in deployed:
        deployment.close()
