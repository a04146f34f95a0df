"""An audit of a broker and a store in memory: what it finds, how often it looks, and what it does not touch."""

from __future__ import annotations

import json

import pytest
from celery import Celery

from celery_guardrails.audit import Answer, Auditor, Held, Sources, State
from celery_guardrails.audit.render import audit_data, audit_lines
from celery_guardrails.audit.standing import SILENT
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.integration.auditing import _results_of
from celery_guardrails.policy.key import shortened
from celery_guardrails.policy.lease import StoredResult
from celery_guardrails.ports import Backlog, CountingStore, Depth, OpenBroker
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.memory_broker import MemoryBroker
from tests.support.dead_letters import Kit, task_message

LEASE = 60.0


class Scene(Kit):
    """A kit with an auditor, and what can be done to a task."""

    def __init__(self):
        super().__init__()
        self.answers = [Answer("w1", frozenset({"celery"}))]
        self.results = {}
        self.asked_workers = 0
        self.on_sleep = lambda: None
        sleep = self.clock.sleep

        def slept(seconds):
            sleep(seconds)
            self.on_sleep()

        self.clock.sleep = slept

    def audit(self, *names, sources=None, **options):
        given = {
            "broker": self.broker,
            "store": self.store,
            "letters": self.service,
            "archive": None,
            "workers": self.workers,
            "result": lambda name: self.results.get(name, ""),
            "key_of": lambda message: message.headers.get("computed"),
            "clock": self.clock,
            "lease": LEASE,
            **(sources or {}),
        }
        return Auditor(Sources(**given), **{"wait": 5.0, **options}).run(names or None)

    def workers(self):
        self.asked_workers += 1
        return self.answers

    def complete(self, key):
        claim = self.store.claim(key, holder="h", fingerprint=None, lease=LEASE)
        assert self.store.complete(key, holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=9999)

    def run(self, key, lease=LEASE):
        self.store.claim(key, holder="h", fingerprint=None, lease=lease, owner="w1/5")

    def wait(self, key, **headers):
        self.broker.put(task_message(key=key, **headers), "celery")


@pytest.fixture
def scene():
    return Scene()


def states(audit):
    return {one.name: one.state.value for one in audit.standings}


def kinds(audit):
    return sorted(finding.kind for finding in audit.findings if finding.error)


def every_state(scene):
    scene.wait("waiting")
    scene.broker.delay(task_message(key="delayed"), "celery", 300)
    scene.run("running")
    scene.complete("completed")
    scene.bury(task_message(key="dead"), "poison")
    scene.wait("held")
    scene.broker.receive("celery", None)
    scene.wait("waiting")
    return ["waiting", "delayed", "running", "completed", "dead", "held"]


def test_every_task_is_in_the_state_that_it_is_in(scene):
    names = every_state(scene)
    audit = scene.audit(*names)
    assert states(audit) == {**{name: name for name in names}, "held": "waiting"}
    assert audit.conserved
    assert sum(audit.balance.values()) == len(names)


def test_the_counts_are_those_of_broker_and_store(scene):
    every_state(scene)
    audit = scene.audit()
    assert (audit.waiting, audit.delayed, audit.held, audit.running, audit.completed, audit.dead) == (2, 1, 1, 1, 1, 1)
    assert audit.queues[0].reasons == {"poison": 1}
    assert (audit.over, audit.workers, audit.conserved) == (0, ("w1",), True)


def test_an_audit_moves_nothing(scene):
    names = every_state(scene)

    def everything():
        return scene.broker.messages("celery"), scene.broker.messages("celery.dead"), scene.broker.delayed(), scene.store._records

    before = repr(everything())
    scene.audit(*names, "nowhere")
    assert repr(everything()) == before


def test_a_task_that_is_nowhere_is_named_and_is_an_error(scene):
    scene.complete("a")
    audit = scene.audit("a", "b")
    assert states(audit) == {"a": "completed", "b": "unaccounted"}
    assert [(finding.kind, finding.key) for finding in audit.findings] == [("unaccounted", "b")]
    assert not audit.conserved


def test_what_is_nowhere_is_looked_for_until_the_time_is_over(scene):
    begun = scene.clock.now()
    audit = scene.audit("b", wait=5.0)
    assert scene.clock.now() - begun >= 5.0
    assert audit.looks >= 6
    assert scene.audit("b", wait=0).looks <= 3


def test_a_task_that_moves_while_it_is_looked_for_is_found_by_a_later_look(scene):
    scene.on_sleep = lambda: scene.complete("moving")
    audit = scene.audit("moving")
    assert states(audit) == {"moving": "completed"}
    assert audit.conserved


def test_a_task_that_is_retried_behind_the_look_is_found_by_a_later_one(scene):
    scene.broker.delay(task_message(key="another"), "celery", 300)
    delayed = scene.broker.delayed_messages

    def first_nothing():  # it is published anew when the delays have been looked through
        scene.broker.delayed_messages = delayed
        scene.broker.delay(task_message(key="moving"), "celery", 300)
        return iter(())

    scene.broker.delayed_messages = first_nothing
    assert states(scene.audit("moving")) == {"moving": "delayed"}


def test_what_is_found_in_the_store_needs_no_look_at_messages(scene):
    scene.complete("a")
    scene.run("b")
    scene.bury(task_message(key="c"))
    scene.broker.delayed_messages = scene.broker.held_messages = None
    assert scene.audit("a", "b", "c").conserved


def test_a_key_that_is_completed_and_dead_is_found_with_a_list_and_without(scene):
    scene.complete("both")
    scene.bury(task_message(key="both"), "poison")
    for audit in (scene.audit(), scene.audit("both")):
        assert kinds(audit) == ["completed and dead"]
        assert "poison" in audit.findings[0].text
        assert "discard" in audit.findings[0].mend


def test_a_contradiction_that_is_gone_at_the_second_look_is_none(scene):
    scene.complete("both")
    scene.bury(task_message(key="both"))
    scene.on_sleep = scene.service.discard
    assert scene.audit("both").conserved


def test_a_contradiction_of_another_execution_is_seen_once_only(scene):
    scene.run("both")
    scene.bury(task_message(key="both"))

    def again():  # each time it is another one's
        scene.store.release("both", holder="h")
        scene.run("both")

    scene.on_sleep = again
    looks = scene.audit("both", wait=5.0).looks
    scene.on_sleep = lambda: None
    assert scene.audit("both", wait=5.0).looks < looks


def test_a_key_that_runs_and_is_dead_is_found_without_a_list(scene):
    scene.run("both")
    scene.bury(task_message(key="both"))
    assert kinds(scene.audit()) == ["running and dead"]


def test_a_lease_that_is_over_for_long_with_no_message_anywhere_is_found_without_a_list(scene):
    scene.run("gone", lease=1.0)
    scene.clock.advance(1.0 + 3 * LEASE)
    audit = scene.audit()
    assert kinds(audit) == ["unaccounted"]
    assert "w1/5 is gone" in audit.findings[0].text
    assert (audit.running, audit.over) == (0, 1)


def test_a_lease_that_is_over_and_whose_message_waits_is_no_finding(scene):
    scene.run("gone", lease=1.0)
    scene.wait("gone")
    scene.clock.advance(1.0 + 3 * LEASE)
    assert scene.audit().conserved


def test_a_lease_that_is_just_over_is_counted_and_no_finding(scene):
    scene.run("gone", lease=1.0)
    scene.clock.advance(2.0)
    audit = scene.audit()
    assert (audit.over, audit.conserved) == (1, True)


def test_letters_without_a_header_are_told(scene):
    scene.bury_raw(task_message(key="stranger"))
    audit = scene.audit()
    assert [finding.kind for finding in audit.findings] == ["letters without a header"]
    assert audit.conserved
    assert audit.queues[0].reasons == {"broker": 1}


def test_delayed_messages_that_nobody_moves_are_an_error(scene):
    def backlog(queues):
        return Backlog({queue: Depth() for queue in queues}, delayed=5, overdue=3, overdue_seconds=61.0, held=0)

    scene.broker.backlog = backlog
    audit = scene.audit()
    assert kinds(audit) == ["overdue"]
    assert "start a worker" in audit.findings[0].mend


def test_delayed_messages_whose_queue_is_gone_are_an_error(scene):
    scene.broker.backlog = lambda queues: Backlog({queue: Depth() for queue in queues}, unrouted=2, held=0)
    assert kinds(scene.audit()) == ["unrouted"]


def test_messages_without_workers_are_a_note(scene):
    scene.wait("k")
    scene.answers = []
    audit = scene.audit()
    assert [(finding.kind, finding.error) for finding in audit.findings] == [("no worker", False)]


# -- brokers that do not show everything --------------------------------------------------------------------------


def opaque(scene, **depths):
    """Have the broker show nothing of what is held, as RabbitMQ does."""
    plain = type(scene.broker).backlog

    def backlog(queues):
        found = plain(scene.broker, queues)
        shown = {name: Depth(depth.ready, **depths) if name == "celery" else depth for name, depth in found.queues.items()}
        return Backlog(shown, delayed=found.delayed)

    scene.broker.backlog = backlog
    scene.broker.held_messages = lambda: iter(())


def test_where_the_broker_does_not_show_what_is_held_the_workers_are_asked(scene):
    opaque(scene, consumers=1)
    held = Held("id-1", "prefetched", "celery", False), Held("id-2", "open", "celery", True)
    scene.answers = [Answer("w1", frozenset({"celery"}), held)]
    audit = scene.audit("prefetched", "open", "id-1")
    assert states(audit) == {"prefetched": "waiting", "open": "running", "id-1": "waiting"}
    assert audit.held == 2


def test_a_worker_that_does_not_answer_is_told_with_what_may_be_in_its_hands(scene):
    opaque(scene, consumers=3)
    audit = scene.audit("k")
    assert "what 2 consumers hold whose workers did not answer" in audit.findings[0].text


def test_a_worker_of_another_queue_does_not_stand_for_one_that_did_not_answer(scene):
    opaque(scene, consumers=1)
    scene.answers = [Answer("w1", frozenset({"other"}))]
    assert "what 1 consumers hold" in scene.audit("k").findings[0].text


def test_a_queue_in_which_a_look_counts_is_looked_through_only_if_asked_to(scene):
    opaque(scene, consumers=1, counted=True)
    scene.wait("k")
    audit = scene.audit("k")
    assert states(audit) == {"k": "unaccounted"}
    assert "--quorum" in audit.findings[0].text
    assert states(scene.audit("k", counted=True)) == {"k": "waiting"}


# -- limits ---------------------------------------------------------------------------------------------------------


def test_more_messages_than_the_limit_are_not_looked_through_for_keys(scene):
    for number in range(3):
        scene.wait(f"k{number}")
    with pytest.raises(GuardrailsConfigError, match="--limit 2: 3 messages in queue 'celery'.*--limit 3"):
        scene.audit("k1", limit=2)
    assert scene.audit("k1", limit=3).conserved


def test_without_keys_what_is_over_the_limit_is_told_and_no_error(scene):
    for number in range(3):
        scene.bury(task_message(key=f"k{number}"))
    audit = scene.audit(limit=2)
    assert [(finding.kind, finding.error) for finding in audit.findings] == [("not looked at", False)]
    assert (audit.dead, audit.queues[0].reasons) == (3, None)


@pytest.mark.parametrize("options", [{"limit": -1}, {"limit": True}, {"wait": -1}, {"wait": float("nan")}])
def test_wrong_options_are_refused(scene, options):
    with pytest.raises(GuardrailsConfigError, match="is allowed"):
        scene.audit("k", **options)


def test_a_broker_that_cannot_be_looked_through_is_refused(scene):
    with pytest.raises(GuardrailsConfigError, match="cannot be looked through"):
        scene.audit(sources={"broker": object()})


def test_what_is_shipped_can_be_audited():
    from celery_guardrails.integration.brokers.amqp import AmqpBroker
    from celery_guardrails.integration.brokers.redis import RedisBroker
    from celery_guardrails.stores.redis import RedisStore
    from celery_guardrails.stores.sql.store import SqlStore

    assert all(issubclass(broker, OpenBroker) for broker in (AmqpBroker, RedisBroker, MemoryBroker))
    assert all(issubclass(store, CountingStore) for store in (RedisStore, SqlStore, MemoryStore))


def test_a_store_that_does_not_count_is_audited_without_completions(scene):
    class Plain:
        def __getattr__(self, name):
            if name == "census":
                raise AttributeError(name)
            return getattr(scene.store, name)

    scene.complete("a")
    audit = scene.audit("a", sources={"store": Plain()})
    assert audit.completed is None
    assert audit.conserved


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_task_is_found_by_its_id_and_its_record_by_the_key_that_its_message_tells(scene):
    scene.broker.put(task_message(key="order:5", task_id="id-5"), "celery")
    (one,) = scene.audit("id-5").standings
    assert (one.state, one.key) == (State.WAITING, "order:5")
    scene.run("order:5")
    (one,) = scene.audit("id-5").standings
    assert one.state is State.RUNNING


def test_a_message_without_a_key_is_found_by_the_key_that_a_worker_would_compute(scene):
    scene.broker.put(task_message(task_id="id-6", computed="order:6"), "celery")
    assert states(scene.audit("order:6", "id-6")) == {"order:6": "waiting", "id-6": "waiting"}


def test_of_a_task_that_left_no_trace_the_result_backend_is_asked(scene):
    scene.results = {"id-7": "SUCCESS", "id-8": "FAILURE"}
    audit = scene.audit("id-7", "id-8", "id-9", wait=0)
    assert states(audit) == {"id-7": "completed", "id-8": "failed", "id-9": "unaccounted"}


def test_a_name_that_is_given_twice_is_asked_for_once(scene):
    scene.complete("a")
    assert len(scene.audit("a", "a").standings) == 1


# -- output -----------------------------------------------------------------------------------------------------------


def test_the_text_has_the_balance_the_findings_and_the_verdict(scene):
    names = every_state(scene)
    text = "\n".join(audit_lines(scene.audit(*names, "lost"), each=True))
    assert "published  7 = waiting 2 + delayed 1 + running 1 + completed 1 + dead 1 + unaccounted 1" in text
    assert "error: unaccounted: lost: no record" in text
    assert "NOT conserved: 1 errors" in text
    assert "celery" in text


def test_the_text_of_an_audit_without_keys_says_what_they_would_add(scene):
    text = "\n".join(audit_lines(scene.audit()))
    assert "--keys FILE" in text
    assert "nothing contradicts itself" in text


def test_the_json_has_everything(scene):
    names = every_state(scene)
    data = json.loads(json.dumps(audit_data(scene.audit(*names, "lost"))))
    assert (data["conserved"], data["published"], data["balance"]["waiting"]) == (False, 7, 2)
    assert data["standings"][0] == {
        "name": "waiting",
        "key": "waiting",
        "state": "waiting",
        "where": "in queue celery",
        "contradiction": "",
        "note": "",
    }
    assert data["findings"][0]["kind"] == "unaccounted"
    assert data["queues"][0]["dead_letter_queue"] == "celery.dead"


def test_two_tasks_with_one_key_and_other_arguments_are_completed_and_dead_and_nothing_is_wrong(scene):
    scene.complete("charge:5")
    scene.bury(task_message(key="charge:5", task_id="id-2"), "conflict")
    assert scene.audit().conserved
    audit = scene.audit("charge:5", "id-2")
    assert states(audit) == {"charge:5": "completed", "id-2": "dead"}
    assert audit.conserved
    assert [finding.kind for finding in audit.findings] == ["completed, and more"]


def test_a_key_that_was_too_long_is_found_by_its_whole_length(scene):
    key = "k" * 600
    scene.complete(shortened(key))
    assert scene.audit(key).conserved


def test_a_result_backend_that_does_not_answer_is_named_beside_what_was_not_found(scene):
    scene.results["nowhere"] = SILENT
    (finding,) = scene.audit("nowhere", wait=0).findings
    assert "not seen: 1 results" in finding.text


@pytest.fixture
def backend(monkeypatch):
    app = Celery("shop", backend="cache+memory://", set_as_current=False)
    app.backend.store_result("good", 1, "SUCCESS")
    answered = app.backend.get_state

    def get_state(task_id):
        if task_id.startswith("bad"):
            raise ValueError("no JSON")
        return answered(task_id)

    monkeypatch.setattr(app.backend, "get_state", get_state)
    return app


def test_one_result_that_cannot_be_read_does_not_silence_the_others(backend):
    state = _results_of(backend)
    assert [state(name) for name in ("bad", "good", "bad", "bad", "good")] == [SILENT, "SUCCESS", SILENT, SILENT, "SUCCESS"]


def test_a_result_backend_that_never_answers_is_not_asked_for_ever(backend):
    state = _results_of(backend)
    assert [state(f"bad{number}") for number in range(3)] == [SILENT] * 3
    assert state("good") == SILENT
