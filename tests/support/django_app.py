"""The guard's Django app without what it does to Celery."""

from __future__ import annotations

from celery_guardrails.contrib.django.apps import GuardrailsConfig


class QuietConfig(GuardrailsConfig):
    """Brings the models only."""

    def ready(self) -> None:
        """Attach nothing."""
