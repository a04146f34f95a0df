"""Recovery points, fencing and atomic bodies. The guard is real, on memory; Celery's worker is not there."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.exceptions import Ignore, Retry

from celery_guardrails import GuardrailsError, LeaseLost, PermanentError, StoreUnavailable, current_execution, events
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.execution import Execution, executing
from celery_guardrails.integration import overtaken
from celery_guardrails.integration.options import TaskOptions
from celery_guardrails.policy.delivery import Travel
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import DeadLetterNow, Limits, Run
from celery_guardrails.stores.codec import KombuCodec
from celery_guardrails.stores.memory import MemoryStore
from tests.unit.test_guard import Bench
from tests.unit.test_running import run, taken_over, task

__all__ = ["task"]


@pytest.fixture
def bench() -> Bench:
    return Bench()


class Gateway:
    """Charges once a call, and remembers with which idempotency key."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def charge(self, key: str) -> dict[str, int]:
        self.calls.append(key)
        return {"charge": len(self.calls)}


def charging(gateway: Gateway, then: Any = lambda: "done") -> Any:
    def body() -> Any:
        with current_execution().step("charge") as step:
            if not step.done:
                step.value = gateway.charge(step.key)
        assert step.value == {"charge": 1}
        return then()

    return body


def failing(error: BaseException) -> Any:
    def then() -> None:
        raise error

    return then


def test_a_step_that_is_done_is_not_done_again_by_the_next_attempt(task, bench):
    gateway = Gateway()
    with pytest.raises(Retry):
        run(task, bench.delivery("a"), charging(gateway, failing(ConnectionError("mail"))))
    assert run(task, bench.delivery("b"), charging(gateway)) == "done"
    assert len(gateway.calls) == 1
    assert bench.store.lookup("key").steps == {}


def test_a_step_that_was_interrupted_runs_again_with_the_same_key(task, bench):
    gateway = Gateway()

    def interrupted() -> None:
        with current_execution().step("charge") as step:
            gateway.charge(step.key)
            raise ConnectionError

    with pytest.raises(Retry):
        run(task, bench.delivery("a"), interrupted)
    with pytest.raises(Retry):
        run(task, bench.delivery("b"), interrupted)
    assert len(gateway.calls) == 2
    assert len(set(gateway.calls)) == 1


def test_the_key_of_a_step_is_a_uuid_of_key_and_name_and_never_changes():
    # golden: a downstream that has seen this key must see it again after an upgrade
    execution = Execution("charge:42", 1, 1, 1, None)
    with execution.step("charge") as step:
        pass
    assert step.key == "1f722d06-0241-51bd-993a-8104b46a64bf"
    assert uuid.UUID(step.key).version == 5
    with execution.step("mail") as other, Execution("charge:43", 1, 1, 1, None).step("charge") as third:
        assert len({step.key, other.key, third.key}) == 3


def test_a_step_costs_one_call_of_the_store_and_a_done_one_none(task, bench):
    gateway = Gateway()
    with pytest.raises(Retry):
        run(task, bench.delivery("a"), charging(gateway, failing(ConnectionError())))
    assert bench.log.count("save_step") == 1
    bench.log.clear()
    run(task, bench.delivery("b"), charging(gateway))
    assert bench.log == ["claim", "complete"]


def test_a_step_of_this_very_run_is_done_the_second_time(task, bench):
    gateway = Gateway()

    def twice() -> Any:
        charging(gateway)()
        return charging(gateway)()

    assert run(task, bench.delivery(), twice) == "done"
    assert len(gateway.calls) == 1


def test_steps_survive_the_dead_letter_queue(task, bench):
    gateway = Gateway()
    with pytest.raises(PermanentError):
        run(task, bench.delivery("a"), charging(gateway, failing(PermanentError("no such address"))))
    record = bench.store.lookup("key")
    assert (record.state, record.attempts, set(record.steps)) == (RecordState.IDLE, 0, {"charge"})
    bench.clock.advance(29 * 86400)
    assert run(task, bench.delivery("replayed"), charging(gateway)) == "done"
    assert len(gateway.calls) == 1


def test_a_value_that_cannot_be_kept_leaves_the_step_done_without_it(task, bench):
    bench.guard.codec = KombuCodec("json", ["json"], 100, bench.events.append)

    def body() -> Any:
        with current_execution().step("odd") as step:
            if not step.done:
                step.value = object()
        raise ConnectionError

    with pytest.raises(Retry):
        run(task, bench.delivery("a"), body)

    def again() -> Any:
        with current_execution().step("odd") as step:
            return [step.done, step.value]

    assert run(task, bench.delivery("b"), again) == [True, None]


def test_a_step_whose_memory_fails_is_no_error_while_the_store_may_come_back(task, bench):
    gateway = Gateway()

    def body() -> Any:
        with current_execution().step("charge") as step:
            step.value = gateway.charge(step.key)
            bench.down.add("save_step")
        return "done"

    bench.clock.sleep = lambda seconds, really=bench.clock.sleep: (really(seconds), bench.down.discard("save_step"))  # type: ignore[method-assign,func-returns-value]
    assert run(task, bench.delivery(), body) == "done"
    assert bench.log.count("save_step") == 2


def test_a_store_that_stays_away_fails_the_step_as_a_failure_that_will_pass(task, bench):
    def body() -> Any:
        with current_execution().step("charge"):
            bench.down.add("save_step")

    with pytest.raises(Retry) as caught:
        run(task, bench.delivery(), body)
    assert isinstance(caught.value.exc, StoreUnavailable)


@pytest.mark.parametrize("name", ["", None, 5])
def test_a_step_needs_a_name(name):
    with pytest.raises(GuardrailsError, match="step"), Execution("k", 1, 1, 1, None).step(name):
        pass


# -- a lease that was lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["step", "ensure_live"])
def test_a_body_that_lost_its_lease_learns_it_and_ends_without_a_charge(task, bench, how):
    after: list[str] = []

    def body() -> None:
        taken_over(bench)()
        if how == "step":
            with current_execution().step("s"):
                pass
        else:
            current_execution().ensure_live()
        after.append("went on")

    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    assert after == []
    record = bench.store.lookup("key")
    assert (record.state, bench.guard.codec.decode(record.result)) == (RecordState.COMPLETED, "theirs")
    assert bench.seen(events.LeaseTaken)
    assert not bench.seen(events.Retrying)
    assert not list(bench.broker.browse("q.dead"))


def test_a_body_that_was_told_by_the_renewal_does_not_begin_its_step(task, bench):
    began: list[str] = []

    def body() -> None:
        taken_over(bench)()
        overtaken.mark("aaaa000000000001")
        with current_execution().step("s"):
            began.append("s")

    with pytest.raises(Ignore):
        run(task, bench.delivery("aaaa000000000001"), body)
    assert began == []


def test_a_renewal_that_came_before_the_claim_alarms_nobody(task, bench):
    def body() -> str:
        overtaken.mark("aaaa000000000002")
        with current_execution().step("s"):
            pass
        return "done"

    assert run(task, bench.delivery("aaaa000000000002"), body) == "done"


def test_a_live_lease_is_extended_by_asking(task, bench):
    def body() -> str:
        bench.clock.advance(40)
        current_execution().ensure_live()
        bench.clock.advance(40)
        return bench.store.lookup("key").until - bench.clock.now()

    assert run(task, bench.delivery(), body) == pytest.approx(20)


def test_outside_a_lease_nothing_can_be_lost():
    with executing(Execution("k", 0, 1, 1, None)):
        current_execution().ensure_live()
        with current_execution().step("s") as step:
            step.value = 5
        with current_execution().step("s") as again:
            assert (again.done, again.value) == (True, 5)


# -- a body and its completion in one transaction ---------------------------------------------------------------------


class OneDatabase(MemoryStore):
    """Records and effects that are rolled back together."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(now=bench.clock.now)
        self.effects: list[str] = []
        self.commit: Any = lambda: None

    @contextmanager
    def transaction(self, database: str | None) -> Iterator[Any]:
        if database not in (None, "main"):
            raise GuardrailsConfigError(f"atomic = {database!r}")
        effects, later = list(self.effects), []
        store = self

        class Transaction:
            def complete(self, key: str, **what: Any) -> bool:
                before = copy.copy(store._records)
                done = store.complete(key, **what)
                after, store._records = store._records, before
                later.append(after.get(key))
                later.append(key)
                return done

        try:
            yield Transaction()
        except BaseException:
            self.effects = effects
            raise
        if later:
            self._records[later[1]] = later[0]
        self.commit()


@pytest.fixture
def database(task, bench) -> OneDatabase:
    store = bench.store = OneDatabase(bench)
    type(task).atomic = True
    type(task)._guard_options = TaskOptions.from_task(type(task))
    task.guardrails._opened[1].store = store
    bench.guard.store = store
    return store


def effect(database: OneDatabase, then: Any = lambda: "done") -> Any:
    def body() -> Any:
        database.effects.append("row")
        return then()

    return body


def test_an_atomic_body_commits_with_its_completion(task, bench, database):
    assert run(task, bench.delivery(), effect(database)) == "done"
    assert database.effects == ["row"]
    assert database.lookup("key").state is RecordState.COMPLETED
    assert bench.seen(events.Completed)
    assert run(task, bench.delivery("b"), effect(database)) == "done"
    assert database.effects == ["row"]


def test_an_atomic_body_that_fails_leaves_nothing(task, bench, database):
    with pytest.raises(Retry):
        run(task, bench.delivery(), effect(database, failing(ConnectionError())))
    assert database.effects == []
    assert (database.lookup("key").state, database.lookup("key").attempts) == (RecordState.IDLE, 1)


def test_an_atomic_body_that_lost_its_lease_is_rolled_back_and_the_others_result_stands(task, bench, database):
    with pytest.raises(Ignore):
        run(task, bench.delivery(), effect(database, taken_over(bench)))
    assert database.effects == []
    assert bench.guard.codec.decode(database.lookup("key").result) == "theirs"


def test_a_commit_whose_answer_was_lost_counts_as_what_the_database_says(task, bench, database):
    database.commit = failing(ConnectionError("the answer was lost"))
    assert run(task, bench.delivery(), effect(database)) == "done"
    assert database.effects == ["row"]


def test_a_commit_that_failed_is_a_failure_of_the_task(task, bench, database):
    def refuse() -> None:
        database._records.clear()
        bench.guard.store.claim("key", holder="a", fingerprint="f", lease=60.0)
        raise ConnectionError("refused")

    database.commit = refuse
    with pytest.raises(Retry):
        run(task, bench.delivery(), effect(database))


def test_atomic_with_a_store_that_cannot_names_the_setting(task, bench):
    type(task).atomic = True
    type(task)._guard_options = TaskOptions.from_task(type(task))
    task.guardrails._opened[1].store = bench.store
    with pytest.raises(GuardrailsConfigError, match="running.task: atomic = True .*guardrails_store = 'memory://'"):
        task.apply_async()
    type(task).atomic = False


def test_a_lost_lease_is_an_error_of_its_own_kind():
    assert issubclass(LeaseLost, GuardrailsError)


def test_time_is_the_stores_own(task, bench):
    """A worker whose clock is an hour ahead gives nobody up an hour too early."""
    bench.guard.store = MemoryStore(now=lambda: bench.clock.now() - 3600)
    limits = Limits(retry=RetryPolicy(deadline=60.0))
    delivery = bench.delivery(travel=Travel(first=bench.clock.now() - 3600))
    verdict, _ = bench.guard.admit(delivery, limits)
    assert isinstance(verdict, Run)
    assert bench.guard.now() == pytest.approx(bench.clock.now() - 3600)
    late = bench.delivery("b", travel=Travel(first=bench.clock.now() - 3700))
    bench.guard.store.forget("key")
    verdict, _ = bench.guard.admit(late, limits)
    assert isinstance(verdict, DeadLetterNow)
    assert verdict.reason == "deadline"
