"""``app.py`` of the worker: pytest-celery puts imports, name and configuration into the three lines that it knows."""

from __future__ import annotations

from celery import Celery

imports = None

app = Celery("celery_test_app")
config = None

if config:
    app.config_from_object(config)

from celery_guardrails import Guardrails  # noqa: E402 - after the lines that are replaced

# CELERY_RESULT_BACKEND wins over the configuration, which holds the address as the test sees it.
Guardrails(app, store=app.conf.result_backend, lease_seconds=5)
