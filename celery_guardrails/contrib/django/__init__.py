"""Django: ``INSTALLED_APPS += ["celery_guardrails.contrib.django"]`` puts the guard on the project's Celery app."""
