"""Real beats, more than one: every slot of a schedule has one effect."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime

import pytest

from tests.support import eventually, processes

MODULE = "tests.integration.apps.beating"
FIRED = re.compile(r"Scheduler: Sending due task (\S+)")


class Beat:
    """One ``celery beat``, in a process of its own."""

    def __init__(self, app, directory, name, **env):
        self.log = directory / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", MODULE, "beat", "-l", "INFO", "--pidfile=", "-s", str(directory / f"{name}.db")]
        self.process = processes.spawn(command, log=self.log, env=app.workers._environment({**app.env, **env}))

    def fired(self, entry):
        assert self.process.poll() is None, processes.tail(self.log)
        return sum(name == entry for name in FIRED.findall(self.log.read_text()))

    def end(self):
        processes.end(self.process, grace=10)


@pytest.fixture
def beats(tmp_path):
    """Start beats: ``beats(app, TESTAPP_STRANGER="1")``."""
    started = []

    def start(app, **env):
        started.append(Beat(app, tmp_path, f"beat{len(started)}", **env))
        return started[-1]

    yield start
    for beat in started:
        beat.end()


def slots(app, task):
    """The slots that had an effect, in the order in which they had it, as times."""
    prefix = f"beating.{task}:"
    found = [effect.key.removeprefix(prefix) for effect in app.ledger.entries(event="effect") if effect.key.startswith(prefix)]
    return [datetime.fromisoformat(slot.replace("Z", "+00:00")) for slot in found]


def settled(app):
    """Whether nothing is left to be done."""
    ended = app.ledger.count(event="start") == app.ledger.count(event="end")
    return ended and app.depth() == 0 and (app.broker.kind == "amqp" or app.guardrails.broker.delayed() == 0)


@pytest.mark.long_on("amqp")
def test_two_beats_fire_every_slot_once(deploy, beats):
    app = deploy("beating", env={"TESTAPP_SCHEDULE": json.dumps({"quick": ("tick", 1.0)})})
    app.worker()
    # one knows its tasks, the other has their names only: its messages get their keys in the worker
    both = [beats(app), beats(app, TESTAPP_STRANGER="1")]
    for beat in both:
        eventually(lambda beat=beat: beat.fired("quick") >= 6, 40, because=lambda beat=beat: processes.tail(beat.log))
    fired = sum(beat.fired("quick") for beat in both)
    for beat in both:
        beat.end()
    eventually(lambda: settled(app), 20)
    found = slots(app, "tick")
    assert app.ledger.repeated() == {}
    assert app.ledger.counts("start") == app.ledger.counts()
    assert len(found) == len(set(found))
    assert len(found) >= 6
    assert len(found) < fired - 2, "they did fire the same slots"
    assert all(slot.microsecond == 0 for slot in found)
    assert app.dead() == 0


@pytest.mark.long_on("redis")
def test_the_beat_inside_a_worker_fires_the_same_slots_as_one_beside_it(deploy, beats, tmp_path):
    app = deploy("beating", env={"TESTAPP_SCHEDULE": json.dumps({"quick": ("stumbling", 1.0)})})
    worker = app.worker(options=["-B", "-s", str(tmp_path / "inside.db")])
    beside = beats(app)
    eventually(lambda: beside.fired("quick") >= 4, 40, because=lambda: processes.tail(beside.log))
    worker.wait_log(FIRED.pattern, times=4, timeout=40)
    beside.end()
    worker.stop(60)
    fired = len(FIRED.findall(beside.log.read_text() + worker.log()))
    # another one finishes what that one handed back
    app.worker()
    eventually(
        lambda: settled(app) and app.ledger.counts("start").keys() == app.ledger.counts().keys(), 60, because=lambda: str(app.ledger)
    )
    assert app.ledger.repeated() == {}
    assert fired > len(slots(app, "stumbling")) >= 4
    assert app.dead() == 0


def test_a_call_by_hand_of_a_task_that_beat_fires_runs(deploy):
    app = deploy("beating")
    app.worker()
    results = [app.send("tick") for _ in range(3)]
    # from a program that knows the task by its name only
    results += [app.app.send_task("beating.tick") for _ in range(2)]
    assert [result.get(timeout=20) for result in results] == [f"beating.tick:{result.id}" for result in results]
    assert app.ledger.count() == 5


def test_the_slot_of_a_task_that_the_worker_alone_knows_outlives_a_wait_in_the_broker(deploy):
    app = deploy("beating")
    app.worker()
    slot = "2024-05-06T12:00:00Z"
    results = [app.app.send_task("beating.tick", headers={"x-guardrails": {"slot": slot}}, countdown=1.5) for _ in range(2)]
    assert {result.get(timeout=20) for result in results} == {f"beating.tick:{slot}"}
    assert app.ledger.counts() == {f"beating.tick:{slot}": 1}
