from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import kombu
import psutil
import pytest
import redis

from tests.support import consistently, eventually, free_port
from tests.support.processes import ROOT


def test_eventually_shows_the_last_answer():
    with pytest.raises(AssertionError, match=r"the moon is full \(last: 0\)"):
        eventually(lambda: 0, 0.05, because="the moon is full")


def test_eventually_takes_an_assertion_for_not_yet():
    answers = iter([False, True])

    def condition():
        assert next(answers)
        return "done"

    assert eventually(condition) == "done"


def test_consistently_fails_at_the_first_false_answer():
    with pytest.raises(AssertionError, match="did not stay true"):
        consistently(lambda: False, 0.2)


def test_each_redis_url_is_a_database_of_its_own(redis_server):
    one, other = (redis.Redis.from_url(redis_server.fresh_url()) for _ in range(2))
    one.set("a", 1)
    assert other.get("a") is None


def test_a_persistent_redis_remembers_what_it_answered_before_it_was_killed(private_redis):
    server = private_redis(persistent=True)
    server.client().set("a", 1)
    server.restart()
    assert server.client().get("a") == b"1"


def test_a_frozen_redis_accepts_and_does_not_answer(private_redis):
    server = private_redis()
    server.freeze()
    with pytest.raises(redis.exceptions.TimeoutError):
        redis.Redis(port=server.port, socket_timeout=0.2, retry=None).ping()
    server.thaw()
    assert server.client().ping()


def test_each_amqp_url_is_a_virtual_host_of_its_own(amqp_node):
    urls = [amqp_node.fresh_url() for _ in range(2)]
    with kombu.Connection(urls[0]) as one, kombu.Connection(urls[1]) as other:
        one.default_channel.queue_declare("q", durable=True)
        with pytest.raises(other.channel_errors):
            other.default_channel.queue_declare("q", passive=True)


def test_a_private_rabbitmq_remembers_confirmed_messages_after_a_kill(private_rabbitmq):
    node = private_rabbitmq()
    with kombu.Connection(node.url(), transport_options={"confirm_publish": True}) as connection:
        connection.default_channel.queue_declare("q", durable=True, auto_delete=False)
        connection.Producer().publish("x", routing_key="q", delivery_mode=2)
    node.restart()
    with kombu.Connection(node.url()) as connection:
        assert connection.default_channel.basic_get("q").body == "x"


def test_broker_counts_takes_and_purges(broker, queue):
    broker.publish_raw(queue, "one")
    broker.publish_raw(queue, "two")
    assert broker.depth(queue) == 2
    assert [message.body for message in broker.drain(queue)] == [b"one", b"two"]
    broker.publish_raw(queue, "three")
    broker.purge(queue)
    assert broker.depth(queue) == 0
    assert broker.depth("never-heard-of") == 0


def test_broker_tells_the_sizes_of_its_queues(broker, queue):
    if broker.server is None:
        pytest.skip("only our own node tells the sizes of its queues")
    broker.publish_raw(queue, "one")
    eventually(lambda: broker.sizes()[queue] == (1, 0), because="one message is ready")


def test_a_proxy_cuts_stalls_and_mends(redis_server, proxy):
    between = proxy(redis_server.port)
    client = redis.Redis(port=between.port, retry=None)
    assert client.ping()
    between.stall()
    with pytest.raises(redis.exceptions.TimeoutError):
        redis.Redis(port=between.port, socket_timeout=0.3, retry=None).ping()
    between.cut()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.ping()
    between.mend()
    assert client.ping()


def test_what_a_killed_test_process_started_is_killed_too(tmp_path):
    script = f"""
        import os, signal, sys
        from pathlib import Path
        from tests.support.processes import spawn
        child = spawn([sys.executable, "-c", "import time; time.sleep(600)"], log=Path({str(tmp_path / "log")!r}))
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    pid = int(done.stdout)
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10)


def test_free_ports_are_free():
    ports = {free_port() for _ in range(5)}
    assert all(1024 < port < 65536 for port in ports)


def test_the_ledger_sees_overlaps_and_repetitions(ledger):
    with ledger.run("a") as first, ledger.run("a") as second, ledger.run("b") as third:
        for run in (first, second, third):
            run.effect()
    with ledger.run("b"):
        time.sleep(0.001)
    assert ledger.repeated() == {"a": 2}
    assert [(one.key, one.ended) for one, _ in ledger.overlaps()] == [("a", True)]
