"""Workers whose clocks are an hour ahead and an hour behind: the store's clock decides, so nothing is different."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tests.support import eventually
from tests.support.processes import ROOT

LEASE = 2
#: On Redis what a dead worker held comes back after the visibility timeout and the next sweep.
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
HOUR = 3600
#: Seconds by which the clock of the first worker is wrong, and that of the second.
CLOCKS = {"ahead": (HOUR, -HOUR), "behind": (-HOUR, HOUR)}


def env(skew: int) -> dict[str, str]:
    """A process whose ``time.time`` is wrong from the start, before Celery is imported."""
    path = os.pathsep.join([str(ROOT / "tests" / "support" / "skew"), str(ROOT)])
    return {"PYTHONPATH": path, "GUARDRAILS_TEST_SKEW": str(skew)}


@pytest.fixture
def app(request: pytest.FixtureRequest, deploy: Any, broker: Any) -> Any:
    """An app on one of the stores: beside each kind of broker another one, which covers both of both."""
    settings: dict[str, Any] = {"guardrails_lease_seconds": LEASE}
    if broker.kind == "redis":
        settings["broker_transport_options"] = REDIS
    if broker.kind == "amqp":
        settings["store_url"] = request.getfixturevalue("postgres_url").replace("postgresql://", "sqlalchemy+postgresql+psycopg://")
    yield deploy(**settings)
    request.getfixturevalue("workers").destroy()  # before their database goes


@pytest.mark.long_on("amqp")
@pytest.mark.parametrize("clocks", CLOCKS)
def test_a_lease_is_kept_and_not_taken_while_its_holder_lives(app: Any, clocks: str) -> None:
    first, second = CLOCKS[clocks]
    app.worker(concurrency=1, env=env(first))
    long = app.send("token", "a", 3.0 * LEASE)
    app.ledger.wait("start", "a")
    app.worker(concurrency=1, env=env(second))
    again = [app.send("token", "a", 3.0 * LEASE) for _ in range(3)]
    value = long.get(timeout=40)
    assert [result.get(timeout=40) for result in again] == [value] * 3
    assert app.ledger.count("a", "start") == 1


@pytest.mark.long_on("amqp")
@pytest.mark.parametrize("clocks", CLOCKS)
def test_a_lease_is_taken_over_when_it_has_ended_and_not_before(app: Any, clocks: str) -> None:
    first, second = CLOCKS[clocks]
    holder = app.worker(concurrency=1, env=env(first))
    result = app.send("token", "a", 60.0)
    (start,) = app.ledger.wait("start", "a")
    other = app.worker(concurrency=1, env=env(second))
    holder.freeze()
    killed = time.monotonic()
    holder.signal(signal.SIGKILL)
    (_, again) = app.ledger.wait("start", "a", times=2, timeout=60)
    assert LEASE / 2 <= again.time - killed <= LEASE + 20
    assert again.fields["fence"] > start.fields["fence"]
    assert again.fields["crashes"] == 1
    assert other.alive()
    assert result.id


def test_a_deadline_is_the_same_for_every_worker(app: Any) -> None:
    for skew in CLOCKS["ahead"]:
        app.worker(concurrency=2, env=env(skew))
    names = [f"n{number}" for number in range(6)]
    for name in names:
        app.send("fail_deadline", name)  # given up 5 s after it was published, tried again every 0.2 s
    eventually(lambda: app.dead() == len(names), 60)
    starts = app.ledger.entries(event="start")
    assert len({entry.pid for entry in starts}) > 1
    for name in names:
        mine = [entry.time for entry in starts if entry.key == name]
        assert len(mine) >= 3, "no clock gave it up at once"
        assert mine[-1] - mine[0] <= 6.0, "no clock let it go on"
