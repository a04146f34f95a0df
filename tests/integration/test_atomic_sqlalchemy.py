"""``atomic=True`` with SQLAlchemy, in real workers: rows commit with the completion record, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import sqlalchemy as sa

from celery_guardrails import GuardrailsConfigError
from celery_guardrails.policy.lease import RecordState
from tests.integration.apps.atomic import Base, Charge
from tests.support import eventually

LEASE = 2.0
REDIS = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


@pytest.fixture
def database(postgres_url):
    return postgres_url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def rows(database):
    engine = sa.create_engine(database)
    Base.metadata.create_all(engine)

    def by_name() -> dict[str, int]:
        with engine.connect() as connection:
            found = connection.execute(sa.select(Charge.name, sa.func.count()).group_by(Charge.name))
            return {str(name): int(count) for name, count in found}

    yield by_name
    engine.dispose()


@pytest.fixture
def app(deploy, broker, database, rows):
    options = REDIS if broker.kind == "redis" else {}
    return deploy(
        "atomic",
        store_url=f"sqlalchemy+{database}",
        guardrails_lease_seconds=LEASE,
        guardrails_max_crashes=50,
        broker_transport_options=options,
    )


def completed(app, name: str) -> bool:
    record = app.guardrails.lookup(f"charge:{name}")
    return record is not None and record.state is RecordState.COMPLETED


@pytest.mark.long_on("redis")
def test_children_and_workers_killed_at_random_leave_one_row_a_key(app, rows):
    workers = app.start_workers(2, concurrency=2)
    names = [f"order{number}" for number in range(15)]
    chance = random.Random(7)
    for name in names:
        for _ in range(3):
            app.send("charge", name, seconds=chance.random() / 4, die=chance.random() < 0.2, fail=chance.random() < 0.3)
    for _ in range(12):
        time.sleep(0.15)  # at any moment: there is no condition to wait for
        children = [pid for worker in workers if worker.alive() for pid in worker.children()]
        if children:
            os.kill(chance.choice(children), signal.SIGKILL)
    workers[0].kill()
    app.worker()
    eventually(lambda: all(completed(app, name) for name in names), 90)
    eventually(lambda: app.depth() == 0, 30)
    assert rows() == dict.fromkeys(names, 1)
    assert app.dead() == 0
    gateway = {name: [e for e in app.ledger.entries() if e.event == "gateway" and e.key == name] for name in names}
    for name, calls in gateway.items():
        assert len({call.fields["idempotency_key"] for call in calls}) == 1, f"{name}: a step has one key for ever"


@pytest.mark.brokers("redis")
def test_a_failure_takes_the_row_back_and_keeps_the_step(app, rows, name):
    app.worker()
    result = app.send("charge", name, fail=True)
    assert result.get(timeout=30) > 0
    assert rows() == {name: 1}
    starts = [e for e in app.ledger.entries() if e.key == name]
    assert [e.event for e in starts if e.event != "end"] == ["start", "gateway", "start"]


@pytest.mark.brokers("redis")
def test_a_worker_that_was_frozen_longer_than_its_lease_cannot_commit(app, rows, name):
    first, second = app.start_workers(2, concurrency=1)
    app.send("charge", name, seconds=4.0)
    (start,) = app.ledger.wait("start", name)
    frozen = next(worker for worker in (first, second) if start.pid in worker.children())
    frozen.freeze()
    app.send("charge", name, seconds=0.0)
    eventually(lambda: completed(app, name), 30)
    frozen.thaw()
    frozen.wait_log("lost the lease", timeout=30)
    app.ledger.wait("end", name, times=2)
    assert rows() == {name: 1}
    fences = [e.fields["fence"] for e in app.ledger.entries() if e.event == "start"]
    assert fences == sorted(set(fences)), "the fence rises with every claim"


@pytest.mark.brokers("redis")
def test_a_lease_broken_by_an_operator_takes_the_row_back(app, rows, name):
    app.worker(concurrency=1)
    app.send("charge", name, seconds=4.0)
    app.ledger.wait("start", name)
    assert app.guardrails.break_lease(f"charge:{name}") is not None
    eventually(lambda: completed(app, name), 30)
    assert rows() == {name: 1}
    assert len([e for e in app.ledger.entries() if e.event == "start" and e.key == name]) == 2


@pytest.mark.brokers("redis")
def test_atomic_on_a_store_that_cannot_is_refused_by_publisher_and_worker(deploy):
    app = deploy("atomic")
    with pytest.raises(GuardrailsConfigError, match=r"testapp.charge: atomic = True .*guardrails_store"):
        app.send("charge", "x")
    worker = app.worker(wait=False)
    eventually(lambda: not worker.alive(), 20)
    assert "atomic = True" in worker.log()
