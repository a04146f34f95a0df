"""The Celery app, as Celery's documentation has it for Django."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "atomic_site.settings")

app = Celery("atomic")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
