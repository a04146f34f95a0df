"""Loops that go on where they were. The guard is real, on memory; Celery's worker is not there."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, Retry

from celery_guardrails import GuardrailsConfigError, GuardrailsError, LeaseLost, PermanentError, current_execution, events
from celery_guardrails.config import Settings
from celery_guardrails.errors import NoProgress
from celery_guardrails.execution import Execution, executing
from celery_guardrails.guard import ErrorReport
from celery_guardrails.integration import stopping
from celery_guardrails.integration.looping import CURSOR_LIMIT
from celery_guardrails.integration.options import TaskOptions
from celery_guardrails.integration.running import running_now
from celery_guardrails.policy.delivery import Travel
from celery_guardrails.policy.lease import RecordState
from celery_guardrails.policy.progress import Progress
from celery_guardrails.policy.verdict import DeadLetterNow, HandBack
from celery_guardrails.stores.codec import KombuCodec, progress_of
from celery_guardrails.stores.memory import MemoryStore
from tests.support.killing import Killed
from tests.unit.test_guard import Bench, dead, waiting
from tests.unit.test_running import run, taken_over, task

__all__ = ["task"]

ROWS = range(1, 11)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.guard.codec = KombuCodec("json", ["json"], 262_144, bench.events.append)
    yield bench
    stopping.reset()


class Table:
    """Rows, and what was done with them; a row takes a second.

    Args:
        bench: whose clock it takes.
        at: row → what happens besides while it is handled.
    """

    def __init__(self, bench: Bench, **options: Any) -> None:
        self.bench, self.options = bench, options
        self.at: dict[int, Callable[[], Any]] = {}
        self.handled: list[int] = []
        self.asked: list[Any] = []
        self.closed = 0

    def rows_after(self, cursor: Any) -> Iterator[tuple[int, str]]:
        self.asked.append(cursor)
        try:
            for row in ROWS:
                if row > (cursor or 0):
                    yield row, f"row {row}"
        finally:
            self.closed += 1

    def body(self) -> str:
        for item in current_execution().resume(self.rows_after, **self.options):
            self.handle(item)
        return "done"

    def handle(self, item: str) -> None:
        row = int(item.split()[1])
        self.bench.clock.advance(1.0)
        self.at.pop(row, lambda: None)()
        self.handled.append(row)


@pytest.fixture
def table(bench: Bench) -> Table:
    return Table(bench)


def raising(error: BaseException) -> Callable[[], None]:
    def now() -> None:
        raise error

    return now


def kept(bench: Bench, key: str = "key") -> Progress:
    progress = progress_of(bench.store.lookup(key).steps)
    assert progress is not None
    return progress


def another(bench: Bench, holder: str, **travel: Any) -> Any:
    """A later delivery of the same message."""
    return bench.delivery(holder, travel=Travel(first=bench.clock.now(), deliveries=1, **travel))


# -- going well -------------------------------------------------------------------------------------------------------


def test_a_loop_that_is_not_interrupted_handles_every_row_and_leaves_nothing_behind(task, bench, table):
    assert run(task, bench.delivery(), table.body) == "done"
    assert table.handled == list(ROWS)
    assert table.asked == [None]
    record = bench.store.lookup("key")
    assert (record.state, record.steps) == (RecordState.COMPLETED, {})


def test_the_cursor_is_saved_every_few_seconds_and_not_for_each_row(task, bench, table):
    table.options["save_seconds"] = 4.0
    run(task, bench.delivery(), table.body)
    assert bench.log == ["claim", "save_step", "save_step", "save_step", "complete"], "4, 8, and the last one at the end of the loop"


def test_a_loop_that_is_over_before_its_first_save_costs_one(task, bench, table):
    table.options["save_seconds"] = 60.0
    run(task, bench.delivery(), table.body)
    assert bench.log == ["claim", "save_step", "complete"]


def test_an_empty_loop_costs_nothing(task, bench):
    assert run(task, bench.delivery(), lambda: list(current_execution().resume(lambda cursor: ()))) == []
    assert bench.log == ["claim", "complete"]


def test_a_clock_that_is_set_back_does_not_keep_a_loop_from_saving(task, bench, table):
    def back() -> None:
        bench.clock._now -= 7200

    table.at = {2: back}
    table.options["save_seconds"] = 4.0
    run(task, bench.delivery(), table.body)
    assert bench.log.count("save_step") == 3, "in the second row, six, ten"


# -- a deploy ---------------------------------------------------------------------------------------------------------


def test_at_sigterm_the_row_is_ended_and_the_message_goes_back_without_a_charge(task, bench, table):
    table.at = {3: stopping.set_stopping}
    with pytest.raises(Ignore, match="goes on in the next run"):
        run(task, bench.delivery(travel=Travel(first=bench.clock.now(), deferrals=7)), table.body)
    assert table.handled == [1, 2, 3], "the row in hand was handled"
    assert table.closed == 1
    record = bench.store.lookup("key")
    assert (record.state, record.attempts, record.crashes) == (RecordState.IDLE, 0, 0)
    assert kept(bench) == Progress({"": 3}, items=3, saved_at=bench.clock.now())
    (event,) = bench.seen(events.HandedBack)
    assert (event.delay, event.why) == (0.0, "stopped")
    assert bench.log == ["claim", "save_step", "save_step", "release", "delay"], "the cursor first, the lease, then the copy"
    travel = Travel.from_headers(waiting(bench, 0.0).headers)
    assert (travel.attempts, travel.deliveries, travel.deferrals) == (0, 1, 0)
    stopping.reset()
    assert run(task, another(bench, "b"), table.body) == "done"
    assert table.handled == list(ROWS)
    assert table.asked == [None, 3]


def test_a_row_that_was_long_in_coming_is_not_begun_after_sigterm(task, bench, table):
    def slowly(cursor: Any) -> Iterator[tuple[int, str]]:
        for row, item in table.rows_after(cursor):
            if row == 4:
                stopping.set_stopping()
            yield row, item

    def body() -> None:
        for item in current_execution().resume(slowly):
            table.handle(item)

    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    assert table.handled == [1, 2, 3]
    assert kept(bench).cursors == {"": 3}


def test_no_except_exception_stops_it_and_every_finally_runs(task, bench, table):
    seen: list[str] = []

    def body() -> None:
        try:
            table.body()
        except Exception:  # noqa: BLE001 - what users write
            seen.append("swallowed")
        finally:
            seen.append("finally")

    table.at = {3: stopping.set_stopping}
    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    assert seen == ["finally"]


def test_a_body_that_swallows_everything_is_not_taken_for_completed(task, bench, table):
    def body() -> str:
        try:
            return table.body()
        except BaseException:  # noqa: BLE001 - what users write
            return "as if nothing had happened"

    table.at = {3: stopping.set_stopping}
    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    assert bench.store.lookup("key").state is RecordState.IDLE
    assert len(list(bench.broker.browse("q"))) == 1


@pytest.mark.parametrize("of", ["task", "setting"])
def test_after_its_time_a_loop_hands_over_to_its_own_next_run(task, bench, table, of):
    bench.clock.advance(100.0)
    if of == "task":
        table.options["max_seconds"] = 5.0
    else:
        vars(task.guardrails)["settings"] = Settings(hand_over_seconds=5.0)
    with pytest.raises(Ignore):
        run(task, bench.delivery(), table.body)
    assert table.handled == [1, 2, 3, 4, 5]
    assert bench.seen(events.HandedBack)[0].why == "time is up"
    with pytest.raises(Ignore):
        run(task, another(bench, "b"), table.body)
    assert run(task, another(bench, "c"), table.body) == "done"
    assert table.handled == list(ROWS)


def test_at_its_deadline_a_loop_leaves_where_it_stands(task, bench, table):
    delivery = bench.delivery(travel=Travel(first=bench.clock.now(), until=bench.clock.now() + 4))
    with pytest.raises(Ignore):
        run(task, delivery, table.body)
    assert table.handled == [1, 2, 3, 4]
    assert bench.seen(events.HandedBack)[0].why == "deadline"


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_retry_goes_on_with_the_row_that_failed(task, bench, table):
    table.options["save_seconds"] = 60.0
    table.at = {4: raising(ConnectionError("gone"))}
    with pytest.raises(Retry):
        run(task, bench.delivery(), table.body)
    assert kept(bench).cursors == {"": 3}, "saved when the body had failed"
    assert run(task, another(bench, "b", attempts=1), table.body) == "done"
    assert table.handled == list(ROWS)


@pytest.mark.parametrize(("error", "raised"), [(Reject("no", requeue=True), Reject), (Retry(), Retry), (KeyError("wrong"), KeyError)])
def test_whatever_ends_a_body_its_cursor_is_saved(task, bench, table, error, raised):
    table.options["save_seconds"] = 60.0
    table.at = {4: raising(error)}
    with pytest.raises(raised):
        run(task, bench.delivery(), table.body)
    assert kept(bench).cursors == {"": 3}


def test_what_follows_a_loop_may_fail_without_repeating_a_row(task, bench, table):
    table.options["save_seconds"] = 60.0

    def body() -> None:
        table.body()
        raise ConnectionError("mail")

    with pytest.raises(Retry):
        run(task, bench.delivery(), body)
    with pytest.raises(Retry):
        run(task, another(bench, "b", attempts=1), body)
    assert table.handled == list(ROWS)


def test_attempts_are_counted_from_where_the_loop_came_last(task, bench, table):
    """Twelve attempts are allowed, and rows 2 to 9 fail twice each."""
    fails = dict.fromkeys(range(2, 10), 2)

    def handle(item: str) -> None:
        row = int(item.split()[1])
        if fails.get(row):
            fails[row] -= 1
            raise ConnectionError("gone")
        table.handled.append(row)

    def body() -> str:
        for item in current_execution().resume(table.rows_after):
            handle(item)
        return "done"

    for attempts in range(16):
        with pytest.raises(Retry) as retry:
            run(task, another(bench, f"h{attempts}", attempts=attempts), body)
        assert retry.value.when <= 2.0, "the wait grows with the attempts at one row"
    assert run(task, another(bench, "last", attempts=16), body) == "done"
    assert table.handled == list(ROWS)


def test_attempts_at_one_row_are_exhausted_however_long_the_loop_was(task, bench, table):

    def body() -> None:
        for item in current_execution().resume(table.rows_after):
            table.handle(item)
            if item == "row 7":
                raise ConnectionError("gone")

    attempts = 0
    while not list(bench.broker.browse("q.dead")):
        with pytest.raises((Retry, ConnectionError)):
            run(task, another(bench, f"h{attempts}", attempts=attempts), body)
        attempts += 1
    assert attempts == 12
    _, certificate = dead(bench)
    assert (certificate.reason, certificate.attempts) == ("exhausted", 12)
    assert (kept(bench).cursors, bench.store.lookup("key").attempts) == ({"": 6}, 0)


def test_self_retry_counts_from_where_the_loop_came_last(task, bench, table):
    counts: list[int] = []
    table.options["save_seconds"] = 60.0
    table.at = {1: lambda: counts.append(running_now.get().tried()), 3: lambda: counts.append(running_now.get().tried())}
    run(task, bench.delivery(travel=Travel(first=bench.clock.now(), attempts=4)), table.body)
    assert counts == [5, 1], "the first row was not done yet, the second was"


def test_an_ignored_task_forgets_its_cursor(task, bench, table):
    table.at = {4: raising(Ignore())}
    with pytest.raises(Ignore):
        run(task, bench.delivery(), table.body)
    assert bench.store.lookup("key") is None


def test_a_replayed_dead_letter_goes_on_at_the_cursor_with_fresh_counts(task, bench, table):
    table.at = {4: raising(PermanentError("wrong"))}
    with pytest.raises(PermanentError):
        run(task, another(bench, "a", attempts=3), table.body)
    replayed = another(bench, "b")
    _, claim = bench.guard.admit(replayed, task.guardrails.limits_of(task.guard_options))
    assert claim.progress == Progress({"": 3}, items=3, saved_at=kept(bench).saved_at)
    bench.guard.surrender(replayed, task.guardrails.limits_of(task.guard_options))
    assert run(task, another(bench, "c"), table.body) == "done"
    assert table.handled == list(ROWS)


# -- crashes ----------------------------------------------------------------------------------------------------------


def crash(task: Any, bench: Bench, holder: str, body: Any, crashes: int = 0) -> Any:
    """Run a body whose process dies, and have the main process find out."""
    delivery = another(bench, holder)
    with pytest.raises(Killed):
        run(task, delivery, body)
    return bench.guard.lost(delivery, task.guardrails.limits_of(task.guard_options), ErrorReport("WorkerLostError"))


def test_after_a_crash_the_rows_since_the_last_save_come_again_and_no_others(task, bench, table):
    table.options["save_seconds"] = 4.0
    table.at = {7: raising(Killed())}
    assert crash(task, bench, "a", table.body) == HandBack(0.0, "crashed")
    assert run(task, another(bench, "b"), table.body) == "done"
    assert table.handled == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10]


def test_a_loop_that_comes_further_between_crashes_is_no_poison(task, bench, table):
    for number, row in enumerate((3, 5, 7, 9)):
        table.at = {row: raising(Killed())}
        assert crash(task, bench, f"h{number}", table.body) == HandBack(0.0, "crashed")
    assert bench.store.lookup("key").crashes == 4
    assert run(task, another(bench, "last"), table.body) == "done"
    assert sorted(set(table.handled)) == list(ROWS)


def test_a_row_that_kills_its_process_is_poison_and_the_letter_says_where(task, bench, table):
    verdict: Any = None
    for holder in ("a", "b", "c"):
        table.at = {5: raising(Killed())}
        assert verdict is None or verdict == HandBack(0.0, "crashed")
        verdict = crash(task, bench, holder, table.body)
    assert isinstance(verdict, DeadLetterNow)
    assert (verdict.reason, verdict.crashes, verdict.why) == ("poison", 3, "a loop of it stands at the cursor 4")


# -- no progress ------------------------------------------------------------------------------------------------------


def test_a_loop_that_gets_nowhere_is_dead_lettered_with_its_cursor(task, bench, table):
    table.at = {3: stopping.set_stopping}
    with pytest.raises(Ignore):
        run(task, bench.delivery(), table.body)

    def killed_by_the_deploy() -> None:
        """The row takes longer than a worker has to stop: the main process kills it and charges nobody."""
        next(iter(current_execution().resume(table.rows_after)))
        raise Killed

    stopping.reset()
    for number in range(5):
        delivery = another(bench, f"h{number}")
        with pytest.raises(Killed):
            run(task, delivery, killed_by_the_deploy)
        bench.guard.surrender(delivery, task.guardrails.limits_of(task.guard_options))
    assert (kept(bench).stalls, kept(bench).begun) == (4, (0, 0))
    with pytest.raises(NoProgress, match="left the cursor 3 5 times where it was .guardrails_max_stalls."):
        run(task, another(bench, "last"), table.body)
    _, certificate = dead(bench)
    assert (certificate.reason, certificate.attempts, certificate.crashes) == ("exhausted", 0, 0)
    assert "left the cursor 3 5 times" in certificate.message
    # and the operator's replay, or a new message for the key, tries again where it stood
    assert run(task, another(bench, "replayed"), table.body) == "done"
    assert table.handled == list(ROWS)


def test_a_loop_that_gets_nowhere_from_its_beginning_is_found_out_too(task, bench, table):
    def killed() -> None:
        current_execution().resume(table.rows_after)
        raise Killed

    limits = task.guardrails.limits_of(task.guard_options)
    for number in range(6):
        delivery = bench.delivery("a") if number == 0 else another(bench, f"h{number}")
        with pytest.raises(Killed):
            run(task, delivery, killed)
        bench.guard.surrender(delivery, limits)
    with pytest.raises(NoProgress, match="cursor None 5 times"):
        run(task, another(bench, "last"), table.body)


def test_a_cursor_that_never_changes_is_no_progress(task, bench):
    def body() -> None:
        for _ in current_execution().resume(lambda cursor: iter([((1, "a"), "row")] * 3), max_seconds=0.0):
            pass

    for number in range(6):
        with pytest.raises(Ignore):
            run(task, another(bench, f"h{number}"), body)
    with pytest.raises(NoProgress, match=r"cursor \[1, 'a'\] 5 times"):
        run(task, another(bench, "last"), body)


def test_deploys_are_no_stalls_while_the_loop_moves(task, bench, table):
    table.options["max_seconds"] = 1.0
    for number in range(9):
        with pytest.raises(Ignore):
            run(task, another(bench, f"h{number}"), table.body)
        assert (kept(bench).stalls, kept(bench).begun) == (0, None)
    with pytest.raises(Ignore):
        run(task, another(bench, "ten"), table.body)
    assert run(task, another(bench, "last"), table.body) == "done"
    assert table.handled == list(ROWS)


def test_attempts_without_progress_are_no_stalls(task, bench, table):
    """A dependency that is away for ten attempts is what attempts are for."""
    for attempts in range(10):
        table.at = {1: raising(ConnectionError("gone"))}
        with pytest.raises(Retry):
            run(task, another(bench, f"h{attempts}", attempts=attempts), table.body)
    assert run(task, another(bench, "last", attempts=10), table.body) == "done"


# -- fenced -----------------------------------------------------------------------------------------------------------


def test_a_process_that_was_overtaken_cannot_save_and_stops_at_its_next_save(task, bench, table):
    table.at = {4: taken_over(bench)}
    with pytest.raises(Ignore, match="taken over"):
        run(task, bench.delivery(), table.body)
    assert table.handled == [1, 2, 3, 4]
    assert bench.guard.codec.decode(bench.store.lookup("key").result) == "theirs"
    assert not list(bench.broker.browse("q"))


def test_an_overtaken_process_that_is_told_to_stop_does_not_bring_the_message_back(task, bench, table):
    table.options["save_seconds"] = 3600.0

    def both() -> None:
        taken_over(bench)()
        stopping.set_stopping()

    table.at = {4: both}
    with pytest.raises(Ignore, match="taken over"):
        run(task, bench.delivery(), table.body)
    assert [event.why for event in bench.seen(events.HandedBack)] == ["lease lost"], "it is looked at again a little later, as ever"


# -- a store that is away ---------------------------------------------------------------------------------------------


def test_a_loop_goes_on_while_the_store_is_away_and_saves_later(task, bench, table):
    table.options["save_seconds"] = 1.0
    table.at = {2: lambda: bench.down.add("save_step"), 5: lambda: bench.down.discard("save_step"), 7: raising(Killed())}
    with pytest.raises(Killed):
        run(task, bench.delivery(), table.body)
    assert bench.log.count("save_step") == 6, "once a row: nobody waits for it"
    assert (kept(bench).cursors, kept(bench).items) == ({"": 6}, 6)


def test_a_worker_that_stops_while_the_store_is_away_hands_back_all_the_same(task, bench, table):
    table.options["save_seconds"] = 3600.0
    table.at = {2: lambda: bench.down.add("store"), 3: stopping.set_stopping}
    with pytest.raises(Ignore):
        run(task, bench.delivery(), table.body)
    assert bench.log.count("save_step") > 4, "it was asked again for some seconds"
    assert len(list(bench.broker.browse("q"))) == 1


def test_a_broker_that_does_not_take_the_message_back_keeps_the_original(task, bench, table):
    table.at = {3: lambda: (stopping.set_stopping(), bench.down.add("broker"))}
    with pytest.raises(Reject) as refused:
        run(task, bench.delivery(), table.body)
    assert refused.value.requeue
    assert kept(bench).cursors == {"": 3}


# -- several loops, and loops of one's own ----------------------------------------------------------------------------


def test_loops_have_cursors_of_their_own(task, bench, table):
    def body() -> str:
        now = current_execution()
        for name in ("first", "second"):
            for item in now.resume(table.rows_after, name=name):
                table.handle(item)
        return "done"

    table.at = {10: lambda: table.at.update({4: stopping.set_stopping})}
    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    assert (kept(bench).cursors, kept(bench).items) == ({"first": 10, "second": 4}, 14)
    stopping.reset()
    assert run(task, another(bench, "b"), body) == "done"
    assert table.handled == [*ROWS, *ROWS]


def test_two_loops_of_one_name_are_refused(task, bench, table):
    with pytest.raises(GuardrailsConfigError, match=r"resume\(name=''\) runs a second time .* name of its own"):
        run(task, bench.delivery(), lambda: (table.body(), table.body()))
    assert table.handled == list(ROWS), "the second would have begun where the first has ended"


def test_a_loop_of_ones_own_says_how_far_it_is(task, bench):
    pages: list[int] = []

    def body() -> str:
        now = current_execution()
        page = now.cursor() or 1
        while page < 8:
            pages.append(page)
            if pages == [1, 2, 3, 4]:
                stopping.set_stopping()
            page += 1
            now.checkpoint(page)
            assert now.cursor() == page
        return "done"

    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    stopping.reset()
    assert run(task, another(bench, "b"), body) == "done"
    assert pages == [1, 2, 3, 4, 5, 6, 7]


def test_a_loop_may_be_broken_off(task, bench, table):
    def body() -> str:
        for item in current_execution().resume(table.rows_after):
            if item == "row 4":
                break
            table.handle(item)
        return "enough"

    assert run(task, bench.delivery(), body) == "enough"
    assert table.handled == [1, 2, 3]


# -- cursors ----------------------------------------------------------------------------------------------------------

MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
NUMBER = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("cursor", "again"),
    [(7, 7), ("a", "a"), ((MOMENT, 7), [MOMENT, 7]), (NUMBER, NUMBER), (Decimal("1.50"), Decimal("1.50")), ({"page": 2}, {"page": 2})],
)
def test_a_cursor_comes_back_as_json_makes_it(task, bench, cursor, again):
    asked: list[Any] = []

    def rows_after(found: Any) -> Iterator[tuple[Any, int]]:
        asked.append(found)
        yield cursor, 1

    def body() -> str:
        for _ in current_execution().resume(rows_after, max_seconds=0.0 if asked == [] else None):
            pass
        return "done"

    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    assert run(task, another(bench, "b"), body) == "done"
    assert asked == [None, again]


def test_a_cursor_that_is_changed_for_the_next_row_is_saved_as_it_was(task, bench):
    def rows_after(_: Any) -> Iterator[tuple[Any, int]]:
        cursor = {"page": 0}
        while True:
            cursor["page"] += 1
            if cursor["page"] == 3:
                stopping.set_stopping()
            yield cursor, cursor["page"]

    with pytest.raises(Ignore):
        run(task, bench.delivery(), lambda: list(current_execution().resume(rows_after)))
    assert kept(bench).cursors == {"": {"page": 2}}


@pytest.mark.parametrize(
    ("cursor", "told"),
    [(object(), "cannot be kept: .*JSON"), ({1, 2}, "cannot be kept"), ("x" * CURSOR_LIMIT, f"bytes, {CURSOR_LIMIT} are allowed")],
)
def test_a_cursor_that_cannot_be_kept_is_refused_at_the_first_row(task, bench, cursor, told):
    handled: list[int] = []

    def body() -> None:
        for row in current_execution().resume(lambda _: iter([(cursor, 1), (cursor, 2)])):
            handled.append(row)

    with pytest.raises(GuardrailsConfigError, match=told):
        run(task, bench.delivery(), body)
    assert handled == [1]
    assert dead(bench)[1].reason == "permanent"


def test_a_later_cursor_that_cannot_be_kept_is_refused_when_it_is_to_be_saved(task, bench):
    def body() -> None:
        for _ in current_execution().resume(lambda _: iter([(1, 1), (object(), 2), (3, 3)])):
            bench.clock.advance(2.0)

    with pytest.raises(GuardrailsConfigError, match="cannot be kept"):
        run(task, bench.delivery(), body)
    assert kept(bench).cursors == {"": 1}


@pytest.mark.parametrize("row", [5, (1, 2, 3), "abc", None])
def test_rows_that_are_no_pairs_are_refused(task, bench, row):
    with pytest.raises(GuardrailsConfigError, match="rows_after yielded .* pairs"):
        run(task, bench.delivery(), lambda: list(current_execution().resume(lambda _: [row])))


def test_a_serializer_of_results_that_is_not_json_is_none_of_the_cursors_business(task, bench, table):
    bench.guard.codec = KombuCodec("pickle", ["pickle"], 262_144, bench.events.append)
    table.at = {3: stopping.set_stopping}
    with pytest.raises(Ignore):
        run(task, bench.delivery(), table.body)
    stopping.reset()
    assert run(task, another(bench, "b"), table.body) == "done"
    assert table.handled == list(ROWS)


# -- where there is no lease ------------------------------------------------------------------------------------------


def test_in_an_atomic_task_it_is_refused_with_the_way_out(task, bench, table):
    type(task).atomic = True
    type(task)._guard_options = TaskOptions.from_task(type(task))

    class OneDatabase(MemoryStore):
        def transaction(self, _: Any) -> Any:
            return nullcontext()

    store = bench.guard.store = task.guardrails._opened[1].store = OneDatabase(now=bench.clock.now)
    try:
        with pytest.raises(GuardrailsConfigError, match="not for a task with atomic: .* Leave atomic out"):
            run(task, bench.delivery(), table.body)
    finally:
        type(task).atomic = False
    assert dead(bench)[1].reason == "permanent"
    assert store.lookup("key") is None
    assert table.handled == []


def test_eager_it_loops_from_the_beginning_and_never_leaves(bench, table):
    stopping.set_stopping()
    table.options["max_seconds"] = 0.0
    with executing(Execution("k", 0, 1, 1, None)):
        assert table.body() == "done"
        with pytest.raises(GuardrailsConfigError):
            current_execution().resume(table.rows_after)
    assert table.handled == list(ROWS)


def test_a_task_that_runs_unguarded_goes_on_when_it_is_told_to_stop(task, bench, table):
    """Nobody would know where it stands: what it can end before it is killed is ended."""
    vars(task.guardrails)["settings"] = Settings(store_failure="open", store="memory://")
    bench.down.add("store")
    table.at = {3: stopping.set_stopping}
    assert run(task, bench.delivery(), table.body) == "done"
    assert table.handled == list(ROWS)


def test_no_step_of_a_user_is_called_like_one_of_ours():
    with (
        pytest.raises(GuardrailsError, match="does not begin with 'guardrails:'"),
        Execution("k", 0, 1, 1, None).step("guardrails:progress"),
    ):
        pass


def test_a_lost_lease_leaves_through_the_loop(task, bench, table):
    """As step() does: LeaseLost is what a body may see."""
    seen: list[BaseException] = []
    table.at = {4: taken_over(bench)}

    def body() -> None:
        try:
            table.body()
        except LeaseLost as exc:
            seen.append(exc)
            raise

    with pytest.raises(Ignore):
        run(task, bench.delivery(), body)
    assert len(seen) == 1
