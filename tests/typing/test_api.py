"""The public API as types: mypy reads this file (``make lint``), pytest runs it."""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery

import celery_guardrails as api
from celery_guardrails import Classification, Execution, Guardrails, QueueFull, RetryableError, RetryPolicy, classify
from celery_guardrails.testing.harness import Harness, Pending


def check_policy() -> RetryPolicy:
    policy = RetryPolicy(max_attempts=8, base=1.0, cap=600.0, jitter="full", deadline=3600.0)
    delay: float = policy.delay(1, 0.5)
    assert 0 <= delay <= policy.cap
    return policy


def check_classification() -> None:
    answer: Classification = classify(ConnectionError("gone"))
    kind: str = answer.kind
    wait: float | None = answer.retry_after
    assert (kind, wait) == ("retryable", None)


def check_errors() -> None:
    busy = RetryableError("busy", retry_after=2.5)
    wait: float | None = busy.retry_after
    full = QueueFull("celery", depth=5, limit=4, retry_after=1.0)
    depth: int = full.depth
    assert (wait, depth) == (2.5, 5)


def check_execution(now: Execution) -> None:
    left: float | None = now.remaining()
    stop: bool = now.should_stop()
    parts: tuple[str, int, int, int, float | None] = (now.key, now.fence, now.attempt, now.deliveries, now.deadline)
    assert (left, stop, parts) == (None, False, ("k", 1, 1, 1, None))


def check_loops(now: Execution) -> None:
    def rows_after(cursor: int | None) -> Iterator[tuple[int, str]]:
        yield from ((row, f"row {row}") for row in range((cursor or 0) + 1, 4))

    rows: Iterator[str] = now.resume(rows_after, name="rows", save_seconds=1.0, max_seconds=60.0)
    texts: list[str] = list(rows)
    page: int = now.cursor("pages") or 1
    now.checkpoint(page + 1, name="pages")
    assert (texts, now.cursor("pages")) == (["row 1", "row 2", "row 3"], 2)


def check_alerts(rails: Guardrails) -> None:
    rails.alert(webhook="https://hooks.example.com/x", rate="20/30s", every=60.0, quiet=3600.0, where={"task": ["shop.*"], "queue": "q"})
    rails.alert(lambda alert: alert.letters, new=False)
    rails.alert(email="ops@example.com", rate=None)


def check_guardrails() -> None:
    rails: Guardrails = Guardrails(lease_seconds=30)
    assert isinstance(rails, Guardrails)


def check_harness(guardrails_harness: Harness, app: Celery) -> None:
    harness: Harness = guardrails_harness(app)
    task_id: str = harness.deliver()
    again: str = harness.redeliver()
    count: int = harness.drain(limit=10)
    with harness.crash_at("after_effect", how="worker", times=2):
        harness.advance(1.5, renew=False)
    pending: list[Pending] = harness.waiting + harness.delayed
    due: list[float | None] = [message.due for message in pending]
    reasons: list[str] = [letter.reason for letter in harness.dead_letters]
    numbers: tuple[int, int] = (harness.attempts(task_id), harness.runs(again))
    assert [count, due, reasons, numbers, harness.results[task_id]]


def test_the_types_of_the_api_are_what_they_say() -> None:
    check_policy()
    check_classification()
    check_errors()
    check_execution(Execution("k", 1, 1, 1, None))
    check_loops(Execution("k", 1, 1, 1, None))
    check_guardrails()


def test_every_public_name_is_there() -> None:
    assert sorted(api.__all__) == sorted(set(api.__all__))
    for name in api.__all__:
        assert getattr(api, name).__doc__, name
