"""What events add to which number, how pool processes count for the main process, and what Prometheus is shown."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from typing import get_args

import pytest
from celery import Celery
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from celery_guardrails import Guardrails, events
from celery_guardrails.contrib.prometheus import Exposition, install
from celery_guardrails.integration import metrics
from celery_guardrails.integration.counting import Counting, Counts, Outbox, Pipe, Source
from celery_guardrails.integration.metrics import METRICS, OTHER, SUM, Key, Measures
from celery_guardrails.policy.deadletter import DeathCertificate
from tests.support import eventually

TASK, ID, KEY = "shop.charge", "id", "charge:1"
LETTER = DeathCertificate("poison", task=TASK, task_id=ID, key=KEY)

#: Every event, and the numbers that it changes when it is the first of its kind.
FIRST = [
    (events.Started(TASK, ID, KEY, 1, 1, False), {("tasks_started", TASK): 1}),
    (events.Started(TASK, ID, KEY, 1, 2, True), {("tasks_started", TASK): 1, ("leases_taken_over", TASK): 1}),
    (events.Completed(TASK, ID, KEY, 1), {("tasks_completed", TASK): 1}),
    (events.Replayed(TASK, ID, KEY), {("tasks_replayed", TASK): 1}),
    (events.Retrying(TASK, ID, KEY, 1, 2.0, "E: secret", "rule"), {("tasks_retried", TASK): 1}),
    (events.HandedBack(TASK, ID, KEY, 1.0, "store away"), {("tasks_handed_back", TASK, "store away"): 1}),
    (events.HandedBack(TASK, ID, KEY, 1.0, "crowded"), {("tasks_handed_back", TASK, "crowded"): 1}),
    (events.HandedBack(TASK, ID, KEY, 1.0, "quarantine"), {("tasks_handed_back", TASK, "quarantine"): 1}),
    (events.HandedBack(TASK, ID, KEY, 1.0, "something new 17"), {("tasks_handed_back", TASK, OTHER): 1}),
    (events.DeadLettered("celery", LETTER), {("dead_letters", TASK, "celery", "poison"): 1}),
    (events.DeadLettered("no such queue", DeathCertificate("?", task="evil.1")), {("dead_letters", OTHER, OTHER, OTHER): 1}),
    (events.Crashed(TASK, ID, KEY, 1), {("task_crashes", TASK): 1}),
    (events.Quarantined(TASK, ID, KEY, 2, True), {("tasks_quarantined", TASK): 1}),
    (events.LeaseTaken(TASK, ID, KEY), {("leases_lost", TASK): 1}),
    (events.BreakerMoved("bank", "open", False, 0.0), {("breaker_condition", "bank", "open"): 1}),
    (events.ResultNotKept(ID, "why"), {("results_not_kept",): 1}),
    (events.StoreFailed("claim", "redis://:secret@host"), {("store_failures", "claim"): 1}),
    (events.TaskLeaked(TASK, ID, "child processes", 5, 5, (), False, ""), {("task_leaks", TASK, "child_processes"): 1}),
    (events.StillRunning(TASK, ID, KEY, 61.0, 60.0, "x"), {("task_overruns", TASK): 1, ("tasks_overrunning", TASK): 1}),
    (events.Overran(TASK, ID, KEY, 70.0, 60.0), {}),
    (events.Abandoned(TASK, ID, KEY, 70.0, "x"), {("tasks_abandoned", TASK): 1}),
    (events.Drained(1, 2, 3, 4, 5.0), {}),
]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def measures(clock=None):
    return Measures({TASK}, {"celery"}, clock or Clock())


def flat(additions):
    return {(key.metric, *key.labels): amount for key, amount in additions}


@pytest.mark.parametrize(("event", "changes"), FIRST, ids=lambda value: type(value).__name__)
def test_an_event_changes_these_numbers_and_no_others(event, changes):
    assert flat(measures()(event)) == changes


def test_every_event_is_known_and_every_number_is_of_a_known_metric_with_its_labels():
    assert {type(event) for event, _ in FIRST} == set(get_args(events.Event))
    for event, _ in FIRST:
        for key, _ in measures()(event):
            assert len(key.labels) == len(METRICS[key.metric].labels)
    assert all("key" not in metric.labels and "task_id" not in metric.labels for metric in METRICS.values())


def test_no_label_is_what_a_message_says_of_itself():
    event = events.Started("evil." + "x" * 1000, ID, KEY, 1, 1, False)
    assert flat(measures()(event)) == {("tasks_started", OTHER): 1}


def test_a_run_that_completes_is_measured_and_one_that_does_not_is_not():
    clock = Clock()
    measure = measures(clock)
    measure(events.Started(TASK, "a", KEY, 1, 1, False))
    measure(events.Started(TASK, "b", KEY, 1, 1, False))
    clock.now += 0.3
    measure(events.Retrying(TASK, "b", KEY, 1, 2.0, "E", "rule"))
    assert dict(measure(events.Completed(TASK, "a", KEY, 1))) == {
        Key("tasks_completed", (TASK,)): 1,
        Key("task_duration_seconds", (TASK,), "6"): 1,  # up to 0.5
        Key("task_duration_seconds", (TASK,), SUM): pytest.approx(0.3),
    }
    assert flat(measure(events.Completed(TASK, "b", KEY, 1))) == {("tasks_completed", TASK): 1}


def test_runs_without_an_end_are_not_remembered_for_ever(monkeypatch):
    monkeypatch.setattr(metrics, "_MOST_RUNS", 10)
    measure = measures()
    for number in range(50):
        measure(events.Started(TASK, f"t{number}", KEY, 1, 1, False))
    assert len(measure._begun) == 10
    assert len(measure(events.Completed(TASK, "t49", KEY, 1))) == 3, "the last ones are"


def test_a_run_beyond_its_limit_counts_once_and_is_over_when_it_has_ended_or_is_abandoned():
    counts = Counts()
    measure = measures()
    for event in (
        events.StillRunning(TASK, "a", KEY, 61.0, 60.0, "x"),
        events.StillRunning(TASK, "a", KEY, 122.0, 60.0, "x"),
        events.StillRunning(TASK, "b", KEY, 61.0, 60.0, "x"),
        events.StillRunning(TASK, "c", KEY, 61.0, 60.0, "x"),
        events.Overran(TASK, "a", KEY, 130.0, 60.0),
        events.Abandoned(TASK, "b", KEY, 130.0, "x"),
    ):
        counts.add(measure(event))
    assert counts.values() == {
        Key("task_overruns", (TASK,)): 3,
        Key("tasks_overrunning", (TASK,)): 1,
        Key("tasks_abandoned", (TASK,)): 1,
    }


def test_a_breaker_is_in_one_condition_at_a_time():
    counts = Counts()
    measure = measures()
    for condition in ("open", "half-open", "half-open", "closed", "open"):
        counts.add(measure(events.BreakerMoved("bank", condition, False, 0.0)))
    assert {key.labels[1]: value for key, value in counts.values().items()} == {"open": 1, "half-open": 0, "closed": 0}


# -- from pool processes --------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close_read_end()
    os.close(made.write_end)


def test_a_process_that_forks_again_closes_the_number_of_the_read_end_only_once(pipe):
    number = pipe.read_end
    pipe.close_read_end()
    files = [os.open(os.devnull, os.O_RDONLY)]
    if files[0] != number:
        files.append(os.dup2(files[0], number))  # the number is free again, and a task has opened something
    pipe.close_read_end()
    os.fstat(number)
    for file in files:
        os.close(file)


def test_what_is_sent_arrives_also_names_that_are_no_ascii(pipe):
    outbox = Outbox(pipe.write_end)
    sent = [(Key("tasks_started", ("ladén.täsk \n\"'",)), 1.0), (Key("results_not_kept"), 2.0), (Key("d", ("t",), SUM), 0.1234567890123)]
    outbox.send(sent)
    assert pipe.wait(5)
    assert pipe.read() == sent
    assert pipe.read() == []


def test_a_full_pipe_delays_what_is_counted_and_loses_nothing(pipe):
    outbox = Outbox(pipe.write_end)
    key = Key("tasks_started", (TASK,))
    for _ in range(20_000):
        outbox.send([(key, 1.0)])
    assert outbox._pending, "it is full"
    counts = Counts()

    def all_there():
        counts.add(pipe.read())
        return counts.values()[key] == 20_000

    eventually(all_there, 30)  # the child has nothing more to count, and sends the rest by itself
    assert not outbox._pending


def test_lines_of_several_writers_do_not_mix(pipe):
    keys = [Key("tasks_started", (f"{number}" * 150,)) for number in range(4)]

    def write(key):
        outbox = Outbox(pipe.write_end)
        for _ in range(2000):
            outbox.send([(key, 1.0)])

    threads = [threading.Thread(target=write, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    counts = Counts()

    def all_there():
        counts.add(pipe.read())
        return counts.values() == dict.fromkeys(keys, 2000.0)

    eventually(all_there, 60)


def test_a_label_that_does_not_fit_into_one_write_is_other(pipe):
    Outbox(pipe.write_end).send([(Key("tasks_handed_back", ("x" * select.PIPE_BUF, "held")), 1.0)])
    assert pipe.read() == [(Key("tasks_handed_back", (OTHER, OTHER)), 1.0)]


def shop(**settings):
    app = Celery("shop", broker="memory://", set_as_current=False)
    rails = Guardrails(app, store="memory://", **settings)

    @app.task(name=TASK, shared=False)
    def charge() -> None: ...

    return rails


@pytest.mark.parametrize("locked", [False, True])
def test_a_forked_process_counts_for_the_one_that_made_the_pipe_and_minds_no_lock_of_it(pipe, locked):
    rails = shop()
    counting = Counting(rails, pipe)
    rails.listen(counting)
    rails.emit(events.Replayed(TASK, ID, KEY))
    if locked:
        counting.counts._lock.acquire()  # as another thread may at the moment of the fork
    pid = os.fork()
    if pid == 0:
        try:
            rails.emit(events.Replayed(TASK, ID, KEY))
            rails.emit(events.Crashed(TASK, ID, KEY, 1))
        finally:
            os._exit(0)
    if locked:
        eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, 30)
        counting.counts._lock.release()
    else:
        os.waitpid(pid, 0)
    assert counting.values() == {Key("tasks_replayed", (TASK,)): 2, Key("task_crashes", (TASK,)): 1}


# -- what is shown --------------------------------------------------------------------------------------------------


def samples(families):
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def shown(*happened, accept=""):
    counts = Counts()
    measure = measures()
    for event in happened:
        counts.add(measure(event))
    return Exposition(Source("shop", counts.values, lambda: [TASK], lambda: {Key("ready"): 1.0}))(accept)


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "application/openmetrics-text; version=", ";;,=", "\xff"])
def test_whatever_a_client_says_that_it_takes_there_is_an_answer(accept):
    content_type, body = shown(events.Started(TASK, ID, KEY, 1, 1, False), accept=accept)
    assert content_type
    assert b"tasks_started" in body


def test_counters_of_tasks_begin_with_zero_and_histograms_add_up():
    content_type, body = shown(events.Started(TASK, ID, KEY, 1, 1, False), events.Completed(TASK, ID, KEY, 1))
    assert content_type.startswith("text/plain")
    found = samples(text_string_to_metric_families(body.decode()))
    labels = (("namespace", "shop"), ("task", TASK))
    assert found["celery_guardrails_tasks_completed_total", labels] == 1
    assert found["celery_guardrails_task_crashes_total", labels] == 0
    assert found["celery_guardrails_results_not_kept_total", (("namespace", "shop"),)] == 0
    assert found["celery_guardrails_ready", (("namespace", "shop"),)] == 1
    bucket = "celery_guardrails_task_duration_seconds_bucket"
    assert found[bucket, (("le", "0.005"), *labels)] == found[bucket, (("le", "+Inf"), *labels)] == 1
    assert found["celery_guardrails_task_duration_seconds_count", labels] == 1


def test_openmetrics_is_answered_to_who_asks_for_it():
    content_type, body = shown(
        *(event for event, _ in FIRST), events.Started(TASK, ID, KEY, 1, 1, False), accept="application/openmetrics-text; version=1.0.0"
    )
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    found = samples(openmetrics_families(body.decode()))
    assert found["celery_guardrails_task_leaks_total", (("kind", "child_processes"), ("namespace", "shop"), ("task", TASK))] == 1
    assert b"secret" not in body


def test_a_process_that_is_no_worker_counts_into_its_own_registry_once():
    registry = CollectorRegistry(auto_describe=True)
    first, second = shop(namespace="one"), shop(namespace="two")
    install(first, registry)
    install(first, registry)
    install(second, registry)
    first.emit(events.Replayed(TASK, ID, KEY))
    second.emit(events.Replayed("elsewhere", ID, KEY))
    found = samples(text_string_to_metric_families(generate_latest(registry).decode()))
    assert {labels: value for (name, labels), value in found.items() if name == "celery_guardrails_tasks_replayed_total"} == {
        (("namespace", "one"), ("task", TASK)): 1,
        (("namespace", "two"), ("task", OTHER)): 1,
    }
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Counter("celery_guardrails_tasks_replayed", "somebody else's", registry=registry)
