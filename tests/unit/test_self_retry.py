"""How long ``self.retry()`` waits where nobody says it: what Celery is told, without a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry
from kombu.exceptions import OperationalError

from celery_guardrails import GuardedTask, Guardrails, QueueFull, RetryableError, RetryPolicy
from celery_guardrails.integration.running import Running, grown_history, running_now
from celery_guardrails.policy.delivery import Delivery, RawMessage, Travel
from celery_guardrails.policy.history import PastAttempt
from celery_guardrails.testing.clock import FakeClock

HALF = 0.5


class Busy(Exception):
    """No rule knows it."""

    retry_after = 30


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is published instead of being sent."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("celery.canvas.Signature.apply_async", lambda self, *args, **options: seen.append(dict(self.options)))
    return seen


@pytest.fixture
def retry(published: list[dict[str, Any]]) -> Iterator[Any]:
    """Call ``self.retry`` in a running attempt; returns the countdown and the history that travels on."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    rails = Guardrails(app, store="memory://")
    rails.clock = FakeClock()
    rails.clock.fraction = lambda: HALF  # type: ignore[method-assign]
    tokens: list[Any] = []

    def call(policy: RetryPolicy, travel: Travel, attempt: int, raised: BaseException | None = None, **options: Any) -> Any:
        name = f"shop.task{len(tokens)}"

        @app.task(base=GuardedTask, bind=True, name=name, shared=False, lazy=False, retry=policy, permanent=(KeyError,))
        def task(self: Any) -> None:
            """Never run here."""

        task.push_request(id="1", retries=0, called_directly=False, is_eager=False, args=(), kwargs={}, headers={}, delivery_info={})
        tokens.append((task, running_now.set(Running(Delivery("1", name, "key", None, "holder", travel=travel), attempt, lambda: 0.0))))
        try:
            if raised is not None:
                raise raised
            task.retry(**options)
        except Retry:
            pass
        except Exception:  # noqa: BLE001 - any error that a body handles
            with pytest.raises(Retry):
                task.retry(**options)
        message = published[-1]
        return message["countdown"], Travel.from_headers(message["headers"])

    yield call
    for task, token in reversed(tokens):
        running_now.reset(token)
        task.pop_request()


def test_it_is_the_policys_wait_and_travels_on_for_the_next(retry: Any) -> None:
    policy = RetryPolicy(base=2.0, jitter="decorrelated")
    wait, travel = retry(policy, Travel(waited=40.0), 3)
    assert wait == 2.0 + (120.0 - 2.0) * HALF
    assert travel.waited == wait
    assert retry(policy, Travel(), 1)[0] == 2.0 + (6.0 - 2.0) * HALF


def test_it_is_no_shorter_than_the_error_asks_for_given_or_being_handled(retry: Any) -> None:
    policy = RetryPolicy(jitter="none")
    assert retry(policy, Travel(), 1, exc=RetryableError(retry_after=7))[0] == 7
    assert retry(policy, Travel(), 1, exc=Busy())[0] == 1.0, "no rule knows it, nobody reads it"
    assert retry(policy, Travel(), 1, raised=RetryableError(retry_after=9))[0] == 9
    assert retry(policy, Travel(), 1, raised=RetryableError(retry_after=9), exc=RetryableError(retry_after=3))[0] == 3
    assert retry(policy, Travel(), 5, exc=RetryableError(retry_after=3))[0] == 16.0
    assert retry(policy, Travel(), 1, exc=KeyError())[0] == 1.0


def test_it_remembers_what_the_error_says_of_the_resource(retry: Any) -> None:
    for error, kind in ((RetryableError(), "retryable"), (QueueFull("q", 9, 8, 1.0), "throttled"), (KeyError(), "permanent")):
        for how in ("exc", "raised"):
            _, travel = retry(RetryPolicy(), Travel(throttled=kind != "throttled"), 1, **{how: error})
            assert travel.throttled is (kind == "throttled"), "its retry costs more of a budget"
            running = running_now.get()
            assert running is not None
            assert running.said == kind


def test_what_the_body_says_counts_before_it(retry: Any) -> None:
    wait, travel = retry(RetryPolicy(), Travel(waited=5.0), 2, exc=RetryableError(retry_after=7), countdown=2)
    assert (wait, travel.waited) == (2, 5.0)


def test_its_error_goes_into_the_history_that_travels_on(retry: Any) -> None:
    before = PastAttempt(1, 5.0, "shop.Away", "gone")
    _, travel = retry(RetryPolicy(), Travel(attempts=1, history=(before,)), 2, exc=Busy("given"), raised=ValueError("handled"))
    assert travel.history[0] == before
    given = travel.history[1]
    assert (given.attempt, given.error, given.message) == (2, f"{__name__}.Busy", "given")
    _, travel = retry(RetryPolicy(), Travel(), 1, raised=ValueError("handled"))
    (handled,) = travel.history
    assert (handled.error, handled.message) == ("ValueError", "handled")
    assert "in call\n" in handled.traceback
    _, travel = retry(RetryPolicy(), Travel(), 1)
    (asked,) = travel.history
    assert (asked.error, asked.fingerprint, asked.message) == ("", "", "self.retry() was called without an error")


def test_a_message_with_large_headers_of_its_own_carries_no_history() -> None:
    raw = RawMessage(b"", None, None, {"large": "x" * 70_000}, {}, "", "")
    for message, entries in ((None, 1), (replace(raw, headers={}), 1), (raw, 0)):
        running = Running(Delivery("1", "task", "key", None, "holder", raw=message), 1, lambda: 0.0)
        assert len(grown_history(running, Busy())) == entries


def test_a_broker_that_is_away_is_a_failure_to_try_again_and_no_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    # Celery makes Reject(requeue=False) of it, which would dead-letter the task although nobody asked for that: the soak found it.
    def lost(self: Any, *args: Any, **options: Any) -> None:
        raise OperationalError("[Errno 104] Connection reset by peer")

    monkeypatch.setattr("celery.canvas.Signature.apply_async", lost)
    app = Celery("shop", broker="memory://", set_as_current=False)
    rails = Guardrails(app, store="memory://")

    @app.task(base=GuardedTask, bind=True, name="shop.lost", shared=False, lazy=False)
    def task(self: Any) -> None:
        """Never run here."""

    running = Running(Delivery("1", task.name, "key", None, "holder", travel=Travel()), 1, lambda: 0.0)
    task.push_request(id="1", retries=0, called_directly=False, is_eager=False, args=(), kwargs={}, headers={}, delivery_info={})
    token = running_now.set(running)
    try:
        with pytest.raises(OperationalError) as raised:
            task.retry(countdown=1)
    finally:
        running_now.reset(token)
        task.pop_request()
    assert not running.gave_up
    assert rails.classify(raised.value).kind == "retryable"
