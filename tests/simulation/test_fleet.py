"""Thousands of fleets, each with its own luck; a failure names its seed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_guardrails.execution import current_execution
from celery_guardrails.policy.breaker import CircuitBreaker, Condition
from celery_guardrails.policy.budget import RetryBudget
from celery_guardrails.policy.resource import Resource
from celery_guardrails.policy.retry import RetryPolicy
from celery_guardrails.policy.verdict import Limits

from .fleet import Fleet, Run
from .world import LEASE, Crash, World

#: ``GUARDRAILS_SEEDS=20000 pytest tests/simulation`` for a long look; ``GUARDRAILS_SEED=17`` for one seed again.
SEEDS = int(os.environ.get("GUARDRAILS_SEEDS", "100"))
ONE = os.environ.get("GUARDRAILS_SEED")
CHUNK = 50


def chunks() -> list[range]:
    if ONE is not None:
        return [range(int(ONE), int(ONE) + 1)]
    return [range(start, min(start + CHUNK, SEEDS)) for start in range(0, SEEDS, CHUNK)]


def every_seed(test: Callable[[int], None]) -> Any:
    """Run a test with many seeds; say which failed."""

    def run(seeds: range) -> None:
        for seed in seeds:
            try:
                test(seed)
            except Exception as exc:
                raise AssertionError(f"GUARDRAILS_SEED={seed} pytest tests/simulation -k {test.__name__}") from exc

    run.__name__ = test.__name__
    return pytest.mark.parametrize("seeds", chunks(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")(run)


# -- bodies ---------------------------------------------------------------------------------------------------------


def plain(fleet: Fleet, run: Run) -> Any:
    fleet.work()
    fleet.effect(run)
    fleet.work()
    return run.holder


def failing(fleet: Fleet, run: Run) -> Any:
    """Two keys meet a dependency that is down, one is wrong."""
    fleet.work()
    if run.key in ("k0", "k1"):
        raise ConnectionError
    if run.key == "k2":
        raise ValueError
    return plain(fleet, run)


def stepped(fleet: Fleet, run: Run) -> Any:
    fleet.work()
    values = [fleet.step(run, name) for name in ("reserve", "charge")]
    fleet.work()
    return values


def atomic(fleet: Fleet, run: Run) -> Any:
    """Writes a row in its transaction, and does something outside of it as a step."""
    fleet.work()
    transaction = run.worker.store.present
    assert transaction is not None
    transaction.effects.append(run.key)
    value = fleet.step(run, "charge")
    fleet.work()
    if run.attempt == 1 and run.key == "k0":
        raise ConnectionError
    return value


# -- what has to be true --------------------------------------------------------------------------------------------


def check_excuses(fleet: Fleet, name: str = "") -> None:
    """An effect that was repeated has an excuse: every run that did it, but one, died or lost its lease."""
    for key in fleet.keys:
        runs = [run for run in fleet.runs if run.key == key and run.effects[name]]
        unexcused = [run for run in runs if run.fate not in ("crashed", "overtaken", "back")]
        assert len(unexcused) <= 1 + len(fleet.unrecorded), runs


def check_steps(fleet: Fleet, *names: str) -> None:
    """A step is recorded by one run at most; another that did it was interrupted in it; its key is always the same."""
    for key in fleet.keys:
        for name in names:
            runs = [run for run in fleet.runs if run.key == key and run.effects[name]]
            assert len([run for run in runs if name in run.recorded]) <= 1, runs
            assert all(run.effects[name] == 1 for run in runs), runs
            unexcused = [run for run in runs if name not in run.recorded and run.fate in ("returned", "running")]
            assert not unexcused, unexcused
            assert len(fleet.step_keys[key, name]) <= 1, fleet.step_keys


@every_seed
def test_nothing_is_lost_and_no_key_is_completed_twice(seed: int) -> None:
    fleet = Fleet(World(seed), plain, operator=True)
    fleet.go()
    assert not fleet.letters()
    check_excuses(fleet)


@every_seed
def test_without_faults_every_key_has_one_effect_whatever_the_clocks_say(seed: int) -> None:
    fleet = Fleet(World(seed, faults=0.0), plain)
    fleet.go()
    assert not fleet.letters()
    assert all(fleet.effects(key) == 1 for key in fleet.keys)


@every_seed
def test_failures_are_dead_lettered_after_their_attempts_and_not_before(seed: int) -> None:
    fleet = Fleet(World(seed), failing, operator=True)
    fleet.go()
    letters = fleet.letters()
    for name, key in fleet.published.items():
        reason = {"k0": "exhausted", "k1": "exhausted", "k2": "permanent"}.get(key)
        assert letters.get(name) == reason, letters
        if reason == "exhausted":
            # each was made; a process may have died behind its charge
            assert {run.attempt for run in fleet.runs if run.key == key} >= {1, 2, 3, 4}, [run for run in fleet.runs if run.key == key]
    check_excuses(fleet)


@every_seed
def test_a_deadline_is_kept_by_workers_whose_clocks_are_wrong(seed: int) -> None:
    limits = Limits(retry=RetryPolicy(max_attempts=1000, base=0.2, cap=0.5, deadline=20.0))
    world = World(seed, faults=0.0)
    fleet = Fleet(world, failing, limits=limits)
    first = world.start + fleet.store.offset
    fleet.go()
    failed = [name for name, key in fleet.published.items() if key in ("k0", "k1")]
    assert {fleet.letters()[name] for name in failed} == {"deadline"}
    assert all(fleet.certificates()[name].last_seen - first > 19 for name in failed)
    assert max(run.began - first for run in fleet.runs if run.key in ("k0", "k1")) < 20.5


@every_seed
def test_a_task_that_kills_its_worker_is_poison_and_no_other_is(seed: int) -> None:
    def poison(fleet: Fleet, run: Run) -> Any:
        if run.key == "k0":
            raise Crash
        return plain(fleet, run)

    fleet = Fleet(World(seed, faults=0.0), poison, limits=Limits(max_crashes=3))
    fleet.go()
    killers = [name for name, key in fleet.published.items() if key == "k0"]
    assert fleet.letters() == dict.fromkeys(killers, "poison")
    # What one copy is charged with counts for the others, until the first is buried. One whose burial was cut short, by the
    # death of the host that it ran on next, is buried twice.
    assert 3 <= sum(run.key == "k0" for run in fleet.runs) <= 3 * len(fleet.broker.messages("work.dead"))
    assert all(fleet.effects(key) == 1 for key in fleet.keys[1:])


@every_seed
def test_a_host_that_was_frozen_does_not_bury_what_another_has_completed(seed: int) -> None:
    world = World(seed, faults=0.0)

    def body(fleet: Fleet, run: Run) -> Any:
        if all(other.key != run.key for other in fleet.runs if other is not run):
            run.worker.frozen_until = world.now + world.random.uniform(1.2, 3) * LEASE
            fleet.work()
            world.wait(0.0)
            if run.key in fleet.store.completed:
                zombies.append(run.key)
                raise ValueError
        return plain(fleet, run)

    zombies: list[str] = []
    fleet = Fleet(world, body, workers=5)
    fleet.go()
    assert not set(zombies) & set(fleet.broker.buried)
    assert not fleet.letters()


@every_seed
def test_a_step_that_is_done_is_not_done_again(seed: int) -> None:
    fleet = Fleet(World(seed), stepped, operator=True)
    fleet.go()
    assert not fleet.letters()
    check_steps(fleet, "reserve", "charge")


@every_seed
def test_a_loop_skips_no_row_whatever_happens(seed: int) -> None:
    """Workers die, freeze, are cut off, fail and hand over in the middle of loops; saves are lost, or come late."""
    world = World(seed)
    fleet, done = looping(world)
    assert not set(fleet.letters().values()) - {"exhausted"}
    for name, key in fleet.published.items():
        assert name in fleet.letters() or set(done[key]) == set(ROWS), done


@every_seed
def test_without_faults_a_loop_handles_each_row_once_however_often_it_fails_and_hands_over(seed: int) -> None:
    world = World(seed, faults=0.0)
    fleet, done = looping(world)
    assert not fleet.letters(), "twelve attempts at each row are enough, and more were made in all"
    assert {key: sorted(rows) for key, rows in done.items()} == {key: list(ROWS) for key in fleet.keys}


ROWS = range(1, 9)


def looping(world: World) -> tuple[Fleet, dict[str, list[int]]]:
    """Let a fleet run a loop, complain if one goes on behind a row that nobody has handled; return which rows were handled."""
    limits = Limits(retry=RetryPolicy(max_attempts=12, base=0.1, cap=0.5), max_crashes=1000, max_stalls=1000)
    done: dict[str, list[int]] = defaultdict(list)

    def body(fleet: Fleet, run: Run) -> Any:
        def rows_after(cursor: int | None) -> Iterator[tuple[int, int]]:
            skipped = set(range(1, (cursor or 0) + 1)) - set(done[run.key])
            if skipped:
                world.complain(f"{run.key} goes on at {cursor}, and nobody has handled {sorted(skipped)}")
            yield from ((row, row) for row in ROWS if row > (cursor or 0))

        for row in current_execution().resume(rows_after, save_seconds=world.random.choice((0.0, 1.0, 5.0)), max_seconds=6.0):
            fleet.work()
            if world.random.random() < 0.3:
                raise ConnectionError
            done[run.key].append(row)
        return "done"

    fleet = Fleet(world, body, limits=limits, operator=world.faults > 0)
    fleet.go()
    return fleet, done


@every_seed
def test_an_atomic_task_has_exactly_one_effect(seed: int) -> None:
    limits = Limits(retry=RetryPolicy(max_attempts=1000, base=0.5, cap=3.0), max_crashes=1000)
    fleet = Fleet(World(seed), atomic, limits=limits, atomic=True, operator=True)
    fleet.go()
    assert not fleet.letters()
    assert fleet.store.rows == dict.fromkeys(fleet.keys, 1)
    check_steps(fleet, "charge")


@every_seed
def test_replayed_dead_letters_go_on_behind_their_last_step(seed: int) -> None:
    world = World(seed)

    def body(fleet: Fleet, run: Run) -> Any:
        value = fleet.step(run, "reserve")
        fleet.work()
        if not world.calm and run.key != "k4":
            raise ConnectionError if run.key in ("k0", "k1") else ValueError
        return [value, fleet.step(run, "charge")]

    fleet = Fleet(world, body, operator=True)
    fleet.replay()
    fleet.go(lambda: fleet.broker.depth("work.dead") == 0)
    assert set(fleet.store.completed) == set(fleet.keys)
    check_steps(fleet, "reserve", "charge")


@every_seed
def test_a_resource_is_never_overrun_and_all_is_done_when_it_is_well_again(seed: int) -> None:
    world = World(seed)
    well = world.start + world.random.uniform(10, 80)
    resource = Resource(
        "api",
        retry_budget=RetryBudget(min_per_second=0.5),
        breaker=CircuitBreaker(min_calls=3, window=10.0, open_seconds=2.0, max_open_seconds=8.0),
        max_concurrency=2,
    )
    limits = Limits(retry=RetryPolicy(max_attempts=1000, base=0.5, cap=3.0), max_crashes=1000, resource=resource)
    failures = []

    def body(fleet: Fleet, run: Run) -> Any:
        fleet.work()
        if world.now < well:
            failures.append(world.now)
            raise ConnectionError
        return plain(fleet, run)

    fleet = Fleet(world, body, tasks=8, workers=6, limits=limits, operator=True)
    fleet.go()
    assert not fleet.letters()
    assert set(fleet.store.completed) == set(fleet.keys)
    check_excuses(fleet)
    (view,) = fleet.store.records.view([resource])
    assert view.condition is Condition.CLOSED or view.wait <= 8.0 * 1.25
    assert fleet.most <= 2
    # each task once, what it takes to notice, and then the budget's floor; without breaker and budget it is twice as many
    assert len(failures) <= 12 + 0.5 * (well - world.start) + len(fleet.published)


@every_seed
def test_without_faults_a_slot_lasts_as_long_as_its_body(seed: int) -> None:
    world = World(seed, faults=0.0)
    resource = Resource("api", max_concurrency=2)

    def body(fleet: Fleet, run: Run) -> Any:
        for _ in range(6):
            world.wait(LEASE / 4)
            fleet.look_around()
        return plain(fleet, run)

    fleet = Fleet(world, body, workers=6, limits=Limits(resource=resource))
    fleet.go()
    assert fleet.most == 2
    (view,) = fleet.store.records.view([resource])
    assert (view.running, view.failures, view.condition) == (0, 0, Condition.CLOSED)
    assert all(fleet.effects(key) == 1 for key in fleet.keys)
