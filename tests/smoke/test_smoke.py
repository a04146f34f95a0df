"""A guarded app in the architecture that pytest-celery puts up: broker, backend and worker, each a node of its own."""

from __future__ import annotations

import pytest
from celery.exceptions import TimeoutError as NoResult
from pytest_celery import CELERY_RABBITMQ_BROKER

from celery_guardrails import PermanentError
from tests.support import eventually

from . import tasks

DEAD = "celery.dead"


def test_a_key_published_twice_takes_effect_once_and_both_get_the_result(celery_setup, effects):
    results = [tasks.effect.delay("a") for _ in range(2)]
    assert [result.get(timeout=20) for result in results] == ["a", "a"]
    assert effects("a") == 1


def test_a_retryable_failure_is_tried_again(celery_setup, effects):
    assert tasks.flaky.delay("a", 2).get(timeout=20) == "a"
    assert (effects("a", "start"), effects("a")) == (3, 1)


def test_a_permanent_failure_is_dead_lettered_at_once(celery_setup, effects, smoke_broker):
    with pytest.raises(PermanentError):
        tasks.declined.delay("a").get(timeout=20)
    assert effects("a", "start") == 1
    assert smoke_broker.depth(DEAD) == 1


def test_a_task_that_kills_its_process_is_dead_lettered_after_three_crashes(celery_setup, effects, smoke_broker):
    tasks.poison.delay("a")
    eventually(lambda: smoke_broker.depth(DEAD) == 1, 30, because="the poison is dead")
    assert effects("a", "start") == 3
    assert tasks.effect.delay("b").get(timeout=20) == "b"


def test_a_worker_that_is_told_to_stop_finishes_its_task(celery_setup, effects):
    result = tasks.effect.delay("a", 2.0)
    eventually(lambda: effects("a", "start") == 1, 20)
    celery_setup.worker.restart()  # with ``force`` it would be told twice, and hand its task back
    assert result.get(timeout=20) == "a"
    assert effects("a", "start") == effects("a") == 1


# Redis hands a dead worker's messages on when the visibility timeout is over: an hour by default.
@pytest.mark.parametrize("celery_broker", [CELERY_RABBITMQ_BROKER], indirect=True)
def test_a_killed_workers_task_is_done_by_the_next_one(celery_setup, effects):
    result = tasks.effect.delay("a", 2.0)
    eventually(lambda: effects("a", "start") == 1, 20)
    celery_setup.worker.kill()
    with pytest.raises(NoResult):
        result.get(timeout=0.5)
    celery_setup.worker.restart()
    # The killed worker's lease has to run out first.
    assert result.get(timeout=40) == "a"
    assert (effects("a", "start"), effects("a")) == (2, 1)
