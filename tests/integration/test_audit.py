"""An audit of a live app: every task is in exactly one state, and what was lost by hand is named."""

from __future__ import annotations

import json

import pytest

from celery_guardrails.audit import State
from celery_guardrails.cli import commands
from celery_guardrails.integration.auditing import auditor_of
from tests.support import eventually
from tests.unit.test_dead_letters_cli import make_runner

#: A failed attempt waits for this long.
LATER = {"max_attempts": 5, "base": 300.0, "cap": 600.0, "jitter": "none"}


class Scene:
    """One worker with one child, and tasks in every state."""

    def __init__(self, app):
        self.app = app
        self.worker = app.worker(concurrency=1)
        for name in ("done1", "done2"):
            assert app.send("effect", name).get(timeout=60) == name
        app.send("fail_for_good", "dead")
        app.send("fail", "retried")
        app.task("effect").apply_async(("postponed",), countdown=600)
        eventually(lambda: app.dead() == 1, 60)
        eventually(lambda: self.delayed() == 2, 60)
        app.send("until_told", "running", 300.0)
        app.ledger.wait("start", "running", timeout=60)
        for name in ("held", "wait1", "wait2"):  # the first is in the worker's hand
            app.send("effect", name)
        eventually(lambda: app.depth() == 2, 60)

    def delayed(self):
        return self.app.guardrails.broker.backlog([self.app.queue]).delayed

    @property
    def keys(self):
        return [f"effect:{name}" for name in ("done1", "done2", "dead", "retried", "postponed", "running", "held", "wait1", "wait2")]

    def audit(self, keys=None, **options):
        return self.app.guardrails.audit(self.keys if keys is None else keys, **options)

    def command(self, *arguments, keys=None):
        return make_runner().invoke(commands(lambda: self.app.app), ["audit", *arguments], input="\n".join(keys or self.keys))


@pytest.fixture
def scene(deploy, monkeypatch):
    monkeypatch.setitem(auditor_of.__kwdefaults__, "timeout", 2.0)  # a worker on a busy machine
    return Scene(deploy(retry=LATER, worker_prefetch_multiplier=2, guardrails_lease_seconds=5))


EXPECTED = {
    "effect:done1": "completed",
    "effect:done2": "completed",
    "effect:dead": "dead",
    "effect:retried": "delayed",
    "effect:postponed": "delayed",
    "effect:running": "running",
    "effect:held": "waiting",
    "effect:wait1": "waiting",
    "effect:wait2": "waiting",
}


def states(audit):
    return {one.name: one.state.value for one in audit.standings}


@pytest.mark.timeout(400)
def test_every_task_is_in_one_state_and_what_is_lost_is_named(scene):
    audit = scene.audit()
    assert states(audit) == EXPECTED, audit
    assert audit.conserved, audit.findings
    expected = {State.COMPLETED: 2, State.DEAD: 1, State.DELAYED: 2, State.RUNNING: 1, State.WAITING: 3}
    assert audit.balance == {**dict.fromkeys(State, 0), **expected}
    assert (audit.waiting, audit.delayed, audit.running, audit.completed, audit.dead) == (2, 2, 1, 2, 1)
    assert (audit.held, len(audit.workers)) == (2, 1)
    assert audit.queues[0].reasons == {"permanent": 1}
    text = scene.command("--keys", "-", "--each")
    assert text.exit_code == 0, text.output
    assert "published  9 = waiting 3 + delayed 2 + running 1 + completed 2 + dead 1 + unaccounted 0" in text.stdout

    # looking has moved nothing
    assert (scene.app.depth(), scene.delayed(), scene.app.dead()) == (2, 2, 1)
    assert states(scene.audit()) == EXPECTED

    scene.app.broker.purge(scene.app.queue)
    audit = scene.audit(wait=2.0)
    lost = {"effect:wait1": "unaccounted", "effect:wait2": "unaccounted"}
    assert states(audit) == {**EXPECTED, **lost}
    assert {finding.key for finding in audit.findings if finding.error} == set(lost)
    said = scene.command("--keys", "-", "--wait", "1", "--json")
    assert said.exit_code == 1
    data = json.loads(said.stdout)
    assert (data["conserved"], data["balance"]["unaccounted"]) == (False, 2)
    assert {finding["key"] for finding in data["findings"] if finding["error"]} == set(lost)
    # what is lost before it ever ran leaves no trace: only a list finds it
    assert scene.audit([]).conserved


@pytest.mark.timeout(400)
def test_a_delayed_message_that_is_lost_is_named_too(scene):
    lose_delayed(scene)
    audit = scene.audit(wait=2.0)
    assert states(audit) == {**EXPECTED, "effect:retried": "unaccounted", "effect:postponed": "unaccounted"}
    (retried,) = (one for one in audit.standings if one.name == "effect:retried")
    assert "1 attempts charged" in retried.where


@pytest.mark.long_on("redis")
@pytest.mark.timeout(400)
def test_a_task_whose_worker_and_message_are_gone_is_found_without_a_list(scene):
    app = scene.app
    scene.worker.kill()
    if app.broker.kind == "redis":
        with app.broker.connection() as connection:
            connection.default_channel.client.delete("unacked", "unacked_index")
    else:
        eventually(lambda: app.depth() == 4, 60)
    app.broker.purge(app.queue)
    audit = eventually(lambda: (found := scene.audit([], wait=1.0)) and not found.conserved and found, 60, every=1)
    assert [finding.key for finding in audit.findings if finding.error] == ["effect:running"]
    assert "is gone" in audit.findings[-1].text or "is gone" in audit.findings[0].text
    assert (audit.running, audit.over, audit.workers) == (0, 1, ())
    said = scene.command("--wait", "1")
    assert said.exit_code == 1
    assert "effect:running" in said.stdout


@pytest.mark.timeout(400)
def test_a_key_that_is_completed_and_dead_is_found_without_a_list(scene):
    (letter,) = scene.app.letters()
    rails = scene.app.guardrails
    scene.app.task("effect").apply_async(("dead",), task_id="again")  # it completes, and its letter is still there
    eventually(lambda: scene.app.depth() == 3, 60)
    scene.worker.terminate()
    scene.app.worker(concurrency=2)
    eventually(lambda: (record := rails.lookup("effect:dead")) and record.state.value == "completed", 90)
    audit = scene.audit([])
    assert [(finding.kind, finding.key) for finding in audit.findings if finding.error] == [("completed and dead", "effect:dead")]
    assert states(scene.audit(["effect:dead"])) == {"effect:dead": "completed"}
    rails.dead_letters.discard()
    assert scene.audit([]).conserved
    assert letter is not None


def lose_delayed(scene):
    app = scene.app
    if app.broker.kind == "redis":
        with app.broker.connection() as connection:
            client = connection.default_channel.client
            assert client.delete(f"{app.namespace}:delayed", f"{app.namespace}:delayed:messages") == 2
        return
    from celery_guardrails.integration.brokers.delays import LEVELS, level_name

    app.broker.purge(*(level_name("quorum", level) for level in range(LEVELS)))
    eventually(lambda: scene.delayed() == 0, 30)


@pytest.mark.parametrize("away", ["broker", "store"])
def test_a_broker_or_store_that_is_away_is_one_line_and_exit_code_1(deploy, redis_broker, away):
    from dataclasses import replace

    nowhere = "redis://127.0.0.1:1/0"
    on = replace(redis_broker, url=nowhere) if away == "broker" else redis_broker
    app = deploy(on=on, **({"store_url": nowhere} if away == "store" else {}))
    said = make_runner().invoke(commands(lambda: app.app), ["audit"])
    assert said.exit_code == 1
    assert said.stderr.startswith("Error: ")
    assert "Traceback" not in said.output
    assert len(said.stderr.strip().splitlines()) == 1
