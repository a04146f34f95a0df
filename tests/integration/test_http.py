"""``guardrails_http`` of real workers: what runs in pool processes is counted, and probes say how the worker is."""

from __future__ import annotations

import contextlib
import re
import socket
import time
import urllib.error
import urllib.request

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import BrokerUnderTest, consistently, eventually, free_port, processes

PREFIX = "celery_guardrails_"


def get(url):
    """Return status and body."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Site:
    """The pages of one worker."""

    def __init__(self, worker):
        (line,) = worker.wait_log(r"guardrails_http: http://[\d.]+:\d+", times=1)
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def page(self, name):
        return get(f"{self.url}/{name}")

    def is_ready(self):
        return self.page("readyz") == (200, "ready\n")

    def number(self, metric, **labels):
        """Return one sample, 0 where there is none, and the sum of all that have these labels."""
        status, text = self.page("metrics")
        assert status == 200
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(
            sample.value for sample in found if sample.name == PREFIX + metric and labels.items() <= sample.labels.items()
        )


def start(deploy, pool="prefork", concurrency=2, **settings):
    app = deploy(guardrails_http="127.0.0.1:0", **settings)
    worker = app.worker(pool=pool, concurrency=concurrency)
    return app, worker, Site(worker)


@pytest.mark.brokers("redis")
def test_what_pool_processes_do_is_counted_in_the_main_process_whatever_becomes_of_them(deploy):
    app, worker, site = start(deploy, worker_max_tasks_per_child=7)
    names = [f"n{number}" for number in range(60)]
    assert [result.get(timeout=60) for result in [app.send("effect", name) for name in names]] == names
    assert app.send("effect", "n0").get(timeout=30) == "n0"
    assert app.send("fail", "f", times=1).get(timeout=30) == "f"
    with pytest.raises(Exception, match="declined"):
        app.send("fail_for_good", "dead").get(timeout=30)
    assert app.send("kill_self", "k", times=1).get(timeout=60) == "k"

    def counted():
        assert site.number("tasks_started_total", task="testapp.effect") == 60
        assert site.number("tasks_completed_total", task="testapp.effect", namespace=app.namespace) == 60
        assert site.number("tasks_replayed_total", task="testapp.effect") == 1
        assert site.number("task_duration_seconds_count", task="testapp.effect") == 60
        assert site.number("tasks_started_total", task="testapp.fail") == 2
        assert site.number("tasks_retried_total", task="testapp.fail") == 1
        assert site.number("dead_letters_total", task="testapp.fail_for_good", reason="permanent", queue=app.queue) == 1
        assert site.number("tasks_started_total", task="testapp.kill_self") == 2, "also what began in the process that was killed"
        assert site.number("task_crashes_total", task="testapp.kill_self") + site.number("leases_taken_over_total") <= 2
        assert site.number("tasks_completed_total", task="testapp.kill_self") == 1
        return True

    eventually(counted, 30)
    assert site.number("tasks_started_total") == 65
    assert site.number("ready") == 1
    eventually(lambda: site.number("leases_held") == 0, 30)
    worker.terminate()
    assert worker.wait(40) == 0


@pytest.mark.brokers("redis")
def test_no_pool_process_holds_the_socket_and_the_port_is_free_when_the_main_process_is_gone(deploy):
    port = free_port()
    app = deploy(guardrails_http=f"127.0.0.1:{port}", worker_max_tasks_per_child=2)
    worker = app.worker(concurrency=2)
    for number in range(8):  # also of those that were made later
        app.send("effect", f"n{number}").get(timeout=30)
    looked = 0
    # orphans would hold it: nothing must depend on how quickly they end
    for pid in eventually(worker.children, 30):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just been replaced
            assert [c for c in psutil.Process(pid).net_connections() if c.laddr and c.laddr.port == port] == []
            looked += 1
    assert looked
    worker.kill()
    second = app.worker(concurrency=1)
    eventually(Site(second).is_ready, 30)


@pytest.mark.brokers("redis")
def test_a_worker_whose_port_is_taken_ends_at_once_and_says_which_setting_and_what_to_do(deploy):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        app = deploy(guardrails_http=f"127.0.0.1:{port}")
        worker = app.worker(wait=False)
        assert worker.wait(60) == 1
    assert re.search(rf"guardrails_http = '127.0.0.1:{port}': Address already in use\. .*give each its own port", worker.log())
    assert app.ledger.count() == 0


@pytest.mark.brokers("redis")
def test_clients_that_say_nothing_hold_nobody_up(deploy):
    _, worker, site = start(deploy)
    eventually(site.is_ready, 30)
    slow = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(50)]
    for client in slow[::2]:
        client.sendall(b"GET /healthz HT")
    assert site.page("healthz") == (200, "alive\n")
    assert site.page("metrics")[0] == 200
    for client in slow:
        client.settimeout(40)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1000) == b"" or b" 408 " in client.recv(1000), "the worker has ended it"
        client.close()
    assert site.is_ready()
    worker.terminate()
    assert worker.wait(40) == 0


def drains_red(deploy, pool):
    app, worker, site = start(deploy, pool=pool, concurrency=1 if pool == "solo" else 2, guardrails_drain_seconds=40)
    eventually(site.is_ready, 40)
    result = app.send("effect_in_steps", "a", 12.0)
    app.ledger.wait("start", "a")
    assert site.is_ready(), "also while a task runs"
    told = time.monotonic()
    worker.terminate()
    eventually(lambda: site.page("readyz") == (503, "not ready: stopping\n"), 10, every=0.01)
    seconds = time.monotonic() - told
    assert app.ledger.count("a", "end") == 0
    assert seconds < 9, "at once; a gevent worker looks for signals three times a second"
    assert site.page("healthz") == (200, "alive\n")
    assert site.number("ready") == 0
    assert site.number("leases_held") == 1
    eventually(lambda: 0 < site.number("drain_seconds_left") <= 40, 10)
    app.ledger.wait("end", "a", timeout=40)
    assert result.get(timeout=40) == "a"
    assert worker.wait(40) == 0
    return seconds


@pytest.mark.long_on("redis")
@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.chaos)])
def test_readiness_goes_red_at_sigterm_while_a_task_is_still_waited_for(deploy, pool):
    drains_red(deploy, pool)


@pytest.mark.brokers("redis")
@pytest.mark.parametrize("pool", ["gevent", pytest.param("solo", marks=pytest.mark.chaos)])
def test_readiness_goes_red_at_sigterm_in_every_pool(deploy, pool):
    drains_red(deploy, pool)


def away_and_back(site, server, name):
    """Freeze and thaw, kill and start what the worker needs, and look at its pages."""
    for begin, end in ((server.freeze, server.thaw), (server.kill, server.start)):
        begin()
        eventually(lambda: site.page("readyz") == (503, f"not ready: {name} away\n"), 60)
        consistently(lambda: site.page("healthz") == (200, "alive\n"), 2.0)
        end()
        eventually(site.is_ready, 90)


# not on the broker of the session: a second node of RabbitMQ takes its time to start
@pytest.mark.brokers("redis")
@pytest.mark.parametrize("kind", ["redis", pytest.param("amqp", marks=pytest.mark.chaos)])
@pytest.mark.timeout(600)
def test_without_its_broker_a_worker_is_not_ready_but_alive_and_ready_again_when_it_is_back(request, deploy, kind):
    if kind == "redis":
        server = request.getfixturevalue("private_redis")(persistent=True)
        on = BrokerUnderTest("redis", server.url(1), server)
    else:
        server = request.getfixturevalue("private_rabbitmq")()
        on = BrokerUnderTest("amqp", server.url(), server)
    app = deploy(on=on, guardrails_http="127.0.0.1:0")
    worker = app.worker(concurrency=1)
    site = Site(worker)
    eventually(site.is_ready, 60)
    away_and_back(site, server, "broker")
    assert app.send("effect", "after").get(timeout=60) == "after"
    assert worker.alive()


@pytest.mark.brokers("redis")
def test_without_its_store_a_worker_is_not_ready_but_alive_and_ready_again_when_it_is_back(deploy, private_redis):
    store = private_redis(persistent=True)
    app = deploy(store_url=store.url(1), guardrails_http="127.0.0.1:0")
    worker = app.worker(concurrency=1)
    site = Site(worker)
    eventually(site.is_ready, 60)
    away_and_back(site, store, "store")
    store.kill()
    app.send("effect", "meanwhile")
    eventually(lambda: site.number("store_failures_total", operation="claim") > 0, 40)
    store.start()
    eventually(lambda: app.ledger.count("meanwhile") == 1, 60)
    assert worker.alive()


@pytest.mark.long_on("amqp")
def test_a_loop_that_stands_still_although_all_is_there_is_dead_and_alive_when_it_goes_on(deploy):
    app = deploy("stuck", guardrails_http="127.0.0.1:0")
    worker = app.worker(concurrency=1)
    site = Site(worker)
    eventually(site.is_ready, 60)
    consistently(lambda: site.page("healthz") == (200, "alive\n"), 6.0, because="a loop with nothing to do turns")
    app.app.control.broadcast("hold_up_the_loop", arguments={"seconds": 25.0})
    eventually(lambda: site.page("readyz") == (503, "not ready: loop stands still\n"), 30)
    eventually(lambda: re.fullmatch(r"dead: the consumer's loop has not turned for \d+ s\n", site.page("healthz")[1]), 30)
    assert site.page("healthz")[0] == 503
    eventually(lambda: site.page("healthz") == (200, "alive\n"), 60)
    eventually(site.is_ready, 30)


@pytest.mark.brokers("redis")
def test_without_the_library_the_probes_work_and_metrics_say_what_to_install(deploy, tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')\n")
    app = deploy(guardrails_http="127.0.0.1:0")
    worker = app.worker(concurrency=1, env={"PYTHONPATH": f"{tmp_path}:{processes.ROOT}"})
    site = Site(worker)
    eventually(site.is_ready, 60)
    assert site.page("metrics") == (501, "the metrics need prometheus_client: pip install 'celery-guardrails[prometheus]'\n")
    assert app.send("effect", "a").get(timeout=30) == "a"
    worker.wait_log("/metrics answers 501: the metrics need prometheus_client")
