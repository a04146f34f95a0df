"""What Redis itself refuses, as redis-py raises it, and what the shipped rules make of that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import RedisServer, eventually, free_port
from tests.support.redis_cluster import RedisCluster
from tests.support.sessions import kind_and_rule, raised_by

ONCE = Retry(NoBackoff(), 0)


def connect(server: RedisServer, **options: Any) -> Any:
    return redis.Redis(port=server.port, retry=ONCE, **{"socket_timeout": 5, **options})


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this module's own, which is put into every state."""
    directory = tmp_path_factory.mktemp("classify")
    args = ("--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024")
    server = RedisServer(directory, args=args if modern(redis_server) else args[2:]).start()
    yield server
    server.stop()


def modern(server: RedisServer) -> bool:
    """Whether its debug commands need to be allowed: from 7.0 on."""
    with server.client() as client:
        return int(client.info("server")["redis_version"].partition(".")[0]) >= 7


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with connect(server) as client:
        client.flushall()
        client.set("text", "x")
        yield client


def kind(function: Callable[..., Any], *args: Any) -> str:
    return kind_and_rule(raised_by(function, *args))[0]


def every_way_to_set(client: Any) -> list[Callable[[], Any]]:
    """Alone, in a transaction, in a pipeline, in a script: redis-py words each otherwise."""

    def in_pipeline(transaction: bool) -> Any:
        pipeline = client.pipeline(transaction=transaction)
        pipeline.set("key", "x")
        return pipeline.execute()

    return [
        lambda: client.set("key", "x"),
        lambda: in_pipeline(True),
        lambda: in_pipeline(False),
        lambda: client.eval("return redis.call('set', KEYS[1], 'x')", 1, "key"),
    ]


@pytest.mark.parametrize(
    ("setting", "value", "normal"),
    [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")],
    ids=["OOM", "NOREPLICAS"],
)
def test_a_server_that_takes_no_writes_now_is_retryable_however_they_are_sent(client: Any, setting: str, value: str, normal: str) -> None:
    client.config_set(setting, value)
    try:
        assert [kind(way) for way in every_way_to_set(client)] == ["retryable"] * 4
    finally:
        client.config_set(setting, normal)


def test_a_server_that_cannot_save_is_retryable(server: RedisServer, client: Any) -> None:
    in_the_way = server.directory / "dump.rdb"
    in_the_way.unlink(missing_ok=True)
    in_the_way.mkdir()
    client.config_set("save", "900 1")
    client.bgsave()
    try:
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10)
        assert "MISCONF" in str(raised_by(client.set, "key", "x"))
        assert [kind(way) for way in every_way_to_set(client)] == ["retryable"] * 4
    finally:
        client.config_set("save", "")
        in_the_way.rmdir()


def test_a_replica_and_one_without_its_master_are_retryable(client: Any) -> None:
    client.replicaof("127.0.0.1", free_port())
    try:
        assert [kind(way) for way in every_way_to_set(client)] == ["retryable"] * 4
        client.config_set("replica-serve-stale-data", "no")
        assert kind(client.get, "text") == "retryable"
    finally:
        client.config_set("replica-serve-stale-data", "yes")
        client.replicaof("NO", "ONE")


def test_a_server_that_is_loading_is_retryable(server: RedisServer, client: Any) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(3000):
        pipeline.set(f"key{number}", "x" * 50)
    pipeline.execute()
    client.config_set("key-load-delay", 300)  # microseconds a key
    reloading = threading.Thread(target=lambda: connect(server, socket_timeout=30).execute_command("DEBUG", "RELOAD"))
    reloading.start()
    try:
        with connect(server) as other:
            error = eventually(lambda: loading(other.get, "text"), 10)
            assert kind_and_rule(error)[0] == "retryable"
            assert kind(lambda: other.pipeline(transaction=False).get("text").execute()) == "retryable"
    finally:
        reloading.join()
        client.config_set("key-load-delay", 0)


def loading(function: Callable[..., Any], *args: Any) -> BaseException | None:
    try:
        function(*args)
    except redis.RedisError as error:
        return error if "loading" in str(error).lower() else None
    return None


def test_a_server_that_runs_a_script_for_too_long_is_retryable(server: RedisServer, client: Any) -> None:
    client.config_set("lua-time-limit", 10)
    endless = threading.Thread(target=lambda: raised_by(connect(server, socket_timeout=30).eval, "while true do end", 0))
    endless.start()
    try:
        with connect(server) as other:
            eventually(lambda: "BUSY" in str(error_of(other.get, "text")), 10)
            assert kind(other.get, "text") == "retryable"
    finally:
        client.script_kill()
        endless.join()
        client.config_set("lua-time-limit", 5000)


def error_of(function: Callable[..., Any], *args: Any) -> BaseException | None:
    try:
        function(*args)
    except redis.RedisError as error:
        return error
    return None


def test_connections_that_are_cut_refused_or_too_slow_are_retryable(server: RedisServer, client: Any) -> None:
    assert kind(connect(server, socket_timeout=0.1).blpop, "nothing", 5) == "retryable"
    errors: list[Exception] = []
    for how in ("unblock", "kill"):
        blocked = connect(server, client_name=how)
        waiting = threading.Thread(target=lambda: errors.append(raised_by(blocked.blpop, "nothing", 20)))  # noqa: B023 - it is joined here
        waiting.start()

        def blocked_clients(name: str = how) -> list[str]:
            return [each["id"] for each in client.client_list() if (each["name"], each["cmd"]) == (name, "blpop")]

        (number,) = eventually(blocked_clients, 10)
        client.client_unblock(number, error=True) if how == "unblock" else client.client_kill_filter(_id=number)
        waiting.join()
    assert [kind_and_rule(error)[0] for error in errors] == ["retryable"] * 2
    client.config_set("maxclients", 2)
    try:
        crowd = [connect(server) for _ in range(4)]
        assert kind(lambda: [each.ping() for each in crowd]) == "retryable"
    finally:
        client.config_set("maxclients", 10_000)
    with redis.Redis(port=free_port(), retry=ONCE) as nobody:
        assert kind(nobody.ping) == "retryable"


def test_what_another_client_was_quicker_with_is_retryable(client: Any) -> None:
    with client.pipeline() as pipeline:
        pipeline.watch("text")
        client.set("text", "changed")
        pipeline.multi()
        pipeline.set("text", "mine")
        assert kind(pipeline.execute) == "retryable"
    with client.lock("lock", timeout=10):
        assert kind(client.lock("lock", blocking=False).__enter__) == "retryable"


def test_a_script_that_the_server_has_forgotten_is_retryable(client: Any) -> None:
    assert kind(client.evalsha, "0" * 40, 0) == "retryable"


def test_wrong_commands_types_passwords_and_rights_are_permanent(server: RedisServer, client: Any) -> None:
    assert kind(client.lpush, "text", "x") == "permanent"
    assert kind(client.execute_command, "SET", "alone") == "permanent"
    assert kind(client.execute_command, "NOSUCH") == "permanent"
    assert kind(client.set, "key", object()) == "permanent"
    assert kind(client.eval, "error('mine')", 0) == "permanent"
    for transaction in (True, False):
        assert kind(client.pipeline(transaction=transaction).lpush("text", "x").execute) == "permanent"
    assert kind(client.pipeline().execute_command("NOSUCH").execute) == "permanent"
    client.acl_setuser("few", enabled=True, nopass=True, commands=["+ping"])
    assert kind(connect(server, username="few", password="x").get, "text") == "permanent"
    assert kind(connect(server, username="nobody", password="x").ping) == "permanent"


def test_a_cluster_says_elsewhere_or_not_now_and_never_across_slots(redis_cluster: RedisCluster) -> None:
    port = redis_cluster.nodes[0].port
    with redis.Redis(port=port, retry=ONCE) as node:
        moved = next(error for number in range(50) if (error := error_of(node.get, f"key{number}")) is not None)
        assert "redis" in type(moved).__module__
        assert kind_and_rule(moved)[0] == "retryable"
        assert kind(node.mset, {f"key{number}": "x" for number in range(9)}) == "permanent"
