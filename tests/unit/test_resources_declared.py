"""Declaring resources, and the tasks that name them."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_guardrails import CircuitBreaker, GuardedTask, Guardrails, GuardrailsConfigError, RetryBudget
from celery_guardrails.policy.breaker import Condition
from celery_guardrails.policy.resource import BREAKER, RATE, SLOTS, Resource, ResourceView
from celery_guardrails.worker.pausing import must_pause, sole_resources


@pytest.fixture
def app() -> Celery:
    return Celery("shop", broker="redis://", set_as_current=False)


def task(app: Celery, name: str, **options: Any) -> Any:
    base = GuardedTask if options.pop("guarded", True) else None

    def nothing() -> None:
        """Do nothing."""

    return app.task(name=name, shared=False, **({"base": base} if base else {}), **options)(nothing)


def test_a_resource_has_a_breaker_and_a_budget_unless_told_otherwise(app: Celery) -> None:
    rails = Guardrails(app, store="memory://")
    assert rails.resource("payments") == Resource("payments", RetryBudget(), CircuitBreaker(), None, None)
    assert rails.resource("bare", retry_budget=None, breaker=None) == Resource("bare", None, None)


def test_declared_twice_it_must_be_the_same(app: Celery) -> None:
    rails = Guardrails(app, store="memory://")
    rails.resource("payments", rate="10/s")
    rails.resource("payments", rate=10)
    with pytest.raises(GuardrailsConfigError, match="resource 'payments' is declared already, with other options"):
        rails.resource("payments", rate="20/s")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_concurrency": 0}, "max_concurrency = 0"),
        ({"rate": "often"}, "rate='often'"),
        ({"breaker": True}, "breaker = True"),
        ({"retry_budget": 0.1}, "retry_budget = 0.1"),
    ],
)
def test_a_wrong_option_is_named(app: Celery, options: dict[str, Any], said: str) -> None:
    with pytest.raises(GuardrailsConfigError, match=said):
        Guardrails(app, store="memory://").resource("payments", **options)


def test_a_task_whose_resource_nobody_declared_is_refused_at_the_workers_start(app: Celery) -> None:
    rails = Guardrails(app, store="memory://")
    options = task(app, "charge", resource="payments").guard_options
    with pytest.raises(GuardrailsConfigError, match=r"charge: resource = 'payments' is not declared; declared are none"):
        rails.check_task(options)
    assert rails.limits_of(options).resource == Resource("payments"), "one that came later is guarded all the same"
    declared = rails.resource("payments", rate="5/s")
    rails.check_task(options)
    assert rails.limits_of(options).resource == declared


def test_what_was_declared_with_the_default_guardrails_is_kept(app: Celery) -> None:
    first = Guardrails(app, store="memory://")
    declared = first.resource("payments", rate="5/s")
    second = Guardrails(app, store="memory://")
    assert second.resource("payments", rate="5/s") is declared


def test_a_queue_serves_one_resource_when_all_tasks_that_are_routed_there_name_it(app: Celery) -> None:
    app.conf.task_routes = {"routed": {"queue": "routed"}, "shared_*": {"queue": "shared"}}
    task(app, "own", resource="payments", queue="payments")
    task(app, "other", resource="payments", queue="payments")
    task(app, "routed", resource="search")
    task(app, "shared_a", resource="search")
    task(app, "shared_b", resource="payments")
    task(app, "mixed", resource="mail", queue="mixed")
    task(app, "plain", guarded=False, queue="mixed")
    task(app, "without", queue="without")
    assert sole_resources(app) == {"payments": "payments", "routed": "search"}


def view(why: str = "", wait: float = 0.0, entered: int = 0) -> ResourceView:
    return ResourceView("r", Condition.CLOSED, why=why, wait=wait, entered=entered)


@pytest.mark.parametrize(
    ("now", "before", "paused"),
    [
        (view(), None, False),
        (view(BREAKER, 4.0), None, True),
        (view(BREAKER, 0.1), view(), True),
        (view(RATE, 0.4), None, False),
        (view(RATE, 6.0), None, True),
        (view(SLOTS, 0.5, entered=7), None, False),
        (view(SLOTS, 0.5, entered=7), view(SLOTS, 0.5, entered=6), False),
        (view(SLOTS, 0.5, entered=7), view("", 0.0, entered=7), False),
        (view(SLOTS, 0.5, entered=7), view(SLOTS, 0.5, entered=7), True),
    ],
)
def test_a_queue_is_paused_when_nothing_could_begin_soon(now: ResourceView, before: ResourceView | None, paused: bool) -> None:
    assert must_pause(now, before) is paused
