"""Fixtures of several modules of this folder.

One deployment for all tests of a module: ``shared_deploy`` is ``deploy`` with workers that outlive a test. The tests of such a
module keep out of each other's way by the names of their effects: each takes its own from ``name``.

And Django's admin in this process: ``office``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import APPS, kinds_of_broker
from tests.support import BrokerUnderTest, Deployment, Ledger, Workers
from tests.support.office import Office, admin_tables
from tests.support.provision import foreign_amqp


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each kind of broker, as one with ``broker``; one kind after the other."""
    if "shared_broker" in metafunc.fixturenames:
        metafunc.parametrize("shared_broker", kinds_of_broker(metafunc), indirect=True)


@pytest.fixture(scope="module")
def shared_broker(request: pytest.FixtureRequest) -> Iterator[BrokerUnderTest]:
    """Each kind of broker in turn, one for the module."""
    kind: str = request.param
    foreign = foreign_amqp() if kind == "amqp" else None
    if foreign is not None:
        broker = BrokerUnderTest(kind, foreign, None)
    else:
        server = request.getfixturevalue("redis_server" if kind == "redis" else "amqp_node")
        broker = BrokerUnderTest(kind, server.fresh_url(), server)
    yield broker
    broker.clean()


@pytest.fixture(scope="module")
def shared_ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """What the tasks of this module really did."""
    return Ledger(tmp_path_factory.mktemp("ledger") / "ledger.jsonl")


@pytest.fixture(scope="module")
def shared_workers(shared_broker: BrokerUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Workers that live as long as the module's tests on one broker."""
    started = Workers(tmp_path_factory.mktemp("workers"))
    yield started
    started.destroy()


@pytest.fixture(scope="module")
def shared_deploy(
    shared_broker: BrokerUnderTest, redis_server: Any, shared_ledger: Ledger, shared_workers: Workers
) -> Iterator[Callable[..., Deployment]]:
    """Deploy an app for the module, with the options of ``deploy``."""
    deployed: list[Deployment] = []

    def start(module: str = "basic", **options: Any) -> Deployment:
        ours = {name: options.pop(name) for name in ("store_url", "backend_url", "retry", "env") if name in options}
        ours.setdefault("store_url", redis_server.fresh_url())
        ours.setdefault("backend_url", redis_server.fresh_url())
        queue = f"q{uuid.uuid4().hex[:8]}"
        deployment = Deployment(
            f"{APPS}.{module}",
            broker=shared_broker,
            queue=queue,
            namespace=queue,
            ledger=shared_ledger,
            workers=shared_workers,
            settings=options,
            **ours,
        )
        deployed.append(deployment)
        return deployment

    yield start
    for deployment in deployed:
        deployment.close()


@pytest.fixture
def name() -> str:
    """What the effects of this test are on."""
    return f"n{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def tables_of_the_admin() -> Iterator[None]:
    """Django's tables, made once for a module."""
    with admin_tables():
        yield


@pytest.fixture
def office(tables_of_the_admin: None, monkeypatch: pytest.MonkeyPatch) -> Office:
    """An archive in Django's admin, empty at first."""
    return Office(monkeypatch)
