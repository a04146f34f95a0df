"""``manage.py guardrails …``: what ``celery -A proj guardrails …`` does."""

from __future__ import annotations

import click

from celery_guardrails.contrib.django.click_command import ClickCommand


class Command(ClickCommand):
    """The whole group."""

    help = "Dead letters and idempotency keys."

    def click_command(self, group: click.Group) -> click.Command:
        """Return the group."""
        return group
