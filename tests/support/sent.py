"""What an app would publish, kept instead of sent."""

from __future__ import annotations

from typing import Any

from celery_guardrails.policy.delivery import TRAVEL_HEADER

__all__ = ["Sent"]


class Sent(list[dict[str, Any]]):
    """The arguments of each ``send_task``, by name."""

    @property
    def keys(self) -> list[Any]:
        """Idempotency keys, as they travel."""
        return [one["headers"][TRAVEL_HEADER].get("key") for one in self]
