"""archive_dead_letters on real brokers: killed again and again it loses nothing and doubles nothing; the admin's replay runs the tasks."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import BrokerUnderTest, RedisServer, Workers
from tests.support.waiting import eventually

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")

from tests.integration.test_django import PROJECT, Project

LETTERS = 300
BURY = f"""
import json
from celery import current_app
from celery_guardrails.policy.deadletter import DeathCertificate
from celery_guardrails.policy.delivery import RawMessage
queue = current_app.conf.task_default_queue
for number in range({LETTERS}):
    name = f"task-{{number}}"
    headers = {{"lang": "py", "task": "shop.tasks.charge", "id": name, "retries": 0, "x-guardrails": {{"key": f"charge:{{number}}"}}}}
    body = json.dumps([[number], {{}}, {{}}]).encode()
    message = RawMessage(body, "application/json", "utf-8", headers, {{"correlation_id": name, "delivery_mode": 2}}, "", queue)
    died = DeathCertificate("permanent", task="shop.tasks.charge", task_id=name, key=f"charge:{{number}}", error="shop.Broken", queue=queue)
    current_app.guardrails.broker.dead_letter(message, queue, died)
"""
REPLAY = """
from celery import current_app
from celery_guardrails.contrib.django.archive import Archive
archive = Archive.of(current_app.guardrails)
report = archive.replay(archive.rows().filter(pk__lte=archive.rows()[4].pk), who="me")
print(report.replayed, report.clean)
"""
CANARY = """
import time
from celery import current_app
from celery_guardrails.contrib.django.archive import Archive
from celery_guardrails.contrib.django.canarying import Canaries
archive = Archive.of(current_app.guardrails)
canaries = Canaries(archive)
run, problem = canaries.start(archive.rows(), who="me")
assert not problem, problem
end = time.monotonic() + 45
while run.state == "open" and time.monotonic() < end:
    if canaries.look(run).may_go_on:
        canaries.go_on(run, run.stage, who="me")
    time.sleep(0.05)
    run.refresh_from_db()
print(run.state, run.chosen, run.stage, run.outcome)
"""


@pytest.fixture
def project(tmp_path: Path, broker: BrokerUnderTest, redis_server: RedisServer, queue: str) -> Project:
    broker.used += [queue, f"{queue}.dead"]
    made = Project(
        tmp_path,
        SHOP_BROKER_URL=broker.url,
        SHOP_STORE_URL=redis_server.fresh_url(),
        SHOP_QUEUE=queue,
        SHOP_DATABASE=str(tmp_path / "shop.sqlite3"),
    )
    made.manage("migrate", "guardrails")
    return made


def rows(project: Project) -> list[str]:
    with closing(sqlite3.connect(project.env["SHOP_DATABASE"], timeout=20)) as connection:
        return [name for (name,) in connection.execute("SELECT task_id FROM guardrails_letter")]


@pytest.mark.long_on("amqp")
def test_killed_again_and_again_it_moves_each_letter_once_and_they_can_be_replayed_also_in_stages(
    project: Project, broker: BrokerUnderTest, workers: Workers, queue: str
) -> None:
    project.shell(BURY)
    dead = f"{queue}.dead"
    assert broker.depth(dead) == LETTERS
    said = json.loads(project.manage("archive_dead_letters", "--dry-run", "--json").stdout)
    assert (said["archived"], rows(project)) == (LETTERS, [])
    killed = 0
    while broker.depth(dead) and killed < 3:
        there = len(rows(project))
        command = [sys.executable, "manage.py", "archive_dead_letters", "--batch", "3"]
        with subprocess.Popen(command, env=project.env, cwd=PROJECT, stdout=subprocess.DEVNULL) as running:
            eventually(lambda there=there: len(rows(project)) > there + 20, 30, because=f"run {killed} archives")
            running.kill()
        killed += running.returncode == -signal.SIGKILL
        # RabbitMQ gives back what the dead process held
        eventually(lambda: broker.depth(dead) + len(rows(project)) >= LETTERS, 10, because="each letter is in the queue or in the table")
        assert broker.depth(dead) < LETTERS
    assert killed
    said = json.loads(project.manage("archive_dead_letters", "--json").stdout)
    assert (said["failed"], said["stopped"], broker.depth(dead)) == (0, "", 0)
    assert sorted(rows(project)) == sorted(f"task-{number}" for number in range(LETTERS))

    workers.start("site_of_shop", env={**project.env, "SHOP_ARCHIVE_SECONDS": "1"})
    said = project.shell(CANARY)
    assert said.startswith(f"stopped {LETTERS} 0 it stopped itself at the stage 'one letter': "), said
    eventually(lambda: len(rows(project)) == LETTERS + 1, 30, because="the worker archives the letter of the canary that died again")

    (project.home / "mended").touch()
    assert project.shell(REPLAY).split() == ["5", "True"]
    eventually(lambda: len(project.charged()) == 5, 20, because="the replayed tasks run")
    assert len(set(project.charged())) == 5
    assert project.shell(CANARY).startswith(f"done {LETTERS - 5} 2 ")
    eventually(lambda: len(project.charged()) == LETTERS, 60, because="the tasks of the canary run")
    assert len(set(project.charged())) == LETTERS

    project.shell(BURY)  # the same letters again: the worker archives by itself, and knows them
    eventually(lambda: broker.depth(dead) == 0, 30, because="the worker archives")
    assert len(rows(project)) == LETTERS + 1
    assert set(rows(project)) == {f"task-{number}" for number in range(LETTERS)}


def test_the_command_has_help_exit_codes_and_says_what_it_did(project: Project, broker: BrokerUnderTest, queue: str) -> None:
    assert "Usage: manage.py archive_dead_letters [OPTIONS]" in project.manage("archive_dead_letters", "--help").stdout
    assert "--batch" in project.manage("archive_dead_letters", "--batch", "0", code=2).stderr
    assert "archived 0 dead letters" in project.manage("archive_dead_letters", "--keep-days", "30").stdout
    assert "restored 0 dead letters" in project.manage("guardrails", "dead-letters", "restore", "--yes").stdout
    done = project.manage("archive_dead_letters", code=1, SHOP_BROKER_URL="redis://127.0.0.1:1/0")
    assert len(done.stderr.splitlines()) == 1
