"""A real worker whose store is a cluster."""

from __future__ import annotations

import pytest

from celery_guardrails.policy.lease import RecordState
from tests.conftest import missing
from tests.support import eventually
from tests.support.provision import REDIS_MEND
from tests.support.redis import find_server
from tests.support.redis_cluster import RedisCluster


@pytest.fixture
def cluster(tmp_path):
    if find_server() is None:
        missing(REDIS_MEND)
    nodes = RedisCluster(tmp_path / "cluster").start()
    yield nodes
    nodes.kill()


@pytest.mark.brokers("redis")
def test_with_the_store_in_a_cluster_effects_are_done_once_also_while_a_node_is_away(deploy, cluster):
    app = deploy(store_url=cluster.url(), guardrails_lease_seconds=2)
    app.worker(concurrency=2)
    names = [f"k{number}" for number in range(24)]
    results = [app.send("effect", name, 0.05) for name in names]
    long = app.send("effect", "long", 5.0)  # more than two leases: it is renewed
    assert [result.get(timeout=60) for result in results] == names
    assert long.get(timeout=60) == "long"
    records = [sum(1 for _ in node.client().scan_iter(match=f"{app.namespace}:guard:*")) for node in cluster.nodes]
    assert sum(records) == 25
    assert all(records)
    lost = cluster.nodes[0]
    lost.kill()
    later = [f"later{number}" for number in range(12)]
    key = "{}:guard:effect:{}".format
    here = [name for name in later if cluster.owner(cluster.slot(key(app.namespace, name))) is not lost]
    assert 0 < len(here) < len(later)
    waiting = {name: app.send("effect", name) for name in later}
    assert [waiting[name].get(timeout=60) for name in here] == here
    lost.start()
    assert [result.get(timeout=90) for result in waiting.values()] == later
    assert app.ledger.counts() == dict.fromkeys([*names, "long", *later], 1)
    eventually(lambda: all(app.guardrails.lookup(f"effect:{name}").state is RecordState.COMPLETED for name in later))
    assert app.dead() == 0
