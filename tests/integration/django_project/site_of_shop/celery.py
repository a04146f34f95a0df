"""The Celery app, as Celery's documentation has it for Django."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_of_shop.settings")

if os.environ.get("SHOP_CELERY") == "sets Django up itself":
    import django

    django.setup()

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
