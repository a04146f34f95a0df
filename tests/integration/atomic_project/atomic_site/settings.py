"""Settings; what a test chooses comes from the environment."""

from __future__ import annotations

import json
import os

DATABASES = json.loads(os.environ["ATOMIC_DATABASES"])
if any(database["ENGINE"].endswith("mysql") for database in DATABASES.values()):
    import pymysql

    pymysql.install_as_MySQLdb()

SECRET_KEY = "not secret"
USE_TZ = True
INSTALLED_APPS = ["effects", "celery_guardrails.contrib.django"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASE_ROUTERS = ["effects.router.Router"]

CELERY_BROKER_URL = os.environ.get("ATOMIC_BROKER_URL", "memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_RESULT_BACKEND = os.environ.get("ATOMIC_RESULT_BACKEND")
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("ATOMIC_QUEUE", "celery")
CELERY_GUARDRAILS_MAX_CRASHES = 1000
for name, value in json.loads(os.environ.get("ATOMIC_SETTINGS", "{}")).items():
    globals()[f"CELERY_{name.upper()}"] = value
