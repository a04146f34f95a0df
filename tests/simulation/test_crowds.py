"""Poison among long tasks: dead at its third worker, and nobody else pays."""

from __future__ import annotations

import pytest

from .crowds import LEASE, POISON, Crowd
from .world import World

SEEDS = range(15)


def crowd(seed: int, longest: float) -> Crowd:
    """Return three busy workers of four tasks at a time when all has come to rest; everybody but the poison has completed, uncharged."""
    found = Crowd(World(seed, faults=0.0), workers=3, slots=4, neighbours=40, longest=longest, span=900.0)
    found.go()
    assert found.charged == 0
    assert found.completed == set(found.seconds)
    assert list(found.certificates()) == [POISON]
    assert found.certificates()[POISON][0] == "poison"
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_poison_among_neighbours_of_up_to_six_minutes_is_dead_at_its_third_worker(seed: int) -> None:
    found = crowd(seed, 6 * LEASE)
    assert (found.lost, found.certificates()[POISON]) == (3, ("poison", 3))
    assert found.quarantines == [(2, True)], "it was alone in the end, and never beside others before"


def test_where_neighbours_run_longer_than_all_waiting_poison_is_condemned_only_for_what_it_did_alone() -> None:
    crowds = [crowd(seed, 40 * LEASE) for seed in SEEDS[:5]]
    for found in crowds:
        assert found.quarantines[-1][1], "the last loss was proof"
        assert not any(alone for _, alone in found.quarantines[:-1])
        assert found.lost == 2 + len(found.quarantines)
    assert any(len(found.quarantines) > 1 for found in crowds), "in some it has run beside others first, and proved nothing by that"
