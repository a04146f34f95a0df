"""The doctor's checks, as a table: facts that are ill, facts that are nearly so, and what is said of each."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed

from celery_guardrails import GuardrailsConfigError
from celery_guardrails.doctor import CHECKS, Facts, Level, diagnose
from celery_guardrails.doctor.facts import AppFacts, LetterFacts, QueueFacts, RabbitFacts, RedisFacts, StoreFacts, TaskFacts
from celery_guardrails.doctor.rabbitmq import policy_line
from celery_guardrails.integration.brokers.amqp_arguments import shape_of
from tests.support.processes import ROOT

DLX = {"x-dead-letter-exchange": "guardrails.dlx", "x-dead-letter-routing-key": "q"}
SAFE = {**DLX, "x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
QUORUM = {"x-queue-type": "quorum"}
LEVEL = "guardrails.delay.quorum.00"
LEVELS = {LEVEL: {"x-message-ttl": 250}, "guardrails.delay.quorum.01": {"x-message-ttl": 500}}


def rabbit(queue: dict[str, Any] | QueueFacts, dead: dict[str, Any] | QueueFacts | None = None, **more: Any) -> Facts:
    """Facts of RabbitMQ with one task queue, ``q``."""
    first = queue if isinstance(queue, QueueFacts) else QueueFacts("q", arguments=queue)
    second = dead if isinstance(dead, QueueFacts) else QueueFacts("q.dead", arguments=dead or {})
    found: dict[str, Any] = {"queues": ((first, second),), "exchanges": {"guardrails.dlx": True}, "expected_levels": LEVELS, **more}
    found.setdefault("levels", tuple(QueueFacts(name, arguments=arguments) for name, arguments in LEVELS.items()))
    return Facts(tasks=(TaskFacts("shop.charge", limit=600, queue="q"),), rabbit=RabbitFacts(**found), store=StoreFacts("redis://s"))


def on_redis(*servers: RedisFacts, **app: Any) -> Facts:
    return Facts(AppFacts(**{"broker": "redis", "visibility_timeout": 300.0, **app}), (TaskFacts("shop.charge"),), redis=servers)


def with_task(broker: str = "amqp", /, app: dict[str, Any] | None = None, **task: Any) -> Facts:
    facts = rabbit(DLX) if broker == "amqp" else on_redis()
    chosen = TaskFacts(**{"name": "shop.charge", "limit": 600.0, "queue": "q", **task})
    return replace(facts, app=replace(facts.app, **(app or {})), tasks=(chosen,))


def configured(broker: str = "amqp", **app: Any) -> Facts:
    return replace(rabbit(DLX), app=AppFacts(broker=broker, **app)) if broker == "amqp" else on_redis(**app)


HEALTHY = {
    "RabbitMQ, classic": rabbit(DLX),
    "RabbitMQ, quorum": rabbit(SAFE, QUORUM),
    "RabbitMQ, whose arguments nobody may see": rabbit(QueueFacts("q", arguments=None), QueueFacts("q.dead", arguments=None)),
    "RabbitMQ, before the first worker": rabbit(QueueFacts("q", exists=False), QueueFacts("q.dead", exists=False), levels=()),
    "RabbitMQ, with a policy instead": rabbit(QueueFacts("q", arguments={}, policy={"dead-letter-exchange": "guardrails.dlx"})),
    "Redis": on_redis(RedisFacts(("broker", "store"))),
    "Redis, as Celery sets it up": on_redis(RedisFacts(("broker", "store")), visibility_timeout=3600.0),
    "Redis, managed, which says little": on_redis(RedisFacts(("broker", "store"), persists=None, maxmemory=100, used=10)),
}

# identifier → facts in which it is found
ILL: list[tuple[str, Facts]] = [
    ("E002", with_task(atomic_refused="atomic = True needs another store")),
    ("E003", with_task(resource_refused="resource = 'x' is not declared")),
    ("E004", configured("redis", versions={"celery": (5, 4, 0), "kombu": (5, 5, 0)})),
    ("E010", Facts(broker_error="connection refused")),
    ("E011", Facts(broker_unfit="the transport 'memory'")),
    ("E012", Facts(store=StoreFacts("redis://s", error="connection refused"))),
    ("E020", on_redis(RedisFacts(("store",), policy="volatile-lru", maxmemory=100))),
    ("E020", on_redis(RedisFacts(("store",), policy="allkeys-lfu", maxmemory=100))),
    ("E020", on_redis(RedisFacts(("broker",), policy="allkeys-random", maxmemory=100))),
    ("E021", on_redis(RedisFacts(("store",), refuses_writes="it is a replica"))),
    ("E030", rabbit({**DLX, "x-dead-letter-exchange": "gone"}, exchanges={"gone": False})),
    ("E031", rabbit({"x-message-ttl": 1000})),
    ("E031", rabbit({"x-max-length": 10})),
    ("E031", rabbit({"x-max-length-bytes": 10, "x-overflow": "drop-head"})),
    ("E031", rabbit(QueueFacts("q", policy={"message-ttl": 1000}))),
    ("E032", rabbit(DLX, levels=(QueueFacts(LEVEL, arguments={"x-message-ttl": 100}),))),
    ("W003", with_task(app={"guards_by_default": True}, guarded=False)),
    ("W004", with_task(guarded=False, requeues_losses=True)),
    ("W005", with_task(guarded=False, rejects_failures=True)),
    ("W006", configured(confirms=False)),
    ("W007", configured(prefetch=0)),
    ("W008", configured(accepts_pickle=("accept_content",))),
    ("W008", configured(accepts_pickle=("result_accept_content",))),
    ("W009", with_task(app={"result_expires": 60.0})),
    ("W010", with_task(retention=300.0)),
    ("W010", with_task(retention=30.0, longest_wait=1.0)),
    ("W011", with_task("redis", retention=350.0, longest_wait=10.0)),
    ("W012", configured(persistent=False)),
    ("W013", with_task(limit=1800.0)),
    ("W013", with_task(guarded=False, limit=7200.0)),
    ("W013", with_task(loops=True, limit=None, app={"hand_over_seconds": None})),
    ("W013", with_task(loops=True, limit=600.0, app={"hand_over_seconds": 3600.0})),
    ("W020", on_redis(RedisFacts(("broker",), version=(6, 0)))),
    ("W021", on_redis(RedisFacts(("broker",), persists=False))),
    ("W022", on_redis(RedisFacts(("store",), maxmemory=100, used=81))),
    ("W030", rabbit({})),
    ("W030", rabbit(QueueFacts("q", policy={}))),
    ("W031", rabbit({**SAFE, "x-dead-letter-strategy": "at-most-once"}, QUORUM)),
    ("W031", rabbit({**DLX, **QUORUM}, QUORUM)),
    ("W032", rabbit(QueueFacts("q", arguments=DLX, durable=False))),
    ("W032", rabbit(DLX, QueueFacts("q.dead", auto_delete=True))),
    ("W033", rabbit(DLX, {"x-message-ttl": 1000})),
    ("W033", rabbit(DLX, QueueFacts("q.dead", policy={"max-length": 5}))),
    ("W034", rabbit(SAFE, {})),
    ("W035", rabbit({**SAFE, "x-delivery-limit": 2}, QUORUM)),
    (
        "W036",
        rabbit(DLX, levels=(QueueFacts(LEVEL, exists=False), QueueFacts("guardrails.delay.quorum.01", arguments={"x-message-ttl": 500}))),
    ),
    ("W040", Facts(store=StoreFacts("memory://", one_process=True))),
    ("W041", Facts(store=StoreFacts("redis://s", latency=6.1))),
    ("W042", Facts(store=StoreFacts("redis://s", skew=-6.1))),
    ("I001", with_task(guarded=False, late=False)),
    ("I002", with_task(limit=None)),
    ("I003", on_redis(visibility_timeout=3600.0)),
    ("I004", on_redis(RedisFacts(("store",), replicas=1))),
    ("I005", Facts(letters=(LetterFacts("q.dead", 3, "2026-01-31T12:00:00Z"),))),
    ("I006", rabbit(QueueFacts("q", exists=False))),
    ("I007", configured(publish_retries=False)),
]

# identifier → facts that are nearly so, and well
NEARLY: list[tuple[str, Facts]] = [
    ("E004", configured("redis", versions={"celery": (5, 4, 0), "kombu": (5, 4, 2)})),
    ("E004", configured("redis", versions={"celery": (5, 5, 0), "kombu": (5, 5, 0)})),
    ("E004", configured("amqp", versions={"celery": (5, 4, 0), "kombu": (5, 7, 0)})),
    ("E020", on_redis(RedisFacts(("store",), policy="allkeys-lru", maxmemory=0))),
    ("E020", on_redis(RedisFacts(("broker",), policy="volatile-lru", maxmemory=100))),  # kombu's lists have no time to live
    ("E030", rabbit({**DLX, "x-dead-letter-exchange": ""})),  # the default exchange is always there
    ("E031", rabbit({**DLX, "x-message-ttl": 1000})),
    ("E031", rabbit({"x-max-length": 10, "x-overflow": "reject-publish"})),
    ("E032", rabbit(DLX, levels=(QueueFacts(LEVEL, arguments=None),))),
    ("W003", with_task(guarded=False)),
    ("W004", with_task(guarded=False, requeues_losses=True, late=False)),
    ("W005", with_task(guarded=False, rejects_failures=True, late=False)),
    ("W006", configured("redis", confirms=False)),
    ("W009", with_task(app={"result_expires": None})),
    ("W009", with_task(app={"result_expires": 60.0}, waits=10.0)),
    ("W010", with_task(guarded=False, retention=1.0)),
    ("W010", with_task(retention=600.0)),
    ("W011", with_task("redis", retention=400.0, longest_wait=10.0)),
    ("W011", with_task("amqp", retention=350.0, longest_wait=10.0)),
    ("W013", with_task(limit=1799.0)),
    ("W013", with_task(limit=7200.0, late=False, guarded=False)),
    ("W013", with_task(loops=True, limit=7200.0)),  # it hands over after 20 minutes
    ("W013", with_task("redis", limit=7200.0)),
    ("W020", on_redis(RedisFacts(("store",), version=(6, 0)))),
    ("W020", on_redis(RedisFacts(("broker",), version=(6, 2)))),
    ("W030", rabbit({"x-dead-letter-exchange": ""})),
    ("W031", rabbit({**DLX, **QUORUM}, QUORUM, version=(3, 9))),
    ("W031", rabbit(DLX)),
    ("W034", rabbit(DLX, QUORUM)),
    ("W035", rabbit({**SAFE, "x-delivery-limit": -1}, QUORUM)),
    ("W035", rabbit({**SAFE, "x-delivery-limit": 3}, QUORUM)),
    ("W036", rabbit(DLX, levels=tuple(QueueFacts(name, exists=False) for name in LEVELS))),  # the first worker makes them all
    ("W041", Facts(store=StoreFacts("redis://s", latency=5.9))),
    ("W042", Facts(store=StoreFacts("redis://s", skew=5.9))),
    ("I001", with_task(guarded=False, app={"guards_by_default": True})),
    ("I002", with_task("redis", limit=None)),
    ("I003", configured("amqp", visibility_timeout=3600.0)),
    ("I004", on_redis(RedisFacts(("store",), replicas=1, waits_for_replicas=True))),
    ("I005", Facts(letters=(LetterFacts("q.dead", 0),))),
]


def found_in(facts: Facts) -> set[str]:
    return {finding.id.removeprefix("guardrails.") for finding in diagnose(facts).findings}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_is_not_complained_of(name):
    assert [finding for finding in diagnose(HEALTHY[name]).findings if finding.level is not Level.INFO] == []


@pytest.mark.parametrize(("number", "facts"), ILL)
def test_what_is_ill_is_found(number, facts):
    assert number in found_in(facts)


@pytest.mark.parametrize(("number", "facts"), NEARLY)
def test_what_is_nearly_ill_is_not_found(number, facts):
    assert number not in found_in(facts)


def test_every_check_is_in_the_table():
    assert {f"guardrails.{number}" for number, _ in ILL} == {one.id for one in CHECKS}


def test_identifiers_are_of_one_check_each_and_say_the_level():
    identifiers = [one.id for one in CHECKS]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"guardrails\.[EWI]\d{3}", name) for name in identifiers)
    assert {one.id[11]: one.level for one in CHECKS} == {"E": Level.ERROR, "W": Level.WARNING, "I": Level.INFO}


@pytest.mark.parametrize(("number", "facts"), ILL)
def test_every_finding_says_what_why_and_a_line_that_mends(number, facts):
    for finding in diagnose(facts).findings:
        assert finding.subject
        assert all(text.endswith(".") for text in (finding.why,)), finding
        assert len(finding.what) > 4
        assert "\n" not in finding.mend
        assert shlex.split(finding.mend, comments=True), finding


def test_errors_come_first_and_say_that_not_all_is_well():
    facts = replace(on_redis(RedisFacts(("store",), persists=False, refuses_writes="it is a replica"), visibility_timeout=3600.0))
    levels = [finding.level for finding in diagnose(facts).findings]
    assert levels == [Level.ERROR, Level.WARNING, Level.INFO]
    assert not diagnose(facts).ok
    assert diagnose(HEALTHY["Redis"]).ok


def test_what_is_to_be_ignored_is_not_told():
    facts = configured(prefetch=0, accepts_pickle=("accept_content",))
    assert {one.id for one in diagnose(facts, ignore=["W007", "guardrails.W008"]).findings} == set()


def test_to_ignore_what_is_no_finding_is_refused():
    with pytest.raises(GuardrailsConfigError, match=r"guardrails\.W777"):
        diagnose(HEALTHY["Redis"], ignore=["W777", "W030"])


def test_offline_only_the_configuration_is_judged():
    facts = replace(with_task(limit=7200.0), broker_error="away", app=AppFacts(prefetch=0))
    assert {one.id for one in diagnose(facts, live=False).findings} == {"guardrails.W007"}


@pytest.mark.parametrize(
    ("prefix", "options", "lines"),
    [
        (None, False, ["app.conf.worker_prefetch_multiplier = 1", 'app.conf.broker_transport_options = {"confirm_publish": True}']),
        (
            "CELERY_",
            True,
            [
                "CELERY_WORKER_PREFETCH_MULTIPLIER = 1",
                'CELERY_BROKER_TRANSPORT_OPTIONS = {**CELERY_BROKER_TRANSPORT_OPTIONS, "confirm_publish": True}',
            ],
        ),
    ],
)
def test_settings_are_spelled_as_the_project_spells_them(prefix, options, lines):
    app = AppFacts(settings_prefix=prefix, transport_options=options)
    assert [app.assign("worker_prefetch_multiplier", 1), app.assign_option("confirm_publish", True)] == lines


@pytest.mark.parametrize("queue", ["celery", "a.b+c", "it's (1)", "$HOME"])
def test_a_policy_line_matches_its_queue_and_no_other_and_survives_the_shell(queue):
    words = shlex.split(policy_line("/v h", queue, {"dead-letter-exchange": "d"}), comments=True)
    pattern = words[words.index(f"guardrails-{queue}") + 1]
    assert words[:4] == ["rabbitmqctl", "set_policy", "-p", "/v h"]
    assert re.fullmatch(pattern, queue)
    assert not re.search(pattern, f"x{queue}")
    assert not re.search(pattern, queue.replace(".", "x") + "y")
    assert '{"dead-letter-exchange": "d"}' in words


def test_a_policy_keeps_what_the_queues_policy_has_already():
    facts = rabbit(QueueFacts("q", arguments={**DLX, **QUORUM}, policy={"delivery-limit": 7}), QUORUM)
    (finding,) = (one for one in diagnose(facts).findings if one.id == "guardrails.W031")
    assert '"delivery-limit": 7' in finding.mend


@pytest.mark.parametrize(
    ("queue", "check"),
    [
        (QueueFacts("q", policy={"max-length": 1000, "ha-mode": "all"}), "E031"),
        (QueueFacts("q", policy={"ha-mode": "all"}), "W030"),
    ],
)
def test_a_policy_that_adds_the_exchange_takes_nothing_away(queue, check):
    (finding,) = (one for one in diagnose(rabbit(queue)).findings if one.id == f"guardrails.{check}")
    assert '"ha-mode": "all"' in finding.mend
    assert '"dead-letter-exchange"' in finding.mend


@pytest.mark.parametrize("setting", ["accept_content", "result_accept_content"])
def test_pickle_is_told_of_the_setting_that_allows_it(setting):
    (finding,) = diagnose(configured(accepts_pickle=(setting,))).findings
    assert finding.subject == setting
    assert finding.mend == f"app.conf.{setting} = ['json']"


@pytest.mark.parametrize(
    ("kind", "url", "line"),
    [
        ("amqp", "amqp://h//", "rabbitmq-diagnostics ping"),
        ("redis", "redis://h:1/0;redis://i", "redis-cli -u redis://h:1/0 PING"),
        ("redis", "redis+socket:///run/redis.sock?virtual_host=1", "redis-cli -s /run/redis.sock PING"),
        ("redis", "sentinel://h:26379", "redis-cli -p 26379 SENTINEL masters"),
    ],
)
def test_a_broker_that_is_away_is_asked_by_its_own_client(kind, url, line):
    facts = Facts(AppFacts(broker=kind, broker_url=url), broker_error="connection refused")
    (finding,) = (one for one in diagnose(facts).findings if one.id == "guardrails.E010")
    assert finding.mend.startswith(line)


def test_the_limit_of_a_queue_may_be_shorter_or_longer_than_rabbitmqs_own():
    short = rabbit({**DLX, "x-consumer-timeout": 500_000})
    assert "W013" in found_in(short)
    long = replace(
        rabbit(QueueFacts("q", arguments=DLX, policy={"consumer-timeout": 10_000_000})), tasks=(TaskFacts("t", limit=7200, queue="q"),)
    )
    assert "W013" not in found_in(long)


class Scripted:
    """A channel that refuses as RabbitMQ 3.10 does, one text after the other, and notes what it was asked."""

    def __init__(self, *refusals: str) -> None:
        self.refusals = list(refusals)
        self.asked: list[dict[str, Any]] = []

    def queue_declare(self, queue: str, *, arguments: dict[str, Any], **options: Any) -> None:
        self.asked.append({**arguments, **options})
        if self.refusals:
            raise PreconditionFailed(f"PRECONDITION_FAILED - {self.refusals.pop(0)}")

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Any]:
        yield self


def differs(name: str, ours: str, theirs: str) -> str:
    return f"inequivalent arg '{name}' for queue 'q' in vhost '/': received {ours} but current is {theirs}"


def test_what_a_queue_has_is_read_out_of_refusals_and_asked_for_once():
    channel = Scripted(
        differs("durable", "'true'", "'false'"),
        differs("x-max-priority", "none", "the value '5' of type 'signedint'"),
        differs("x-single-active-consumer", "none", "the value 'true' of type 'bool'"),
        differs("x-dead-letter-exchange", "none", "the value '7' of type 'longstr'"),
        differs("x-message-ttl", "'none'", "'5000'"),
        differs("x-overflow", "the value '0' of type 'signedint'", "none"),
    )
    shape = shape_of(channel.scratch, "q", ["x-message-ttl", "x-dead-letter-exchange", "x-overflow"])
    assert shape is not None
    known = {"x-max-priority": 5, "x-single-active-consumer": True, "x-dead-letter-exchange": "7", "x-message-ttl": 5000}
    assert (shape.arguments, shape.durable) == (known, False)
    assert channel.asked[-1] == {**known, "x-overflow": 0, "durable": False, "auto_delete": False}
    assert len(channel.asked) == 6


def test_a_refusal_that_is_not_understood_says_nothing_of_the_queue():
    assert shape_of(Scripted("some other words").scratch, "q") is None


def test_the_page_of_the_doctor_has_every_finding():
    page = (Path(ROOT) / "docs" / "doctor.md").read_text()
    rows = dict(re.findall(r"^\| `(guardrails\.[EWI]\d{3})` \| (.+?) \|", page, re.MULTILINE))
    ours = {one.id: one.title for one in CHECKS}
    django_only = {"guardrails.E001", "guardrails.W001", "guardrails.W002"}
    assert {name: title for name, title in rows.items() if name not in django_only} == ours
    assert django_only <= rows.keys()
