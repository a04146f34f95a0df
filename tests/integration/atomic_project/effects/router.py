"""A router that sends everything it is asked about to the replica: what a store does must not go there."""

from __future__ import annotations

from typing import Any


class Router:
    """Reads from ``replica`` where the project has one."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """Return where to read."""
        from django.conf import settings

        return "replica" if "replica" in settings.DATABASES else None
