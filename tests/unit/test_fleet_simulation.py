"""The simulation behind docs/fleet.md, small: what it shows is what the policy does, and it would show if the policy did not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.fleet.contestants import FixedDelay, Guarded, PlainCelery
from benchmarks.fleet.report import Summary, summary
from benchmarks.fleet.simulation import Measures, Scenario, simulate
from celery_guardrails.policy.resource import Resource

SMALL = Scenario(workers=200, normal=15.0, slow=10.0, healed=80.0)


def met(contestant: Guarded | PlainCelery | FixedDelay, scenario: Scenario = SMALL) -> tuple[Summary, Measures]:
    measures = simulate(scenario, contestant)
    return summary(scenario, contestant.name, measures, store=contestant.looks), measures


@pytest.fixture(scope="module")
def guarded() -> tuple[Summary, Measures]:
    return met(Guarded(1))


def test_guardrails_neither_amplify_an_outage_nor_give_a_task_up(guarded: tuple[Summary, Measures]) -> None:
    found, measures = guarded
    assert found.firsts_in_outage >= 50, "who calls nobody amplifies nothing"
    # to the token that is there when the outage begins
    assert found.calls_in_outage <= 1.1 * found.firsts_in_outage + 2
    assert found.exhausted == 0
    assert found.recovery is not None
    assert found.recovery <= 60
    # only probes call once the breaker is open
    down = slice(int(SMALL.dies) + 15, int(SMALL.heals))
    assert sum(measures.calls[down]) == sum(measures.firsts[down]) <= 5


@pytest.mark.parametrize("contestant", [PlainCelery(1), FixedDelay(1)])
def test_without_a_budget_and_a_breaker_calls_multiply(contestant: PlainCelery | FixedDelay) -> None:
    found, _ = met(contestant)
    assert found.amplification >= 3.0


def test_few_retries_give_tasks_up_in_a_minute() -> None:
    assert met(FixedDelay(1))[0].exhausted >= 500


def test_guardrails_without_a_budget_and_a_breaker_amplify_as_well() -> None:
    found, _ = met(Guarded(1, resource=Resource("dependency", retry_budget=None, breaker=None)))
    assert found.amplification >= 3.0


def test_where_the_fleet_at_once_is_more_than_the_dependency_bears_slots_bring_it_back() -> None:
    scenario = replace(SMALL, workers=100, timeout=3.0)
    alone, _ = met(Guarded(1), scenario)
    limited, _ = met(Guarded(1, resource=Resource("dependency", max_concurrency=int(1.5 * scenario.capacity * scenario.call))), scenario)
    assert limited.recovery is not None
    assert limited.recovery <= 60
    assert alone.recovery is None
    assert alone.exhausted == limited.exhausted == 0


def test_the_same_seed_gives_the_same_figures(guarded: tuple[Summary, Measures]) -> None:
    _, measures = guarded
    again = met(Guarded(1))[1]
    assert again == measures
