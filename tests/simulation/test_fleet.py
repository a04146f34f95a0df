"""Thousands of fleets, each with its own luck; a failure names its seed."""

from __future__ import annotations

import os

import pytest

from tests.simulation.fleet import World, run

#: ``GUARDRAILS_SEEDS=100000 pytest tests/simulation`` for a long look.
SEEDS = int(os.environ.get("GUARDRAILS_SEEDS", "400"))
CHUNK = 50


def seeds(chunk: int) -> range:
    return range(chunk * CHUNK, (chunk + 1) * CHUNK)


@pytest.mark.parametrize("chunk", range(SEEDS // CHUNK))
def test_nothing_is_lost_and_no_key_runs_twice_at_once(chunk: int) -> None:
    for seed in seeds(chunk):
        world = World(seed)
        run(world, lambda key, attempt: key)
        assert not world.overlaps, f"seed {seed}: {world.overlaps}"
        assert all(state == "completed" for state in world.finished.values()), f"seed {seed}: {world.finished}"


@pytest.mark.parametrize("chunk", range(SEEDS // CHUNK))
def test_without_faults_every_key_has_one_effect(chunk: int) -> None:
    for seed in seeds(chunk):
        world = World(seed, faults=0.0)
        run(world, lambda key, attempt: key)
        assert set(world.effects.values()) == {1}, f"seed {seed}: {world.effects}"


@pytest.mark.parametrize("chunk", range(SEEDS // CHUNK))
def test_failures_end_in_the_dead_letter_queue_after_their_attempts(chunk: int) -> None:
    for seed in seeds(chunk):
        world = World(seed, faults=0.02)

        def body(key: str, attempt: int) -> str:
            if key in ("k0", "k1"):
                raise ConnectionError
            if key == "k2":
                raise ValueError
            return key

        run(world, body)
        for name, state in world.finished.items():
            key = f"k{name[1:].split('.')[0]}"
            expected = {"k0": "exhausted", "k1": "exhausted", "k2": "permanent"}.get(key, "completed")
            assert state == expected, f"seed {seed}: {name} is {state}"
        dead = {str(letter.message.headers["id"]) for letter in world.broker.browse("work.dead")}
        assert dead >= {name for name, state in world.finished.items() if state != "completed"}, f"seed {seed}"
