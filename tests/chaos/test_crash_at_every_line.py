"""A real worker dies at every line of the package that a task comes through, on both brokers.

Whatever the line, the task ends as it should, and its effect is done again only where the process died between the effect
and its record, with a store that cannot commit both at once. ``make test`` has a sample (``tests/integration``).
"""

from __future__ import annotations

import pytest

from tests.integration.test_crash_at_some_lines import atomic_child, child, main_process, rows, supervised

__all__ = ["rows", "supervised"]


@pytest.mark.timeout(3600)
def test_a_child_that_dies_at_any_line_loses_nothing_and_repeats_only_what_was_not_recorded(shared_deploy, shared_broker):
    child(shared_deploy, shared_broker)


@pytest.mark.timeout(3600)
def test_a_child_that_dies_at_any_line_of_an_atomic_task_leaves_exactly_one_effect(shared_deploy, shared_broker, rows):
    atomic_child(shared_deploy, shared_broker, rows)


@pytest.mark.timeout(3600)
def test_a_main_process_that_dies_at_any_line_loses_nothing(shared_deploy, shared_broker, supervised):
    main_process(shared_deploy, shared_broker, supervised)
