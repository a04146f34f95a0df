"""What users test with: guarded tasks in process, delivered, redelivered and killed at any point."""

from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery, chain, chord, group
from celery.exceptions import Reject
from celery.worker import state as worker_state
from kombu.exceptions import EncodeError

from celery_guardrails import (
    GuardedTask,
    Guardrails,
    GuardrailsConfigError,
    GuardrailsError,
    IdempotencyConflict,
    RetryPolicy,
    current_execution,
)
from celery_guardrails.contrib.sqlalchemy import session
from celery_guardrails.events import Completed, Crashed, HandedBack, Replayed
from celery_guardrails.integration.mainstate import state as mainstate
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.stores.memory import MemoryStore
from celery_guardrails.testing.crashes import POINTS
from celery_guardrails.testing.harness import Harness

POLICY = RetryPolicy(max_attempts=3, base=10.0, jitter="none")


class Shop:
    """An app whose servers are not there, and what its tasks did."""

    def __init__(self) -> None:
        self.app = Celery("shop", broker="amqp://nowhere.invalid", backend="redis://nowhere.invalid", set_as_current=True)
        self.rails = Guardrails(self.app, store="redis://nowhere.invalid")
        self.effects: Counter[Any] = Counter()
        #: Called in the body of ``charge``.
        self.during: Any = lambda: None

        @self.task("charge", key="charge:{order}", retry=POLICY)
        def charge(order: Any) -> str:
            self.effects[order] += 1
            self.during()
            return f"paid {order}"

        @self.task("add")
        def add(left: int, right: int) -> int:
            return left + right

        @self.task("total")
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        self.charge, self.add, self.total = charge, add, total

    def task(self, name: str, **options: Any) -> Any:
        return self.app.task(base=GuardedTask, name=name, shared=False, **options)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def harness(shop: Shop) -> Iterator[Harness]:
    harness = Harness()
    yield harness.use(shop.app)
    harness.close()


def failing(error: Exception) -> Any:
    def during() -> None:
        raise error

    return during


# -- deliveries -------------------------------------------------------------------------------------------------------


def test_a_task_waits_until_it_is_delivered_and_its_result_is_kept(shop, harness):
    result = shop.charge.delay(7)
    assert [(pending.task, pending.task_id, pending.queue, pending.due) for pending in harness.waiting] == [
        ("charge", result.id, "celery", None)
    ]
    assert not shop.effects
    assert harness.deliver() == result.id
    assert shop.effects == {7: 1}
    assert harness.results == {result.id: "paid 7"}
    assert result.get() == "paid 7"
    assert (harness.attempts(result.id), harness.runs(result.id)) == (1, 1)
    assert not harness.waiting


def test_a_duplicate_is_answered_with_the_stored_result(shop, harness):
    first = shop.charge.delay(7)
    second = shop.charge.delay(7)
    harness.drain()
    assert harness.redeliver() == second.id
    assert shop.effects == {7: 1}
    assert first.get() == second.get() == "paid 7"
    assert sum(isinstance(event, Replayed) for event in harness.events) == 2


def test_a_duplicate_that_comes_while_the_first_runs_is_handed_back(shop, harness):
    shop.during = lambda: shop.effects[7] == 1 and harness.redeliver()
    result = shop.charge.delay(7)
    harness.deliver()
    assert shop.effects == {7: 1}
    assert [pending.task_id for pending in harness.delayed] == [result.id]
    assert any(isinstance(event, HandedBack) for event in harness.events)
    harness.drain()
    assert shop.effects == {7: 1}
    assert result.get() == "paid 7"


def test_nothing_to_deliver_is_an_error_that_says_what_is_delayed(shop, harness):
    with pytest.raises(GuardrailsError, match=r"no message is waiting$"):
        harness.deliver()
    with pytest.raises(GuardrailsError, match="nothing to deliver again"):
        harness.redeliver()
    shop.charge.apply_async((7,), countdown=30)
    with pytest.raises(GuardrailsError, match=r"the next of 1 is due in 30\.0 s"):
        harness.deliver()


def test_an_eta_is_kept_by_the_fake_clock(shop, harness):
    shop.charge.apply_async((1,), countdown=3600)
    shop.charge.apply_async((2,), eta=dt.datetime.fromtimestamp(harness.clock.now() + 60, dt.timezone.utc))
    assert [pending.due - harness.clock.now() for pending in harness.delayed] == [60.0, 3600.0]
    harness.advance(61)
    assert len(harness.waiting) == 1
    assert harness.drain() == 2
    assert list(shop.effects) == [2, 1]


def test_an_eta_of_a_plain_task_is_kept_as_well(shop, harness):
    ran = []

    @shop.app.task(name="plain", shared=False, lazy=False)
    def plain():
        ran.append(harness.clock.now())

    began = harness.clock.now()
    plain.apply_async(countdown=60)
    harness.drain()
    assert ran == [began + 60]


def test_an_expired_message_does_not_run(shop, harness):
    shop.charge.apply_async((1,), expires=60)
    shop.charge.apply_async((2,), expires=60)
    harness.deliver()
    harness.advance(61)
    harness.deliver()
    assert shop.effects == {1: 1}


def test_arguments_travel_through_the_serializer(shop, harness):
    seen = []

    @shop.task("types", key=None)
    def types(value):
        seen.append(value)

    types.delay((1, 2))
    types.delay({1: 2})
    for unfit in ({"args": [threading.Lock()]}, {"args": [1], "headers": {"lock": threading.Lock()}}):
        with pytest.raises((EncodeError, TypeError)):
            types.apply_async(**unfit)
    harness.drain()
    assert seen == [[1, 2], {"1": 2}]  # JSON has no tuples, and texts for names


def test_chains_groups_and_chords_run_to_their_end(shop, harness):
    line = chain(shop.add.s(1, 2), shop.add.s(3), shop.add.s(4)).apply_async()
    several = group(shop.add.s(n, n) for n in range(3)).apply_async()
    total = chord([shop.add.s(n, n) for n in range(4)], shop.total.s()).apply_async()
    with pytest.raises(GuardrailsError, match=r"has not ended .* harness\.drain\(\) first"):
        several.get()
    harness.drain()
    assert (line.get(), several.get(), total.get()) == (10, [0, 2, 4], 12)


def test_a_drain_without_end_is_stopped(shop, harness):
    @shop.task("again")
    def again():
        shop.app.tasks["again"].delay()

    again.delay()
    with pytest.raises(GuardrailsError, match="50 deliveries"):
        harness.drain(limit=50)


def test_a_task_in_a_queue_of_its_own_is_delivered_and_dies_there(shop, harness):
    shop.during = failing(ValueError("no"))
    shop.charge.apply_async((7,), queue="slow")
    harness.drain()
    [letter] = harness.dead_letters
    assert (letter.queue, letter.dead_letter_queue, letter.reason) == ("slow", "slow.dead", "permanent")


def test_a_message_of_another_language_is_delivered_as_it_is(shop, harness):
    task_id = harness.put("charge", b'[[], {"order": 8}, null]')
    harness.drain()
    assert harness.results == {task_id: "paid 8"}


def test_bad_messages_are_dead_letters(harness):
    harness.put("unknown", b"[[], {}, {}]")
    harness.put("charge", b"[[}")
    harness.put("charge", b'["not a triple"]')
    harness.put("charge", b"x", content_type="application/x-python-serialize")
    harness.drain()
    assert [letter.reason for letter in harness.dead_letters] == ["unknown_task", "undecodable", "invalid", "undecodable"]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_retryable_failure_waits_and_is_tried_again(shop, harness):
    shop.during = failing(ConnectionError("away"))
    result = shop.charge.delay(7)
    harness.deliver()
    assert result.state == "RETRY"
    assert [pending.due - harness.clock.now() for pending in harness.delayed] == [10.0]
    shop.during = lambda: None
    harness.advance(10)
    harness.deliver()
    assert result.get() == "paid 7"
    assert (harness.attempts(result.id), shop.effects[7]) == (2, 2)


def test_what_fails_for_good_is_a_dead_letter_and_can_be_replayed(shop, harness):
    shop.during = failing(ConnectionError("away"))
    result = shop.charge.delay(7)
    began = harness.clock.now()
    assert harness.drain() == 3
    assert harness.clock.now() == began + 30.0
    [letter] = harness.dead_letters
    assert (letter.task, letter.task_id, letter.reason, letter.certificate.attempts) == ("charge", result.id, "exhausted", 3)
    assert isinstance(harness.results[result.id], ConnectionError)
    assert harness.attempts(result.id) == 3

    shop.during = lambda: None
    assert harness.guardrails.dead_letters.replay().replayed == 1
    harness.drain()
    assert (harness.results[result.id], harness.dead_letters) == ("paid 7", [])


def test_a_deadline_passes_with_the_fake_clock(shop, harness):
    @shop.task("slow", retry=RetryPolicy(max_attempts=100, base=100.0, cap=100.0, jitter="none", deadline=250.0))
    def slow():
        left.append(current_execution().remaining())
        raise ConnectionError("away")

    left: list[float | None] = []
    slow.delay()
    harness.drain()
    assert left[:2] == [250.0, 150.0]
    [letter] = harness.dead_letters
    assert letter.reason == "deadline"


def test_a_message_that_waited_past_its_deadline_does_not_run(shop, harness):
    @shop.task("late", retry=RetryPolicy(deadline=60.0))
    def late():
        raise AssertionError("it must not run")

    late.delay()
    harness.advance(61)
    harness.deliver()
    assert [letter.reason for letter in harness.dead_letters] == ["deadline"]


def test_self_retry_and_reject_are_what_they_are_in_a_worker(shop, harness):
    @shop.task("selfish", bind=True, retry=POLICY)
    def selfish(self):
        if self.request.retries == 0:
            raise self.retry(countdown=45)
        raise Reject("no more", requeue=False)

    result = selfish.delay()
    began = harness.clock.now()
    harness.drain()
    assert harness.clock.now() >= began + 45
    assert (harness.attempts(result.id), harness.runs(result.id)) == (2, 2)
    assert [(letter.reason, letter.certificate.message) for letter in harness.dead_letters] == [("rejected", "no more")]


def test_the_same_key_with_other_arguments_is_a_conflict(shop, harness):
    @shop.task("pay", key="pay:{order}")
    def pay(order, amount):
        return amount

    pay.delay(1, 10)
    other = pay.delay(1, 11)
    harness.drain()
    assert isinstance(harness.results[other.id], IdempotencyConflict)
    assert [letter.reason for letter in harness.dead_letters] == ["conflict"]


# -- crashes ----------------------------------------------------------------------------------------------------------

#: What a crash costs: effects of one message, and seconds until it is done.
CHILD = {"before_start": (1, 0), "before_effect": (1, 0), "after_effect": (2, 0), "in_store": (1, 0)}
WORKER = {"before_start": (1, 0), "before_effect": (1, 60), "after_effect": (2, 60), "in_store": (1, 0), "before_ack": (1, 0)}


@pytest.mark.parametrize(("how", "point"), [*(("child", point) for point in CHILD), *(("worker", point) for point in WORKER)])
def test_a_crash_costs_an_effect_only_between_body_and_record(shop, harness, how, point):
    effects, seconds = (CHILD if how == "child" else WORKER)[point]
    result, began = shop.charge.delay(7), harness.clock.now()
    with harness.crash_at(point, how=how):
        harness.drain()
    assert shop.effects[7] == effects
    assert result.get() == "paid 7"
    assert seconds <= harness.clock.now() - began < seconds + 5
    assert harness.store.lookup("charge:7").state is RecordState.COMPLETED
    assert (harness.waiting, harness.delayed, harness.dead_letters) == ([], [], [])


@pytest.mark.parametrize("how", ["child", "worker"])
def test_a_crash_after_a_retry_was_published_costs_no_attempt_and_loses_nothing(shop, harness, how):
    shop.during = failing(ConnectionError("away"))
    result = shop.charge.delay(7)
    with harness.crash_at("in_publish", how=how):
        harness.deliver()
    assert (len(harness.waiting), len(harness.delayed)) == (1, 1)  # the message came back, and its copy is out
    shop.during = lambda: None
    harness.drain()
    assert result.get() == "paid 7"
    assert shop.effects[7] == 2


def test_a_crash_after_a_dead_letter_was_published_leaves_no_letter_out(shop, harness):
    shop.during = failing(ValueError("no"))
    result = shop.charge.delay(7)
    with harness.crash_at("in_publish"):
        harness.drain()
    assert {letter.task_id for letter in harness.dead_letters} == {result.id}
    assert result.state == "FAILURE"


def test_a_crash_after_the_next_step_of_a_chain_was_published_runs_it_once(shop, harness):
    line = chain(shop.charge.s(7), shop.charge.s().set(task_id="next")).apply_async()
    with harness.crash_at("in_publish", how="worker"):
        harness.drain()
    assert shop.effects == {7: 1, "paid 7": 1}
    assert line.get() == "paid paid 7"


def test_what_a_body_publishes_itself_is_no_point_to_crash_at(shop, harness):
    shop.during = lambda: shop.add.delay(1, 2)
    shop.charge.delay(7)
    with pytest.raises(AssertionError, match="nothing came to 'in_publish'"), harness.crash_at("in_publish"):
        harness.drain()
    assert shop.effects[7] == 1


def test_a_message_that_kills_three_children_is_poison(shop, harness):
    result = shop.charge.delay(7)
    with harness.crash_at("after_effect", times=3):
        assert harness.drain() == 3
    [letter] = harness.dead_letters
    assert (letter.reason, letter.certificate.crashes, result.state) == ("poison", 3, "FAILURE")
    assert [event.crashes for event in harness.events if isinstance(event, Crashed)] == [1, 2, 3]


def test_a_body_that_dies_in_the_middle_does_nothing_more(shop, harness):
    def dies() -> None:
        if shop.effects[7] == 1:
            try:
                harness.crash()
            except BaseException:  # noqa: BLE001 - even so
                return

    shop.during = dies
    result = shop.charge.delay(7)
    harness.deliver()
    assert result.state == "PENDING"
    assert not any(isinstance(event, Completed) for event in harness.events)
    harness.drain()
    assert (result.get(), shop.effects[7]) == ("paid 7", 2)
    with pytest.raises(GuardrailsError, match="for a task's body"):
        harness.crash()


def test_sys_exit_in_a_body_is_a_lost_child(shop, harness):
    shop.during = lambda: shop.effects[7] == 1 and exit(1)
    result = shop.charge.delay(7)
    harness.drain()
    assert (result.get(), shop.effects[7]) == ("paid 7", 2)
    assert any(isinstance(event, Crashed) for event in harness.events)


def test_recovery_points_that_are_done_are_skipped_after_a_crash(shop, harness):
    done: Counter[str] = Counter()

    @shop.task("steps")
    def steps():
        for name in ("one", "two"):
            with current_execution().step(name) as step:
                if not step.done:
                    done[name] += 1
                    step.value = name
        return "both"

    result = steps.delay()
    with harness.crash_at("after_effect", how="worker"):
        harness.drain()
    assert (done, result.get(), harness.runs(result.id)) == ({"one": 1, "two": 1}, "both", 2)


def test_a_planned_crash_that_does_not_come_fails_the_test(shop, harness):
    shop.charge.delay(7)
    with pytest.raises(AssertionError, match="nothing came to 'in_publish'"), harness.crash_at("in_publish"):
        harness.drain()
    shop.charge.delay(8)
    harness.drain()
    assert shop.effects == {7: 1, 8: 1}  # and is over with the block


@pytest.mark.parametrize("wrong", [{"point": "nowhere"}, {"point": "before_ack", "how": "child"}, {"point": "in_store", "how": "host"}])
def test_a_crash_that_cannot_be_is_refused(harness, wrong):
    with pytest.raises(ValueError, match="allowed"):
        harness.crash_at(wrong.pop("point"), **wrong)
    with pytest.raises(ValueError, match="at least 1"):
        harness.crash_at("in_store", times=0)


def test_every_point_is_tested_here():
    assert set(CHILD) | set(WORKER) | {"in_publish"} == set(POINTS)


def test_a_message_that_comes_again_says_so_and_a_worker_that_died_leaves_nothing_behind(shop, harness):
    shop.during = lambda: again.append(shop.charge.request.delivery_info["redelivered"])
    again: list[bool] = []
    before = list(worker_state.active_requests), list(mainstate.live)  # of other tests in this process
    shop.charge.delay(7)
    with harness.crash_at("after_effect", how="worker"):
        harness.deliver()
    harness.advance(61)
    harness.deliver()
    assert again == [False, True]
    harness.guardrails.forget("charge:7")
    harness.redeliver()
    assert again == [False, True, True]
    assert (list(worker_state.active_requests), list(mainstate.live)) == before


def test_a_crash_is_also_noticed_in_a_body_that_had_another_message_delivered(shop, harness):
    shop.during = lambda: len(shop.effects) == 1 and shop.effects[7] == 1 and harness.deliver()
    first, second = shop.charge.delay(7), shop.charge.delay(8)
    harness.deliver()
    assert (first.get(), second.get()) == ("paid 7", "paid 8")
    shop.charge.delay(9)
    with harness.crash_at("after_effect"):
        harness.drain()
    assert shop.effects == {7: 1, 8: 1, 9: 2}


# -- time -------------------------------------------------------------------------------------------------------------


def test_a_worker_renews_its_lease_while_time_passes_in_a_body(shop, harness):
    def long() -> None:
        harness.advance(600)
        if shop.effects[7] == 1:
            harness.redeliver()

    shop.during = long
    result = shop.charge.delay(7)
    harness.drain()
    assert (shop.effects[7], result.get()) == (1, "paid 7")


def test_a_frozen_worker_loses_its_lease_and_its_result_does_not_count(shop, harness):
    values = iter(["ignored", "counts"])

    @shop.task("frozen", key="frozen")
    def frozen():
        value = next(values)
        if value == "ignored":
            harness.advance(61, renew=False)
            harness.redeliver()
        return value

    result = frozen.delay()
    harness.drain()
    assert result.get() == "counts"


def test_time_does_not_pass_by_itself(shop, harness):
    other = Harness().use(shop.app, start=1_000.5)
    assert other.clock.now() == 1_000.5
    assert shop.app.now().timestamp() == 1_000.5
    other.close()


# -- resources --------------------------------------------------------------------------------------------------------


def test_a_resource_lets_in_as_many_as_it_has_slots(shop, harness):
    shop.rails.resource("gateway", max_concurrency=1)
    most = []

    @shop.task("call", resource="gateway")
    def call(number):
        running.append(number)
        most.append(len(running))
        if number == 1:
            harness.deliver()  # another worker takes the next message
        running.remove(number)

    running: list[int] = []
    for number in (1, 2):
        call.delay(number)
    harness.drain()
    assert most == [1, 1]


def test_a_breaker_opens_and_lets_go_again(shop, harness):
    from celery_guardrails import CircuitBreaker

    shop.rails.resource("gateway", breaker=CircuitBreaker(), retry_budget=None)
    up = []

    @shop.task("call", resource="gateway", retry=RetryPolicy(max_attempts=50, base=1.0, cap=30.0))
    def call(number):
        if not up:
            raise ConnectionError("away")
        return number

    results = [call.delay(number) for number in range(30)]
    for _ in range(60):
        if harness.waiting:
            harness.deliver()
        else:
            harness.advance(1)
    [view] = shop.rails.resources()
    assert view.condition.value == "open"
    up.append(True)
    harness.drain(limit=5000)
    assert [result.get() for result in results] == list(range(30))


def test_an_undeclared_resource_is_refused_as_when_a_worker_starts(shop, harness):
    @shop.task("call", resource="nobody knows")
    def call(): ...

    call.delay()
    with pytest.raises(GuardrailsConfigError, match="is not declared"):
        harness.deliver()
    assert len(harness.waiting) == 1


# -- the app is put back ----------------------------------------------------------------------------------------------


def test_the_app_is_as_before_when_the_harness_is_closed(shop):
    app, rails = shop.app, shop.rails
    app.conf.task_always_eager = True
    before = (app.backend, rails.clock, list(rails._listeners))
    harness = Harness().use(app)
    shop.charge.delay(7)
    harness.drain()
    assert shop.effects == {7: 1}
    assert harness.attempts(next(iter(harness.results))) == 1
    harness.close()
    assert (app.backend, rails.clock, list(rails._listeners)) == before
    assert not {"now", "_connection", "_pool"} & set(vars(app))
    assert app._pool is None
    assert app.conf.task_always_eager is True
    assert rails._opened is None
    assert app.amqp._producer_pool is None
    assert list(harness.results.values()) == ["paid 7"]  # what it has seen can still be looked at


def test_what_wants_to_see_the_store_sees_the_harness_store(shop):
    seen: list[Any] = []
    shop.rails.on_store(seen.append)
    harness = Harness().use(shop.app)
    assert seen == [harness.store]
    harness.close()


def test_a_harness_goes_from_one_app_to_another(shop, harness):
    shop.charge.delay(7)
    other = Shop()
    harness(other.app)
    assert harness.waiting == []
    other.charge.delay(8)
    harness.drain()
    assert (shop.effects, other.effects) == ({}, {8: 1})


def test_a_harness_without_an_app_says_how_to_give_it_one():
    with pytest.raises(GuardrailsConfigError, match=r"guardrails_harness\.use\(app\)"):
        Harness().send("charge")
    with pytest.raises(GuardrailsConfigError, match=r"guardrails_harness\.use\(app\)"):
        Harness().drain()


def test_an_app_with_a_wrong_setting_is_refused_and_left_as_it_is():
    app = Celery("wrong", broker="amqp://nowhere.invalid", set_as_current=False)
    app.conf.guardrails_lease_seconds = -1
    rails = Guardrails(app)
    with pytest.raises(GuardrailsConfigError, match="guardrails_lease_seconds"):
        Harness().use(app)
    assert rails._opened is None
    assert "_connection" not in vars(app)


# -- a store of the project's own ---------------------------------------------------------------------------------------


def test_an_atomic_task_runs_on_the_store_that_it_needs(shop, tmp_path):
    harness = Harness().use(shop.app, store=f"sqlalchemy+sqlite:///{tmp_path / 'shop.db'}")

    @shop.task("book", key="book:{order}", atomic=True)
    def book(order):
        session().execute(sa.text("CREATE TABLE IF NOT EXISTS booked (id INTEGER)"))
        session().execute(sa.text("INSERT INTO booked VALUES (:id)"), {"id": order})
        return order

    result = book.delay(7)
    with harness.crash_at("after_effect"):
        harness.drain()
    assert (result.get(), harness.runs(result.id)) == (7, 2)
    with sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}").connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM booked")).scalar() == 1  # the crash rolled the first one back
    harness.close()


def test_a_store_may_also_be_one_that_is_open_already(shop):
    store = MemoryStore()
    harness = Harness().use(shop.app, store=store)
    shop.charge.delay(7)
    harness.drain()
    harness.close()
    assert store.lookup("charge:7").state is RecordState.COMPLETED
    assert "complete" not in vars(store)


# -- a worker that is told to stop ------------------------------------------------------------------------------------


def test_a_worker_is_told_to_stop_within_a_loop_and_another_goes_on(shop, harness):
    handled: list[int] = []

    @shop.task("import", key="import:{name}")
    def import_rows(name: str) -> int:
        def rows_after(cursor: int | None) -> Iterator[tuple[int, int]]:
            yield from ((row, row) for row in range((cursor or 0) + 1, 11))

        for row in current_execution().resume(rows_after):
            handled.append(row)
            if row in (3, 7) and handled.count(row) == 1:
                harness.stop()
                assert current_execution().should_stop()
        return len(handled)

    result = import_rows.delay("a")
    harness.deliver()
    assert handled == [1, 2, 3]
    assert shop.rails.progress("import:a").cursors == {"": 3}
    assert len(harness.waiting) == 1, "it is back at once"
    harness.drain()
    assert handled == list(range(1, 11))
    assert (result.get(), harness.attempts(result.id), harness.runs(result.id)) == (10, 1, 3)
    assert [event.why for event in harness.events if isinstance(event, HandedBack)] == ["stopped", "stopped"]
    assert shop.rails.progress("import:a") is None


def test_a_worker_that_stops_leaves_the_others_alone(shop, harness):
    def during() -> None:
        harness.stop()
        shop.during = lambda: None
        shop.charge.delay(8)
        harness.deliver()
        assert shop.effects == {7: 1, 8: 1}, "another worker has run it"
        assert current_execution().should_stop()

    shop.during = during
    result = shop.charge.delay(7)
    harness.drain()
    assert result.get() == "paid 7"


def test_outside_a_body_there_is_no_worker_to_stop(shop, harness):
    with pytest.raises(GuardrailsError, match=r"stop\(\) is for a task's body"):
        harness.stop()


def test_a_loop_goes_on_at_its_last_save_after_a_crash(shop, harness):
    handled: list[int] = []

    @shop.task("import", key="import:{name}")
    def import_rows(name: str) -> None:
        for row in current_execution().resume(lambda cursor: ((n, n) for n in range((cursor or 0) + 1, 7))):
            handled.append(row)
            harness.advance(1.0)
            if len(handled) == 5:
                harness.crash()

    import_rows.delay("a")
    harness.drain()
    assert handled == [1, 2, 3, 4, 5, 5, 6]
    assert harness.dead_letters == []


def test_self_retry_in_a_loop_counts_from_where_the_loop_came_last(shop, harness):
    handled: list[int] = []

    @shop.task("import", key="import:{name}", retry=POLICY, bind=True)
    def import_rows(self: Any, name: str) -> str:
        for row in current_execution().resume(lambda cursor: ((n, n) for n in range((cursor or 0) + 1, 6))):
            if row > 1 and handled.count(-row) < 2:  # each row but the first fails twice, and three attempts are allowed
                handled.append(-row)
                raise self.retry(exc=ConnectionError("gone"))
            handled.append(row)
        return "done"

    result = import_rows.delay("a")
    harness.drain()
    assert result.get() == "done"
    assert [row for row in handled if row > 0] == [1, 2, 3, 4, 5]
    assert harness.attempts(result.id) == 9
    assert harness.dead_letters == []
