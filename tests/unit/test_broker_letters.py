"""Notices of letters that the broker made: each is told once, by whatever worker, also when one dies or something is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from celery import Celery, states
from celery.backends.cache import DummyClient

from celery_guardrails import Guardrails, events
from celery_guardrails.errors import DeadLetteredByBroker, StoreUnavailable
from celery_guardrails.integration.broker_letters import Notices
from celery_guardrails.policy.delivery import RawMessage
from celery_guardrails.policy.lease import StoredResult
from celery_guardrails.testing.memory_broker import MemoryBroker
from tests.support.dead_letters import task_message
from tests.support.killing import Killed, killed_at

NOTICES = "guardrails.notices.shop"


class Broker(MemoryBroker):
    """In memory, with notices as RabbitMQ has them; a dead letter queue is there once something was put into it."""

    notices = NOTICES

    def exists(self, queue: str) -> bool:
        return queue in self._ready


class Desk:
    """One fleet in memory: an app, its store and results, and what was told."""

    def __init__(self) -> None:
        self.app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.backend.client = DummyClient()  # celery.backends.cache keeps one for the whole process
        self.app.backend.client.cache = {}
        self.app.conf.update(result_serializer="json", guardrails_broker_letters_seconds=7.0)
        self.rails = Guardrails(self.app, store="memory://")
        self.points: list[str] = []
        self.broker = Broker(on_operation=self.points.append)
        vars(self.rails._parts)["broker"] = self.broker
        self.told: list[events.DeadLettered] = []
        self.rails.listen(lambda event: self.told.append(event) if isinstance(event, events.DeadLettered) else None)
        self.errbacks: list[tuple[str, BaseException]] = []

        @self.app.task(name="shop.errback", shared=False)
        def errback(request: Any, exc: BaseException, traceback: Any) -> None:
            self.errbacks.append((request.id, exc))

        @self.app.task(name="shop.quiet", shared=False, ignore_result=True)
        def quiet() -> None: ...

        self.app.finalize()

    def die(self, task_id: str = "t-1", *, task: str = "shop.charge", errback: bool = False, **headers: Any) -> RawMessage:
        """Let the broker kill a message."""
        death = {"reason": "expired", "queue": "celery", "count": 1, "time": datetime(2026, 1, 2, tzinfo=timezone.utc)}
        message = task_message(task, task_id=task_id, key=f"key:{task_id}", **{"x-death": [death], **headers})
        if errback:
            embed = {"errbacks": [dict(self.app.signature("shop.errback"))]}
            message = replace(message, body=json.dumps([[], {}, embed]).encode())
        message = replace(message, exchange="guardrails.dlx", routing_key="celery")
        self.broker._put(message, "celery.dead")
        self.broker._put(message, NOTICES)
        return message

    def state(self, task_id: str = "t-1") -> str:
        return self.app.AsyncResult(task_id).state  # type: ignore[no-any-return]

    def round(self) -> float:
        return Notices(self.rails).round()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.app.close()


def test_a_letter_of_the_broker_is_an_event_and_a_failure_with_its_errbacks_and_is_not_touched(desk):
    letter = desk.die(errback=True)
    desk.round()
    [event] = desk.told
    assert (event.queue, event.certificate.reason, event.certificate.error) == ("celery", "broker", "broker.expired")
    result = desk.app.AsyncResult("t-1")
    assert result.state == states.FAILURE
    assert isinstance(result.result, DeadLetteredByBroker)
    assert str(result.result) == "shop.charge[t-1]: the broker took it out of celery: expired; it waits in 'celery.dead'"
    assert [task_id for task_id, _ in desk.errbacks] == ["t-1"]
    assert desk.broker.messages("celery.dead") == [letter]
    assert desk.broker.depth(NOTICES) == 0
    assert desk.round() == 7.0


def test_the_same_letter_is_not_told_twice(desk):
    letter = desk.die()
    desk.round()
    desk.broker._put(letter, NOTICES)  # the connection was lost before the ack
    desk.round()
    assert (len(desk.told), desk.broker.depth(NOTICES)) == (1, 0)
    desk.die()
    again = {"x-death": [{"reason": "expired", "queue": "celery", "count": 2, "time": datetime(2026, 1, 3, tzinfo=timezone.utc)}]}
    desk.die(**again)
    desk.round()
    assert len(desk.told) == 2, "it was replayed, and this is another death"


@pytest.mark.parametrize("point", ["before take", "after take"])
def test_a_worker_that_is_killed_leaves_a_notice_that_the_next_one_tells_no_second_time(desk, point):
    desk.die(errback=True)
    with pytest.raises(Killed), killed_at(desk.broker, point):
        desk.round()
    desk.round()
    assert (len(desk.told), len(desk.errbacks), desk.broker.depth(NOTICES)) == (1, 1, 0)


def test_a_worker_that_is_killed_while_it_stores_the_result_leaves_all_to_the_next(desk, monkeypatch):
    def killed(*args: Any, **options: Any) -> None:
        raise Killed

    desk.die()
    with monkeypatch.context() as patch:
        patch.setattr(desk.app.backend, "mark_as_failure", killed)
        with pytest.raises(Killed):
            desk.round()
    assert (desk.told, desk.broker.depth(NOTICES)) == ([], 1)
    desk.round()
    assert (len(desk.told), desk.state()) == (1, states.FAILURE)


def test_a_result_that_is_there_and_a_key_that_has_completed_or_runs_are_left_alone(desk):
    desk.app.backend.store_result("done", "value", states.SUCCESS)
    desk.app.backend.store_result("revoked", None, states.REVOKED)
    store = desk.rails.store
    for task_id in ("completed", "running"):
        claim = store.claim(f"key:{task_id}", holder="h", fingerprint=None, lease=60)
        if task_id == "completed":
            store.complete(f"key:{task_id}", holder="h", fingerprint=None, fence=claim.fence, result=StoredResult(), retention=60)
    for task_id in ("done", "revoked", "completed", "running"):
        desk.die(task_id, errback=True)
    desk.app.backend.store_result("retried", None, states.RETRY)
    desk.die("retried")
    desk.round()
    assert len(desk.told) == 5, "that the letters are there is told all the same"
    found = {task_id: desk.state(task_id) for task_id in ("done", "revoked", "completed", "running", "retried")}
    assert found == {"done": "SUCCESS", "revoked": "REVOKED", "completed": "PENDING", "running": "PENDING", "retried": "FAILURE"}
    assert desk.errbacks == []


def test_a_task_whose_results_are_ignored_gets_none(desk):
    desk.die("quiet", task="shop.quiet", errback=True)
    desk.die("by-header", ignore_result=True)
    desk.round()
    assert (desk.state("quiet"), desk.state("by-header")) == (states.PENDING, states.PENDING)
    assert [task_id for task_id, _ in desk.errbacks] == ["quiet"]


def test_what_is_no_task_is_told_of_without_a_result(desk):
    desk.broker._put(RawMessage(b"\xff", None, None, {}, {}, "guardrails.dlx", "celery"), "celery.dead")
    desk.broker._put(RawMessage(b"\xff", None, None, {}, {}, "guardrails.dlx", "celery"), NOTICES)
    desk.round()
    assert [event.certificate.reason for event in desk.told] == ["broker"]
    assert desk.broker.depth(NOTICES) == 0


def test_a_letter_with_our_header_has_been_told_of_by_who_wrote_it(desk):
    desk.die(guardrails={"reason": "exhausted"})
    desk.round()
    assert (desk.told, desk.broker.depth(NOTICES), desk.state()) == ([], 0, states.PENDING)


def test_while_the_store_is_away_nothing_happens_and_nothing_is_lost(desk, monkeypatch):
    def away(*args: Any, **options: Any) -> Any:
        raise StoreUnavailable("away")

    desk.die()
    for operation in ("ping", "claim", "lookup", "complete"):
        with monkeypatch.context() as patch:
            patch.setattr(desk.rails.store, operation, away)
            with pytest.raises(StoreUnavailable):
                desk.round()
        assert (desk.told, desk.broker.depth(NOTICES)) == ([], 1)
    desk.round()
    assert (len(desk.told), desk.broker.depth(NOTICES)) == (1, 0)


def test_while_the_result_backend_is_away_notices_wait_and_one_that_it_never_takes_holds_up_no_other(desk, monkeypatch):
    def broken(error: BaseException) -> Any:
        def mark(task_id: str, *args: Any, **options: Any) -> None:
            if task_id == "t-1":
                raise error
            real(task_id, *args, **options)

        return mark

    real = desk.app.backend.mark_as_failure
    desk.die("t-1")
    desk.die("t-2")
    with monkeypatch.context() as patch:
        patch.setattr(desk.app.backend, "mark_as_failure", broken(ConnectionError("away")))
        assert desk.round() == 7.0
        assert ([event.certificate.task_id for event in desk.told], desk.broker.depth(NOTICES)) == (["t-2"], 1)
        patch.setattr(desk.app.backend, "mark_as_failure", broken(TypeError("not serialisable")))
        desk.round()
    assert [event.certificate.task_id for event in desk.told] == ["t-2", "t-1"]
    assert desk.broker.depth(NOTICES) == 0


def test_another_workers_notice_is_left_to_it(desk):
    desk.die()
    other = Notices(desk.rails)
    seen: list[int] = []

    def meanwhile(letter: Any) -> bool:
        desk.round()
        seen.append(desk.broker.depth(NOTICES))
        return True

    other._report = meanwhile  # type: ignore[method-assign]
    other.round()
    assert seen == [1]
    assert (len(desk.told), desk.broker.depth(NOTICES)) == (1, 0)


def test_a_letter_whose_queue_was_deleted_is_put_back_into_a_new_one(desk):
    letters = [desk.die("t-1"), desk.die("t-2")]
    del desk.broker._ready["celery.dead"]
    desk.round()
    assert desk.broker.messages("celery.dead") == letters
    assert len(desk.told) == 2
    desk.die("t-3")
    desk.round()
    assert len(desk.broker.messages("celery.dead")) == 3


def test_a_round_makes_way_for_the_workers_other_work(desk, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(desk.rails.clock, "now", lambda: 1_000_000.0 + next(now))
    for number in range(10):
        desk.die(f"t-{number}")
    assert desk.round() == 0.2
    assert 0 < desk.broker.depth(NOTICES) < 10


def test_after_a_round_that_failed_no_letter_is_restored_that_is_there(desk, monkeypatch):
    for number in range(2):
        desk.die(f"t-{number}")
    del desk.broker._ready["celery.dead"]  # somebody has deleted the queue
    claim, failed = desk.rails.store.claim, []

    def once(*args: Any, **kwargs: Any) -> Any:
        if not failed:
            failed.append(args)
            raise StoreUnavailable("no connection")
        return claim(*args, **kwargs)

    monkeypatch.setattr(desk.rails.store, "claim", once)
    notices = Notices(desk.rails)
    with pytest.raises(StoreUnavailable):
        notices.round()
    before = desk.broker.depth("celery.dead")
    assert before == 1
    notices.round()
    assert desk.broker.depth("celery.dead") == before, "who had been restored is not restored again"
