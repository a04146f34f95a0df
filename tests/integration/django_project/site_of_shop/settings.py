"""Settings; what a test chooses comes from the environment."""

from __future__ import annotations

import os

SECRET_KEY = "not secret"
USE_TZ = True
INSTALLED_APPS = ["shop", "celery_guardrails.contrib.django"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("SHOP_DATABASE", ":memory:")}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CELERY_BROKER_URL = os.environ.get("SHOP_BROKER_URL", "memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("SHOP_QUEUE", "celery")
CELERY_RESULT_BACKEND = os.environ.get("SHOP_STORE_URL")
CELERY_GUARDRAILS_STORE = os.environ.get("SHOP_STORE_URL")
CELERY_GUARDRAILS_MAX_CRASHES = int(os.environ.get("SHOP_MAX_CRASHES", "3"))
if "SHOP_ARCHIVE_SECONDS" in os.environ:
    CELERY_GUARDRAILS_ARCHIVE_SECONDS = float(os.environ["SHOP_ARCHIVE_SECONDS"])

if "SHOP_PREFETCH" in os.environ:
    CELERY_WORKER_PREFETCH_MULTIPLIER = int(os.environ["SHOP_PREFETCH"])

if "SHOP_WRONG_SETTING" in os.environ:
    CELERY_GUARDRAILS_LEASE_SECONDS = -1
