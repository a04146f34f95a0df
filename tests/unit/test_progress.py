"""How far loops have come, and what is counted against a task that gets nowhere; read it as the specification of Progress."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_guardrails.policy.progress import PROGRESS, RESERVED, Progress

counts = st.integers(0, 50)
points = st.builds(
    Progress,
    st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3),
    counts,
    st.none() | st.floats(0, 2e9),
    counts,
    counts,
    counts,
    st.none() | st.tuples(counts, counts),
)


@given(points)
def test_it_is_read_as_it_was_written(progress: Progress) -> None:
    assert Progress.from_value(json.loads(json.dumps(progress.to_value()))) == progress


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        {"cursors": [1], "items": -1, "saved_at": "now", "attempts": True, "crashes": "2", "stalls": 1.5, "begun": [1]},
    ],
)
def test_what_cannot_be_read_is_a_loop_at_its_beginning(value: Any) -> None:
    assert Progress.from_value(value) == Progress()


def test_the_names_in_a_store_never_change() -> None:
    assert (RESERVED, PROGRESS) == ("guardrails:", "guardrails:progress")
    assert list(Progress().to_value()) == ["cursors", "items", "saved_at", "attempts", "crashes", "stalls", "begun"]


# -- what counts ------------------------------------------------------------------------------------------------------

AT = Progress({"": 41}, items=41, saved_at=9.0, attempts=4, crashes=2, stalls=3, begun=(5, 2))


def test_only_what_was_charged_since_a_cursor_moved_counts() -> None:
    assert [AT.failures(attempts) for attempts in (3, 4, 5, 9)] == [0, 0, 1, 5]
    assert [AT.losses(crashes) for crashes in (1, 2, 3, 5)] == [0, 0, 1, 3]


@pytest.mark.parametrize(
    # when the last run began here, charges now → runs that got nowhere without one
    ("begun", "attempts", "crashes", "stalls"),
    [
        ((5, 2), 5, 2, 4),
        ((5, 2), 6, 2, 3),
        ((5, 2), 5, 3, 3),
        (None, 5, 2, 3),
    ],
)
def test_a_run_that_got_nowhere_is_a_stall_unless_it_was_charged(
    begun: tuple[int, int] | None, attempts: int, crashes: int, stalls: int
) -> None:
    at = replace(AT, begun=begun)
    assert at.stalled(attempts, crashes) == stalls
    assert at.restarted(attempts, crashes) == replace(AT, stalls=stalls, begun=(attempts, crashes))


def test_a_cursor_that_moves_clears_the_counters() -> None:
    moved = AT.moved({"": 50}, 9, now=12.0, attempts=6, crashes=3)
    assert moved == Progress({"": 50}, 50, 12.0, 6, 3, 0, None)
    assert (moved.failures(6), moved.losses(3), moved.stalled(6, 3)) == (0, 0, 0)


def test_a_task_that_was_given_up_goes_on_at_its_cursor_with_nothing_counted() -> None:
    assert AT.afresh() == Progress({"": 41}, 41, 9.0)


@pytest.mark.parametrize(
    ("attempts", "crashes", "forgotten"),
    [(5, 2, False), (6, 9, False), (4, 2, True), (0, 0, True), (5, 1, True)],
)
def test_charges_that_were_forgotten_since_are_no_base_to_count_from(attempts: int, crashes: int, forgotten: bool) -> None:
    assert AT.as_of(attempts, crashes) == (AT.afresh() if forgotten else AT)


def test_the_base_is_also_what_was_charged_when_the_cursor_moved() -> None:
    at = replace(AT, begun=None)
    assert at.as_of(4, 2) == at
    assert at.as_of(3, 2) == at.as_of(4, 1) == at.afresh()


@given(points, counts, counts)
def test_counts_are_never_below_nothing_and_never_more_than_was_charged(progress: Progress, attempts: int, crashes: int) -> None:
    assert 0 <= progress.failures(attempts) <= attempts
    assert 0 <= progress.losses(crashes) <= crashes
    assert progress.stalls <= progress.stalled(attempts, crashes) <= progress.stalls + 1


@pytest.mark.parametrize(
    ("cursors", "shown"),
    [
        ({}, "None"),
        ({"": 41}, "41"),
        ({"": "abc"}, "'abc'"),
        ({"a": 1, "b": [2]}, "{'a': 1, 'b': [2]}"),
        ({"a": 1}, "{'a': 1}"),
        ({"": "x" * 500}, "'" + "x" * 198 + "…"),
        ({"": "x" * 198}, "'" + "x" * 198 + "'"),
    ],
)
def test_people_are_shown_where_it_stands(cursors: dict[str, Any], shown: str) -> None:
    assert Progress(cursors).where() == shown
