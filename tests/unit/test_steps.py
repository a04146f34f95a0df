"""What the workers of an app run in their main process."""

from __future__ import annotations

import subprocess
import sys

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


def test_who_publishes_does_not_load_what_a_worker_or_an_operator_needs() -> None:
    code = (
        "import sys; from celery import Celery; from celery_guardrails import Guardrails, guarded_task; app = Celery('shop', broker='memory://');"
        "Guardrails(app, store='memory://'); exec('def t(): pass'); guarded_task(app=app, key='k')(t); app.finalize(); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "celery_guardrails.integration.alerts.service" in loaded
    rooms = {"audit", "cli", "contrib", "dead_letters", "worker", "integration.alerts.webhook"}
    assert not {f"celery_guardrails.{room}" for room in rooms} & set(loaded)
