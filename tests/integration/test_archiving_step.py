"""Workers archive dead letters while they work: killed in the middle, nothing is lost and nothing is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from celery_guardrails.worker.archiving import turn_of
from tests.support import Deployment
from tests.support.databases import query
from tests.support.dead_letters import certificate_for, task_message
from tests.support.waiting import eventually

LETTERS = 600


def test_workers_archive_while_they_work_and_a_kill_in_the_middle_does_no_harm(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    database = tmp_path / "archive.db"
    shop = deploy(guardrails_archive=f"sqlalchemy+sqlite:///{database}", guardrails_archive_seconds=1)
    broker = shop.guardrails.broker
    for number in range(LETTERS):
        message = task_message("shop.charge", number, task_id=f"task-{number}")
        broker.dead_letter(message, shop.queue, certificate_for(message, queue=shop.queue))

    def archived() -> list[str]:
        if not database.exists() or not query(f"sqlite:///{database}", "SELECT 1 FROM sqlite_master WHERE name = 'guardrails_letter'"):
            return []
        return [name for (name,) in query(f"sqlite:///{database}", "SELECT task_id FROM guardrails_letter")]

    first = shop.worker(concurrency=1)
    eventually(archived, 30, because="the worker archives")
    first.kill()
    there = len(archived())
    eventually(lambda: shop.dead() + len(archived()) >= LETTERS, 30, because="each letter is in the queue or in the archive")
    assert there < LETTERS

    shop.guardrails.forget(turn_of([shop.dead_queue]))  # the lease of the dead worker would be over in a minute
    shop.start_workers(2, concurrency=1)
    assert shop.send("effect", "meanwhile").get(timeout=30) == "meanwhile"
    eventually(lambda: shop.dead() == 0 and len(archived()) == LETTERS, 60, because="the others archive the rest")
    assert Counter(archived()) == Counter(f"task-{number}" for number in range(LETTERS))
