"""What the workers of an app run in their main process."""

from __future__ import annotations

from celery import Celery
from celery.utils.imports import symbol_by_name

from celery_guardrails import Guardrails
from celery_guardrails.integration import steps


def test_an_apps_workers_get_every_step_by_a_name_that_can_be_imported() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    Guardrails(app, store="memory://")
    assert set(steps._WORKER) <= set(app.steps["worker"])
    assert set(steps._CONSUMER) <= set(app.steps["consumer"])
    labels = [symbol_by_name(name).label for name in steps._WORKER + steps._CONSUMER]
    assert all(label.startswith("guardrails ") for label in labels)
    assert len(set(labels)) == len(labels)
