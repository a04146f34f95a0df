"""A real worker dies at some of the lines of the package that a task comes through; ``make test-long`` has all of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support import BrokerUnderTest, Deployment, processes
from tests.support.crash_trials import REDIS, Trial, chosen, points_of

#: A fresh child for every task: each goes the whole way, connecting included.
FRESH = ["--max-tasks-per-child=1"]

Deploy = Callable[..., Deployment]
Rows = tuple[str, Callable[[], "Counter[str]"]]


def settings(broker: BrokerUnderTest) -> dict[str, Any]:
    return {"guardrails_lease_seconds": 1, **({"broker_transport_options": REDIS} if broker.kind == "redis" else {})}


# -- the child ------------------------------------------------------------------------------------------------------


def child(deploy: Deploy, broker: BrokerUnderTest, sample: int | None = None) -> None:
    """Let children die at the lines of tasks that succeed, are tried again, are dead-lettered, have a step."""
    app = deploy("crashing", **settings(broker))
    app.worker(concurrency=4, options=FRESH)
    trial = Trial(app, "child")
    points = points_of("succeed", trial.lines("succeed")[0])
    for kind, times in (("flaky", 2), ("doomed", 1), ("stepped", 1)):
        for entry in trial.lines(kind, times):
            # the way to the body is the same for all
            points += [point for point in points_of(kind, entry) if "body" in point.after]
    trial.send(chosen(points, sample))
    trial.wait(60 + 2 * len(trial.points))
    trial.check()


def atomic_child(deploy: Deploy, broker: BrokerUnderTest, rows: Rows, sample: int | None = None) -> None:
    """Let children die at the lines of a task whose effect commits with its completion."""
    url, counts = rows
    app = deploy("crashing", store_url=f"sqlalchemy+{url}", **settings(broker))
    app.worker(concurrency=4, options=FRESH)
    trial = Trial(app, "child")
    trial.send(chosen(points_of("atomic", trial.lines("atomic")[0]), sample))
    trial.wait(60 + 2 * len(trial.points))
    trial.check(atomic=counts)


@pytest.fixture
def rows(postgres_url: str) -> Iterator[Rows]:
    """URL of a database with a table of effects, and what counts them."""
    url = postgres_url.replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE testapp_line (name varchar(200))"))

    def counts() -> Counter[str]:
        with engine.connect() as connection:
            return Counter(connection.execute(sa.text("SELECT name FROM testapp_line")).scalars())

    yield url, counts
    engine.dispose()


@pytest.mark.long_on("amqp")
def test_a_child_that_dies_at_any_line_loses_nothing_and_repeats_only_what_was_not_recorded(shared_deploy, shared_broker):
    child(shared_deploy, shared_broker, 12)


@pytest.mark.long_on("amqp")
def test_a_child_that_dies_at_any_line_of_an_atomic_task_leaves_exactly_one_effect(shared_deploy, shared_broker, rows):
    atomic_child(shared_deploy, shared_broker, rows, 8)


# -- the main process -----------------------------------------------------------------------------------------------


def main_process(deploy: Deploy, broker: BrokerUnderTest, supervised: Callable[[Deployment], None], sample: int | None = None) -> None:
    """Let the main process die at the lines of a request that is renewed, one whose child dies, one that has an ETA."""
    app = deploy("crashing", worker_prefetch_multiplier=1, **settings(broker))
    supervised(app)
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("linger", "acknowledge", {}),
        ("dies_once", "acknowledge", {}),
        ("succeed", "on_message", {"countdown": 2.0}),
    ]
    for kind, until, options in ways:
        trial = Trial(app, "main", until)
        points = [point for point in points_of(kind, trial.lines(kind, **options)[0]) if point.where.endswith(":1")]
        trial.send(chosen(points, sample), in_turn="countdown" in options, **options)
        trial.wait(60 + 10 * len(trial.points))
        trial.check()


@pytest.fixture
def supervised(tmp_path) -> Iterator[Callable[[Deployment], None]]:
    """Start a worker that comes back whenever its main process was killed."""
    started = []

    def start(app: Deployment) -> None:
        command = [sys.executable, "-m", "tests.support.crashing", app.module, "-c", "1", "--prefetch-multiplier", "1"]
        command += ["--without-mingle", "--without-gossip", "-l", "INFO"]
        started.append(processes.spawn(command, log=tmp_path / "supervised.log", env=app.workers._environment(app.env)))

    yield start
    for process in started:
        processes.end(process)
    print(processes.tail(tmp_path / "supervised.log", 80))  # noqa: T201 - shown with a failed test
