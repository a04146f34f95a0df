"""Masters that die, nodes that are lost, slots that move: claims fail with StoreUnavailable, or they hold."""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import pytest
import redis
from redis.exceptions import ReadOnlyError, ResponseError

from celery_guardrails.errors import StoreUnavailable
from celery_guardrails.policy.lease import ClaimState, RecordState, StoredResult
from celery_guardrails.stores.redis.runner import refused_write
from tests.support import eventually
from tests.support.redis_sentinel import PASSWORD, SERVICE

LONG = 60.0
RESULT = StoredResult("application/json", "utf-8", b"1", "t")


def claim(store, key, holder="a"):
    return store.claim(key, holder=holder, fingerprint=None, lease=LONG)


def claims_until_it_works(store, prefix, timeout=20.0):
    """Claim fresh keys until one is claimed; return how many were refused. Any error but StoreUnavailable fails the test."""
    deadline = time.monotonic() + timeout
    for refused in itertools.count():
        try:
            assert claim(store, f"{prefix}.{refused}").state is ClaimState.CLAIMED
            return refused
        except StoreUnavailable:
            assert time.monotonic() < deadline, "no claim works any more"
            time.sleep(0.02)
    raise AssertionError("not reached")


def replicated(master):
    """Wait until the replica has everything."""
    with master.client() as client:
        eventually(lambda: client.wait(1, 1000) == 1)


# -- sentinels ------------------------------------------------------------------------------------------------------


def test_a_dead_master_is_replaced_and_claims_are_refused_only_meanwhile(private_sentinel, opened):
    store = opened(private_sentinel.url())
    old = private_sentinel.master()
    fence = claim(store, "held").fence
    threads = [threading.Thread(target=claim, args=(store, f"warm.{number}")) for number in range(4)]  # idle connections
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replicated(old)
    private_sentinel.sentinels[0].kill()  # the first one asked
    old.kill()
    assert claims_until_it_works(store, "during") > 0, "the master was not missed"
    assert private_sentinel.master() is not old
    assert [claim(store, f"after.{number}").state for number in range(20)] == [ClaimState.CLAIMED] * 20
    assert store.renew([("held", "a"), ("after.0", "a")], LONG) == [True, True], "the lease has moved with the master"
    assert store.lookup("held").fence == fence
    assert store.forget("held")
    store.ping()


def test_after_a_failover_on_demand_the_old_master_is_left_before_it_is_told(private_sentinel, opened):
    store = opened(private_sentinel.url())
    old = private_sentinel.master()
    claim(store, "held")
    store.renew([("held", "a")], LONG)
    with redis.Redis(port=private_sentinel.sentinels[0].port, password=PASSWORD) as sentinel:
        sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        eventually(lambda: int(sentinel.sentinel_master(SERVICE)["port"]) != old.port)
    (new,) = (server for server in private_sentinel.servers if server is not old)
    keys = (f"k{number}" for number in itertools.count())
    with new.client() as client:
        # whichever sentinel is asked: all know within a moment, and each is asked every second
        eventually(lambda: claim(store, key := next(keys)).state and client.exists(f"test:guard:{key}"), 4, ignoring=(StoreUnavailable,))
        assert private_sentinel.role(old) == "master", "it has not been told, and takes writes that will be lost"
        for key in itertools.islice(keys, 20):
            assert claim(store, key).state is ClaimState.CLAIMED
            assert client.exists(f"test:guard:{key}")
    assert store.renew([("held", "a")], LONG) == [True]
    eventually(lambda: private_sentinel.role(old) == "slave", 30)
    assert store.renew([("held", "a")], LONG) == [True]


# -- one server -----------------------------------------------------------------------------------------------------


def test_a_restarted_server_is_met_again_however_many_connections_were_kept(private_redis, opened):
    server = private_redis()
    store = opened(server.url())
    barrier = threading.Barrier(8)

    def keep(number):
        barrier.wait()
        for _ in range(20):
            claim(store, f"k{number}")

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.restart()
    assert [claim(store, f"again.{number}").state for number in range(8)] == [ClaimState.CLAIMED] * 8


def test_a_server_that_became_a_replica_refuses_to_write_and_the_new_one_is_found(private_redis, opened):
    # changed by hand, so that nobody closes our connections: the store has to learn it from the refusal
    with tempfile.TemporaryDirectory(prefix="gr") as short:
        sockets = [Path(short, name) for name in ("a", "b")]
        old, new = (private_redis(args=("--unixsocket", str(path), "--repl-diskless-sync-delay", "0")) for path in sockets)
        link = Path(short, "link")  # what a name in the DNS is elsewhere
        link.symlink_to(sockets[0])
        store = opened(f"unix://{link}")
        claim(store, "before")
        store.renew([("before", "a")], LONG)
        with new.client() as client, old.client() as former:
            client.replicaof("127.0.0.1", old.port)
            eventually(lambda: client.info("replication").get("master_link_status") == "up")
            replicated(old)
            client.replicaof("NO", "ONE")
            former.replicaof("127.0.0.1", new.port)
            link.unlink()
            link.symlink_to(sockets[1])
            assert claim(store, "after").state is ClaimState.CLAIMED
            assert client.exists("test:guard:after")
        assert store.renew([("before", "a"), ("after", "a")], LONG) == [True, True]


@pytest.mark.parametrize(
    "error",
    [
        ReadOnlyError("You can't write against a read only replica."),
        ResponseError("Error running script (call to f_1): @user_script:8: -READONLY You can't write against a read only replica."),
    ],
    ids=["Redis 7", "Redis 6, inside a script"],
)
def test_a_refusal_to_write_is_known_by_either_form(error):
    assert refused_write(error)
    assert not refused_write(ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))


# -- a cluster ------------------------------------------------------------------------------------------------------


def keys_by_node(cluster, number=60):
    """Keys of a test, by the node that has them."""
    found = {node.port: [] for node in cluster.nodes}
    for key in (f"k{index}" for index in range(number)):
        found[cluster.owner(cluster.slot(f"test:guard:{key}")).port].append(key)
    return found


def test_a_lost_node_takes_its_own_keys_away_and_no_others(private_cluster, opened):
    cluster = private_cluster()
    store = opened(cluster.url())
    lost, *_ = cluster.nodes
    by_node = keys_by_node(cluster)
    everything = [key for keys in by_node.values() for key in keys]
    for key in everything:
        claim(store, key)
    gone = by_node.pop(lost.port)
    there = [key for keys in by_node.values() for key in keys]
    assert len(gone) > 5
    assert len(there) > 5
    lost.kill()
    for key in gone[:5]:
        with pytest.raises(StoreUnavailable):
            claim(store, key)
    started = time.monotonic()
    assert [claim(store, key, holder="b").state for key in there] == [ClaimState.BUSY] * len(there)
    assert time.monotonic() - started < 5
    assert store.renew([(key, "a") for key in there], LONG) == [True] * len(there)
    ends = {key: store.lookup(key).until for key in there}
    with pytest.raises(StoreUnavailable):
        store.renew([(key, "a") for key in everything], 2 * LONG)
    assert all(store.lookup(key).until > end + LONG / 2 for key, end in ends.items()), "the others are renewed all the same"
    with pytest.raises(StoreUnavailable):
        store.ping()
    with pytest.raises(StoreUnavailable):
        list(store.leases())
    assert abs(store.now() - time.time()) < 5
    lost.start()  # without a memory
    eventually(lambda: claim(store, gone[0]).state is ClaimState.CLAIMED, 20, ignoring=(StoreUnavailable,))
    assert store.renew([(key, "a") for key in there], LONG) == [True] * len(there)


def test_a_node_that_dies_is_replaced_by_its_replica_and_claims_go_on(private_cluster, opened):
    cluster = private_cluster(replica=True)
    store = opened(cluster.url())
    lost = cluster.nodes[0]
    mine = keys_by_node(cluster)[lost.port][:10]
    for key in mine:
        claim(store, key)
    replicated(lost)
    lost.kill()
    with pytest.raises(StoreUnavailable):
        claim(store, mine[0], holder="b")
    eventually(lambda: claim(store, mine[0], holder="b").state is ClaimState.BUSY, 30, ignoring=(StoreUnavailable,))
    # every part of the client learns of the new node by itself, with its next call
    away = (StoreUnavailable,)
    eventually(lambda: store.renew([(key, "a") for key in mine], LONG) == [True] * len(mine), 30, ignoring=away)
    eventually(lambda: sorted(key for key, _ in store.leases()) == sorted(mine), 30, ignoring=away)
    eventually(lambda: store.ping() is None, 30, ignoring=away)


def test_claims_go_on_while_their_slot_moves_to_a_node_that_nobody_knew(private_cluster, opened):
    cluster = private_cluster()
    store, other = opened(cluster.url()), opened(cluster.url())
    tag = "{moving}"
    slot = cluster.slot(tag)
    old = [claim(store, f"{tag}.old.{number}") for number in range(20)]
    claim(other, f"{tag}.other")
    newcomer = cluster.add_node()
    cluster.begin_move(slot, newcomer)
    # still at the source: as before; new: at the target, by ASK, on whatever client
    assert store.renew([(f"{tag}.old.{number}", "a") for number in range(20)], LONG) == [True] * 20
    for one in (store, other):
        fresh = f"{tag}.new.{id(one)}"
        assert claim(one, fresh).state is ClaimState.CLAIMED
        assert claim(one, fresh, holder="b").state is ClaimState.BUSY
        assert one.renew([(fresh, "a"), (f"{tag}.none", "a")], LONG) == [True, False]
    with newcomer.client() as client:
        assert client.dbsize() == 2
    assert cluster.move_keys(slot, newcomer) == 21
    assert [claim(store, f"{tag}.old.{number}", holder="b").state for number in range(20)] == [ClaimState.BUSY] * 20
    cluster.end_move(slot, newcomer)
    # all there now, by MOVED: many at once, and one by one
    assert store.renew([(f"{tag}.old.{number}", "a") for number in range(20)], LONG) == [True] * 20
    for number, first in enumerate(old):
        assert other.complete(f"{tag}.old.{number}", holder="a", fingerprint=None, fence=first.fence, result=RESULT, retention=LONG)
    assert {store.lookup(f"{tag}.old.{number}").state for number in range(20)} == {RecordState.COMPLETED}
    assert len(list(store.leases())) == 3
    assert store.forget(f"{tag}.other")


def test_under_a_slot_that_moves_to_and_fro_every_key_is_claimed_exactly_once(private_cluster, opened):
    cluster = private_cluster()
    tag, won, errors, done = "{busy}", [], [], threading.Event()
    slot = cluster.slot(tag)

    def contend(holder):
        store = opened(cluster.url())
        for number in itertools.count():
            if done.is_set():
                return
            key = f"{tag}.{number}"
            try:
                first = claim(store, key, holder)
                if first.state is ClaimState.CLAIMED:
                    won.append(key)
                    assert store.complete(key, holder=holder, fingerprint=None, fence=first.fence, result=RESULT, retention=LONG)
            except Exception as exc:  # noqa: BLE001 - whatever it is, the test shows it
                errors.append(exc)
                return

    threads = [threading.Thread(target=contend, args=(f"h{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(6):
            target = next(node for node in cluster.nodes if node is not cluster.owner(slot))
            claimed = len(won)
            cluster.begin_move(slot, target)
            eventually(lambda claimed=claimed: errors or len(won) > claimed + 10)
            while cluster.move_keys(slot, target):
                pass
            cluster.end_move(slot, target)
            assert not errors, f"in round {round_}"
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(won) == len(set(won))
    assert len(won) > 60


def test_a_cluster_that_was_opened_before_a_fork_serves_the_child(redis_cluster, opened):
    store = opened(redis_cluster.url())
    claim(store, "parents")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child():
        answers.put([claim(store, f"child.{number}").state.value for number in range(30)])
        answers.put(store.renew([(f"child.{number}", "a") for number in range(30)], LONG))

    process = context.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert answers.get() == ["claimed"] * 30
    assert answers.get() == [True] * 30
    assert [claim(store, f"child.{number}", holder="b").state for number in range(30)] == [ClaimState.BUSY] * 30


def test_one_clusters_store_serves_many_threads(redis_cluster, opened):
    store = opened(redis_cluster.url())
    states = []

    def contend(holder):
        for number in range(50):
            states.append(claim(store, f"threads.{number}", holder).state)

    threads = [threading.Thread(target=contend, args=(f"h{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (states.count(ClaimState.CLAIMED), states.count(ClaimState.BUSY)) == (50, 350)
