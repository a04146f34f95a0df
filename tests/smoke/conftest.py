"""The smoke tests' architecture: pytest-celery's own fixtures, with our app, our tasks and our package in the worker.

``GUARDRAILS_SMOKE=docker`` or ``=local`` decides between containers and local processes; without it Docker is used where it
answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import docker
import pytest
from celery import Celery
from pytest_celery import CELERY_RABBITMQ_BROKER, CELERY_REDIS_BROKER, CeleryTestSetup, RedisTestBackend
from pytest_docker_tools import build

from celery_guardrails import Guardrails
from tests.support import BrokerUnderTest
from tests.support.nodocker import LocalClient
from tests.support.processes import ROOT

from . import tasks, worker_app


def _docker_answers() -> bool:
    try:
        client = docker.from_env(timeout=5)
        client.ping()
    except docker.errors.DockerException:
        return False
    client.close()
    return True


@pytest.fixture(scope="session")
def docker_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Docker's client, or one that starts local processes instead."""
    chosen = os.environ.get("GUARDRAILS_SMOKE") or ("docker" if _docker_answers() else "local")
    if chosen == "docker":
        yield docker.from_env()
        return
    client = LocalClient(tmp_path_factory.mktemp("smoke"))
    with pytest.MonkeyPatch.context() as patch:
        # Where the tests themselves run in a container, published ports would be looked for at the container's address.
        patch.setattr("pytest_docker_tools.wrappers.container.tests_inside_container", lambda: False)
        yield client
    client.close()


# A list, where pytest-celery has a set: the order of the tests must be the same in all test processes.
# On RabbitMQ, whose node takes ten seconds to start for each, all but one are among the long tests.
@pytest.fixture(params=[CELERY_REDIS_BROKER, pytest.param(CELERY_RABBITMQ_BROKER, marks=pytest.mark.chaos)])
def celery_broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each broker in turn."""
    broker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


@pytest.fixture
def celery_backend(celery_redis_backend: RedisTestBackend) -> RedisTestBackend:
    """Redis: the results, the guard's store and the tasks' effects."""
    return celery_redis_backend


# With Docker the worker's image holds this repository; pytest-celery's own knows Celery only.
celery_base_worker_image = build(path=str(ROOT), dockerfile="tests/smoke/Dockerfile", tag="celery-guardrails/smoke:latest")


@pytest.fixture
def default_worker_app_module() -> ModuleType:
    """The worker's ``app.py``."""
    return worker_app


@pytest.fixture
def default_worker_tasks(default_worker_tasks: set[ModuleType]) -> set[ModuleType]:
    """pytest-celery's own tasks and ours."""
    return {*default_worker_tasks, tasks}


class GuardedSetup(CeleryTestSetup):
    """pytest-celery's setup with the guard on the publisher's app."""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        Guardrails(app, store=app.conf.result_backend, lease_seconds=5)


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    """The publisher's side."""
    return GuardedSetup


@pytest.fixture
def effects(celery_setup: CeleryTestSetup) -> Any:
    """Ask how often an effect was done: ``effects("a")``."""
    client = celery_setup.backend.container.client

    def count(name: str, event: str = "effect") -> int:
        return int(client.hget(f"ledger:{event}", name) or 0)

    return count


@pytest.fixture
def smoke_broker(celery_setup: CeleryTestSetup) -> BrokerUnderTest:
    """The broker's queues, seen from the test."""
    url = celery_setup.broker.config()["host_url"]
    return BrokerUnderTest("redis" if url.startswith("redis") else "amqp", url, None)
