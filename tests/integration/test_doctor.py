"""``guardrails doctor`` on real brokers and stores: what is healthy, what is ill, and whether the line that it gives mends it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task
from kombu import Queue

from celery_guardrails import GuardedTask, Guardrails, GuardrailsConfigError, current_execution
from celery_guardrails.cli import commands
from celery_guardrails.doctor import Diagnosis, Finding, Level
from celery_guardrails.integration.brokers.amqp_arguments import ARGUMENTS, shape_of
from celery_guardrails.integration.examination.management import Management
from celery_guardrails.integration.examination.store import store_facts
from tests.support import BrokerUnderTest, RabbitNode
from tests.support.processes import ROOT, free_port
from tests.support.waiting import eventually
from tests.unit.test_dead_letters_cli import make_runner

QUORUM = {"x-queue-type": "quorum"}
DLX = {"x-dead-letter-exchange": "guardrails.dlx", "x-dead-letter-routing-key": "celery"}


def charge(order: int) -> int:
    return order


def nothing() -> None:
    """A task's body."""


def shop(broker: str, store: str, **settings: Any) -> Guardrails:
    """A small app with one guarded task on the queue ``celery``."""
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update({"task_time_limit": 600, "broker_connection_timeout": 2.0, **settings})
    rails = Guardrails(app, store=store)
    app.task(base=GuardedTask, name="shop.charge", shared=False)(charge)
    return rails


def found(diagnosis: Diagnosis, number: str) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.id == f"guardrails.{number}"]


def one(diagnosis: Diagnosis, number: str) -> Finding:
    (finding,) = found(diagnosis, number)
    return finding


def complaints(diagnosis: Diagnosis) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.level is not Level.INFO]


def run(rails: Guardrails, *options: str, code: int = 0) -> str:
    result = make_runner().invoke(commands(lambda: rails.app), ["doctor", *options])
    assert result.exit_code == code, (result.output, result.exception)
    return str(result.output)


class Rabbit:
    """A virtual host, the app on it, and an operator who does what the doctor says."""

    def __init__(self, broker: BrokerUnderTest, store: str) -> None:
        if not isinstance(broker.server, RabbitNode):
            pytest.skip("policies want a node of our own")
        self.node: RabbitNode = broker.server
        self.broker, self.store = broker, store
        self.rails = shop(broker.url, store)

    def queue(self, name: str, **options: Any) -> None:
        with self.broker.connection() as connection:
            connection.default_channel.queue_declare(name, **{"durable": True, "auto_delete": False, **options})

    def delete(self, name: str) -> None:
        with self.broker.connection() as connection:
            connection.default_channel.queue_delete(name)

    def topology(self) -> str:
        """Queues, exchanges and bindings with all that they were declared with."""
        listed = [self.node.ctl("list_queues", "-p", self.broker.vhost, "name", "arguments", "durable")]
        listed += [self.node.ctl(f"list_{what}", "-p", self.broker.vhost) for what in ("exchanges", "bindings")]
        return "\n".join(listed)

    def doctor(self, **options: Any) -> Diagnosis:
        return self.rails.doctor(**options)

    def do(self, mend: str) -> None:
        """Do what a finding says, as it stands there."""
        program, *words = shlex.split(mend, comments=True)
        assert program == "rabbitmqctl"
        assert "error" not in self.node.ctl(*words)


@pytest.fixture
def rabbit(amqp_broker: BrokerUnderTest, redis_url: str) -> Iterator[Rabbit]:
    found = Rabbit(amqp_broker, redis_url)
    yield found
    found.rails.broker.close()


# -- healthy --------------------------------------------------------------------------------------------------------


def test_an_app_whose_worker_has_run_is_not_complained_of(deploy, broker, private_redis):
    redis = private_redis(persistent=True)
    on = BrokerUnderTest("redis", redis.fresh_url(), redis) if broker.kind == "redis" else broker
    app = deploy(on=on, store_url=redis.fresh_url())
    app.worker(concurrency=1)
    app.send("effect", "k").get(timeout=60)
    beside_the_worker = app.guardrails.doctor()
    assert complaints(beside_the_worker) == []
    command = [sys.executable, "-m", "celery", "-A", app.module, "guardrails", "doctor", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **app.env}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["ok"], told["errors"], told["warnings"]) == (True, 0, 0)
    assert "testapp.unguarded" in next(finding["subject"] for finding in told["findings"] if finding["id"] == "guardrails.I001")


@pytest.mark.parametrize("kind", [{}, QUORUM])
def test_what_a_publisher_and_a_worker_declare_is_healthy(rabbit, kind):
    rails = shop(rabbit.broker.url, rabbit.store, task_default_queue_type=kind.get("x-queue-type", "classic"))
    rails.app.tasks["shop.charge"].delay(1)
    rails.broker.declare()
    diagnosis = rails.doctor()
    assert [finding for finding in complaints(diagnosis) if finding.id != "guardrails.W021"] == []  # of the store, which all tests share
    (queue, dead) = diagnosis.facts.rabbit.queues[0]
    assert (queue.quorum, dead.quorum) == (bool(kind), bool(kind))
    assert all(level.known for level in diagnosis.facts.rabbit.levels)


def test_the_doctor_changes_nothing_on_an_empty_broker_nor_on_a_full_one(rabbit):
    empty = rabbit.topology()
    assert one(rabbit.doctor(), "I006")
    assert rabbit.topology() == empty
    rabbit.rails.broker.declare()
    rabbit.queue("celery", arguments={"x-message-ttl": 60_000, "x-max-length": 5})
    full = rabbit.topology()
    rabbit.doctor()
    assert rabbit.topology() == full


# -- RabbitMQ -------------------------------------------------------------------------------------------------------


def test_the_arguments_of_a_queue_are_read_over_amqp(rabbit):
    classic = {
        **DLX,
        "x-message-ttl": 5000,
        "x-max-length": 7,
        "x-max-length-bytes": 777,
        "x-overflow": "reject-publish",
        "x-expires": 1_000_000,
        "x-max-priority": 5,
        "x-single-active-consumer": True,
    }
    quorum = {**QUORUM, **DLX, "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish", "x-delivery-limit": 4}
    rabbit.queue("classic", arguments=classic)
    rabbit.queue("quorum", arguments=quorum)
    rabbit.queue("brief", durable=False, auto_delete=True, arguments={"x-message-ttl": 1})
    rabbit.queue("plain")
    shapes = rabbit.rails.broker.ask(lambda scratch: {name: shape_of(scratch, name) for name in ("classic", "quorum", "brief", "plain")})
    assert shapes["classic"].arguments == classic
    assert shapes["quorum"].arguments == quorum
    assert (shapes["brief"].durable, shapes["brief"].auto_delete, shapes["brief"].arguments) == (False, True, {"x-message-ttl": 1})
    assert (shapes["plain"].durable, shapes["plain"].auto_delete, shapes["plain"].arguments) == (True, False, {})


def test_asking_for_the_arguments_of_a_queue_that_was_deleted_meanwhile_makes_none(rabbit):
    asked = rabbit.rails.broker.ask(lambda scratch: [shape_of(scratch, "gone", [name]) for name in ARGUMENTS])
    assert asked == [None] * len(ARGUMENTS)
    assert not rabbit.rails.broker.exists("gone")


def test_a_live_queue_without_a_dead_letter_exchange_gets_one_by_the_line_that_is_given(rabbit):
    rabbit.queue("celery")
    rabbit.rails.broker.declare()
    finding = one(rabbit.doctor(), "W030")
    assert finding.subject == "celery"
    rabbit.do(finding.mend)
    rabbit.broker.publish_raw("celery", b"x", expiration=0.01)
    eventually(lambda: rabbit.broker.depth("celery.dead") == 1, 30)


def test_a_live_quorum_queue_gets_dead_lettering_that_loses_nothing_by_the_line_that_is_given(rabbit):
    rabbit.queue("celery", arguments={**QUORUM, **DLX})
    finding = one(rabbit.doctor(), "W031")
    rabbit.do(finding.mend)
    assert "guardrails-celery" in rabbit.node.ctl("list_queues", "-p", rabbit.broker.vhost, "name", "policy")
    policies = rabbit.node.ctl("list_policies", "-p", rabbit.broker.vhost)
    assert "at-least-once" in policies
    assert "reject-publish" in policies


def test_a_dead_letter_exchange_that_is_not_there_is_an_error(rabbit):
    rabbit.queue("celery", arguments={"x-dead-letter-exchange": "nobody.knows"})
    assert "'nobody.knows' does not exist" in one(rabbit.doctor(), "E030").what


def test_a_queue_that_drops_messages_without_a_word_is_an_error_until_the_line_is_pasted(rabbit):
    rabbit.queue("celery", arguments={"x-message-ttl": 50})
    rabbit.rails.broker.declare()
    finding = one(rabbit.doctor(), "E031")
    rabbit.do(finding.mend)
    rabbit.broker.publish_raw("celery", b"x")
    eventually(lambda: rabbit.broker.depth("celery.dead") == 1, 30)


def test_dead_letter_queues_that_lose_letters_are_found(rabbit):
    rabbit.queue("celery", arguments={**QUORUM, **DLX, "x-delivery-limit": 2})
    rabbit.queue("celery.dead", durable=False, arguments={"x-max-length": 3})
    diagnosis = rabbit.doctor()
    assert one(diagnosis, "W032").subject == "celery.dead"
    assert one(diagnosis, "W033").what == "x-max-length = 3."
    assert one(diagnosis, "W034").subject == "celery.dead"
    assert one(diagnosis, "W035").subject == "celery"


def test_a_missing_level_of_the_delays_is_found_and_the_next_worker_mends_it(rabbit):
    rabbit.rails.broker.declare()
    rabbit.delete("guardrails.delay.quorum.03")
    assert one(rabbit.doctor(), "W036").subject == "guardrails.delay.quorum.03"
    rabbit.rails.broker.declare()  # what a worker does at its start
    assert found(rabbit.doctor(), "W036") == []


def test_a_level_of_the_delays_with_other_arguments_is_an_error_and_the_line_and_a_worker_mend_it(rabbit):
    rabbit.queue("guardrails.delay.quorum.02", arguments={**QUORUM, "x-message-ttl": 77})
    finding = one(rabbit.doctor(), "E032")
    assert "x-message-ttl is 77, not 1000" in finding.what
    rabbit.do(finding.mend)
    rabbit.rails.broker.declare()
    assert found(rabbit.doctor(), "E032") == []


def test_dead_letters_that_wait_are_counted_and_stay(rabbit):
    rabbit.rails.broker.declare()
    for _ in range(3):
        rabbit.broker.publish_raw("celery.dead", b"x")
    eventually(lambda: rabbit.broker.depth("celery.dead") == 3, 30)
    assert "3 dead letters wait" in one(rabbit.doctor(), "I005").what
    eventually(lambda: rabbit.broker.depth("celery.dead") == 3, 30)


# -- policies -------------------------------------------------------------------------------------------------------


@pytest.fixture
def management() -> Iterator[Callable[[int, Any], str]]:
    """Stand in for the management API: answers every queue with this document."""
    servers: list[HTTPServer] = []

    def start(status: int, document: Any) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the base class's name
                asked.append((self.path, self.headers["Authorization"]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *args: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://guest:guest@127.0.0.1:{server.server_address[1]}"

    asked: list[tuple[str, str]] = []
    start.asked = asked  # type: ignore[attr-defined]
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_with_the_management_api_a_policy_counts(rabbit, management):
    rabbit.rails.broker.declare()
    rabbit.queue("celery")
    url = management(200, {"effective_policy_definition": {"dead-letter-exchange": "guardrails.dlx"}, "operator_policy_definition": []})
    assert found(rabbit.doctor(), "W030")
    assert found(rabbit.doctor(management_url=url), "W030") == []
    assert management.asked[0] == (f"/api/queues/{rabbit.broker.vhost}/celery", "Basic Z3Vlc3Q6Z3Vlc3Q=")
    without = management(200, {"effective_policy_definition": []})
    assert "cannot be seen" not in one(rabbit.doctor(management_url=without), "W030").what


def test_an_exchange_that_only_a_policy_names_is_looked_for_as_well(rabbit, management):
    rabbit.queue("celery")
    url = management(200, {"effective_policy_definition": {"dead-letter-exchange": "nowhere"}})
    assert "'nowhere'" in one(rabbit.doctor(management_url=url), "E030").what


def test_the_patience_of_a_queue_is_that_of_its_declaration_and_of_the_management_api(rabbit, management):
    patient = Queue("celery", queue_arguments={"x-consumer-timeout": 7_200_000})

    def said(rails: Guardrails, **options: Any) -> list[str]:  # not of tasks that other tests have made in this process
        return [finding.what for finding in found(rails.doctor(**options), "W013") if finding.subject == "shop.charge"]

    assert said(shop(rabbit.broker.url, rabbit.store, task_time_limit=3600))
    rails = shop(rabbit.broker.url, rabbit.store, task_time_limit=3600, task_queues=[patient])
    assert said(rails) == []
    rabbit.queue("celery")
    assert said(rails) == []
    (shorter,) = said(rails, management_url=management(200, {"arguments": {"x-consumer-timeout": 60_000}}))
    assert "60 s" in shorter


@pytest.mark.parametrize(
    "url", ["http://guard:12/sec@127.0.0.1:15672", "http://guard:12#sec@h", "http://guard:12?sec@h", "http://[::1", "http://h:port", "http://h:0"]
)
def test_a_management_url_that_cannot_be_read_is_refused_without_its_password(url):
    with pytest.raises(GuardrailsConfigError, match="is allowed") as refused:
        Management(url)
    assert "sec" not in str(refused.value)
    assert "12" not in str(refused.value)


def test_a_management_url_where_another_protocol_answers_is_bad_usage():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"AMQP\0\0\x09\x01")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(GuardrailsConfigError, match="--management-url"):
            Management(f"http://guest:guest@127.0.0.1:{server.getsockname()[1]}").queue("/", "q")


def test_a_management_api_that_refuses_is_bad_usage_and_its_password_is_not_shown(rabbit, management):
    rabbit.queue("celery")
    url = management(401, {}).replace("guest:guest", "guest:s3cret")
    assert "401" in run(rabbit.rails, "--management-url", url, code=2)
    assert "s3cret" not in run(rabbit.rails, "--management-url", url, code=2)
    assert "is allowed" in run(rabbit.rails, "--management-url", "amqp://guest:s3cret@h", code=2)
    assert "s3cret" not in run(rabbit.rails, "--management-url", "amqp://guest:s3cret@h", code=2)


# -- Redis ----------------------------------------------------------------------------------------------------------


def test_a_redis_that_throws_keys_away_is_an_error_and_the_line_mends_it(private_redis):
    redis = private_redis(persistent=True)
    rails = shop(redis.url(1), redis.url(2))
    client = redis.client()
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    finding = one(rails.doctor(), "E020")
    assert finding.subject == f"Redis 127.0.0.1:{redis.port} (broker and store)"
    assert "guardrails.E020" in run(rails, code=1)
    program, *words = shlex.split(finding.mend, comments=True)
    assert [program, *words[:4]] == ["redis-cli", "-h", "127.0.0.1", "-p", str(redis.port)]
    client.execute_command(*words[4:])
    assert complaints(rails.doctor()) == []
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 100_000)
    assert one(rails.doctor(), "W022")


def test_a_redis_that_forgets_at_a_restart_is_a_warning_and_not_an_error(private_redis):
    redis = private_redis()
    rails = shop(redis.url(1), redis.url(2))
    assert [finding.id for finding in complaints(rails.doctor())] == ["guardrails.W021"]
    assert "guardrails.W021" in run(rails)
    assert "guardrails.W021" not in run(rails, "--ignore", "W021")
    _program, *words = shlex.split(one(rails.doctor(), "W021").mend, comments=True)
    redis.client().execute_command(*words[4:])
    assert complaints(rails.doctor()) == []


def test_where_config_is_forbidden_nothing_is_said_of_snapshots(private_redis):
    redis = private_redis()
    redis.client().execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config")
    url = f"redis://app:pw@127.0.0.1:{redis.port}"
    assert complaints(shop(f"{url}/1", f"{url}/2").doctor()) == []


def test_a_replica_refuses_writes_and_a_primary_that_waits_for_none_is_remarked(private_redis):
    primary, replica = private_redis(persistent=True), private_redis(persistent=True)
    replica.client().replicaof("127.0.0.1", primary.port)
    eventually(lambda: primary.client().info("replication")["connected_slaves"] == 1, 30)
    assert one(shop(primary.url(1), primary.url(2)).doctor(), "I004")
    primary.client().config_set("min-replicas-to-write", 1)
    assert found(shop(primary.url(1), primary.url(2)).doctor(), "I004") == []
    assert "replica" in one(shop(primary.url(1), replica.url(2)).doctor(), "E021").what


# -- away -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broker_scheme", ["amqp", "redis"])
def test_a_broker_that_is_away_is_a_finding_and_the_store_is_looked_at_all_the_same(broker_scheme, private_redis):
    redis = private_redis()
    rails = shop(f"{broker_scheme}://shop:s3cret@127.0.0.1:{free_port()}/1", redis.url(2))
    output = run(rails, code=1)
    assert "guardrails.E010" in output
    assert "guardrails.W021" in output  # of the store
    assert "s3cret" not in output
    assert "s3cret" not in run(rails, "--json", code=1)
    assert "Traceback" not in output


def test_a_store_that_is_away_is_a_finding_and_the_broker_is_looked_at_all_the_same(private_redis):
    redis = private_redis()
    rails = shop(redis.url(1), f"redis://:s3cret@127.0.0.1:{free_port()}/1")
    output = run(rails, code=1)
    assert "guardrails.E012" in output
    assert "guardrails.W021" in output  # of the broker
    assert "s3cret" not in output


def test_no_store_at_all_and_a_broker_that_does_not_fit_are_findings():
    app = Celery("shop", broker="memory://", set_as_current=False)
    rails = Guardrails(app)
    assert {"guardrails.E011", "guardrails.E012"} <= {finding.id for finding in rails.doctor().findings}


def test_a_store_in_memory_is_a_warning(private_redis):
    assert one(shop(private_redis(persistent=True).url(1), "memory://").doctor(), "W040")


def test_the_clock_of_the_store_is_compared_with_ours():
    def now() -> float:
        time.sleep(0.01)
        return time.time() + 100.0

    store = SimpleNamespace(ping=lambda: None, lookup=lambda key: None, now=now)
    facts = store_facts(SimpleNamespace(store=store, store_url="redis://:pw@h"))  # type: ignore[arg-type]
    assert abs(facts.skew - 100) < 5
    assert facts.latency >= 0.01
    assert facts.url == "redis://:***@h"


# -- configuration --------------------------------------------------------------------------------------------------


def test_offline_nothing_is_connected_to():
    rails = shop(f"amqp://127.0.0.1:{free_port()}", f"redis://127.0.0.1:{free_port()}", worker_prefetch_multiplier=0)
    output = run(rails, "--offline")
    assert "guardrails.W007" in output
    assert "connected to nothing" in output


def test_what_tasks_are_declared_with_is_seen():
    rails = shop("amqp://", "memory://")
    app = rails.app
    app.task(name="plain", shared=False, acks_late=True, reject_on_worker_lost=True, acks_on_failure_or_timeout=False)(nothing)
    app.task(base=GuardedTask, name="lost", resource="nobody", shared=False)(nothing)
    app.task(base=GuardedTask, name="atomic", atomic=True, shared=False)(nothing)
    app.task(base=GuardedTask, name="brief", retention=5, shared=False)(nothing)
    diagnosis = rails.doctor(live=False)
    assert one(diagnosis, "W004").subject == "plain"
    assert one(diagnosis, "W005").subject == "plain"
    assert one(diagnosis, "E003").subject == "lost"
    assert one(diagnosis, "E002").subject == "atomic"
    assert one(diagnosis, "W010").subject == "brief"
    assert "plain" in one(diagnosis, "I001").subject


def test_tasks_that_bypass_the_guarded_default_are_named():
    app = Celery("shop", broker="amqp://", task_cls="celery_guardrails:GuardedTask", set_as_current=False)
    rails = Guardrails(app, store="memory://")
    app.task(name="guarded", shared=False)(nothing)
    app.task(base=Task, name="bypasses", shared=False)(nothing)
    assert one(rails.doctor(live=False), "W003").subject == "bypasses"


def test_a_task_that_loops_with_resume_is_told_from_one_that_does_not():
    rails = shop("amqp://", "memory://")

    @rails.app.task(base=GuardedTask, name="loops", shared=False)
    def loops() -> None:
        for _ in current_execution().resume(lambda cursor: []):
            pass

    facts = {task.name: task for task in rails.doctor(live=False).facts.tasks}
    assert (facts["loops"].loops, facts["shop.charge"].loops) == (True, False)
    assert (facts["loops"].queue, facts["loops"].limit) == ("celery", 600)


def test_a_setting_that_is_wrong_is_bad_usage():
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.guardrails_lease_seconds = -1
    assert "guardrails_lease_seconds = -1" in run(Guardrails(app), code=2)


def test_tasks_that_cannot_be_imported_are_bad_usage():
    rails = shop("amqp://", "memory://", imports=["no_such_module_of_tasks"])
    assert "no_such_module_of_tasks" in run(rails, code=2)
