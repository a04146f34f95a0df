"""``guardrails overruns``: what the workers answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery

from celery_guardrails import Guardrails
from celery_guardrails.cli import commands
from tests.unit.test_dead_letters_cli import make_runner

TASK = {"name": "shop.fetch", "id": "i1", "key": "k1", "seconds": 61.04, "limit": 60, "where": "/srv/shop/tasks.py:12 fetch"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    app = Celery("shop", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://")

    def with_replies(replies: Any, *args: str) -> Any:
        asked: list[Any] = []

        def broadcast(command: str, **options: Any) -> Any:
            asked.append((command, options))
            return replies

        monkeypatch.setattr(app.control, "broadcast", broadcast)
        result = make_runner().invoke(commands(lambda: app), ["overruns", *args])
        assert asked == [("guardrails_overruns", {"reply": True, "timeout": 2.0})]
        return result

    return with_replies


def test_they_are_listed_with_worker_time_limit_and_place(run: Any) -> None:
    result = run([{"w1@host": [TASK]}, {"w2@host": []}, {"w3@host": {"error": "an older worker"}}])
    assert result.exit_code == 0
    (head, line) = result.stdout.splitlines()
    assert head.split() == ["WORKER", "TASK", "ID", "KEY", "RUNS", "LIMIT", "WHERE"]
    assert line.split() == ["w1@host", "shop.fetch", "i1", "k1", "61", "s", "60", "s", "/srv/shop/tasks.py:12", "fetch"]


def test_for_machines(run: Any) -> None:
    assert json.loads(run([{"w1@host": [TASK]}], "--json").stdout) == [{"worker": "w1@host", **TASK}]
    assert json.loads(run([{"w1@host": []}], "--json").stdout) == []


def test_that_there_are_none_is_said(run: Any) -> None:
    result = run([{"w1@host": []}])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no task runs beyond its limit" in result.stderr


@pytest.mark.parametrize("replies", [None, []])
def test_that_no_worker_answers_is_a_failure(run: Any, replies: Any) -> None:
    result = run(replies)
    assert result.exit_code == 1
    assert "no worker has answered" in result.stderr
