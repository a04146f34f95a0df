"""The soak itself: a short one ends well, and one that is killed leaves no process behind."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from tests.support import eventually
from tests.support.processes import ROOT


def command(tmp_path, *arguments):
    return [sys.executable, "-m", "tests.chaos.soak", "--json", str(tmp_path), *arguments]


@pytest.mark.timeout(700)
@pytest.mark.parametrize(("kind", "store"), [("redis", "redis"), ("amqp", "postgres")])
def test_two_thousand_tasks_come_through_random_deaths(tmp_path, kind, store):
    options = ("--broker", kind, "--store", store, "--minutes", "2", "--tasks", "2000", "--rate", "20", "--workers", "2")
    done = subprocess.run(command(tmp_path, *options), cwd=ROOT, capture_output=True, text=True, timeout=650, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    told = json.loads((tmp_path / f"{kind}-{store}-1.json").read_text())
    assert told["lost"] == told["astray"] == []
    assert told["accepted"] >= 300
    assert sum(told["deaths from outside"].values()) >= 10
    assert set(told["deaths from outside"]) >= {"child_kill", "worker_kill", "broker_restart"}


def test_a_soak_that_is_killed_leaves_no_process_behind(tmp_path):
    log = tmp_path / "out"
    with log.open("wb") as out:
        soak = subprocess.Popen(command(tmp_path, "--broker", "redis", "--minutes", "5"), cwd=ROOT, stdout=out, stderr=out)
    try:
        eventually(lambda: b"begun" in log.read_bytes(), 90, because=log.read_text)
        family = psutil.Process(soak.pid).children(recursive=True)
        assert len(family) >= 3 + 3 * 3, "three servers, three workers with their children"
    finally:
        soak.kill()
        soak.wait(10)
    eventually(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family), 30, ignoring=(psutil.Error,))
