"""``manage.py replay_dead_letters …``: what ``celery -A proj guardrails dead-letters replay …`` does."""

from __future__ import annotations

import click

from celery_guardrails.contrib.django.click_command import ClickCommand


class Command(ClickCommand):
    """Replay."""

    help = "Put dead letters back into their queues."

    def click_command(self, group: click.Group) -> click.Command:
        """Return the command ``dead-letters replay``."""
        found = group.commands["dead-letters"]
        assert isinstance(found, click.Group)
        return found.commands["replay"]
