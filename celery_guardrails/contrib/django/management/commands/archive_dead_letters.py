"""``manage.py archive_dead_letters …``: what ``celery -A proj guardrails dead-letters archive …`` does."""

from __future__ import annotations

import click

from celery_guardrails.contrib.django.click_command import ClickCommand


class Command(ClickCommand):
    """Archive."""

    help = "Move dead letters out of the broker into the database."

    def click_command(self, group: click.Group) -> click.Command:
        """Return the command ``dead-letters archive``."""
        found = group.commands["dead-letters"]
        assert isinstance(found, click.Group)
        return found.commands["archive"]
