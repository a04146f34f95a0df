"""What runs beside the tasks in the worker's main process; one file a step."""

from __future__ import annotations

from typing import Any

__all__ = ["install_steps"]


def install_steps(app: Any) -> None:
    """Add the steps to an app's worker; nothing starts before the worker does."""
    from .bad_messages import BadMessages
    from .delayed import DelayedPump
    from .drain import Drain
    from .renewal import Renewal
    from .topology import DeadLetterTopology

    app.steps["worker"].add(Drain)
    app.steps["consumer"].update((DeadLetterTopology, BadMessages, Renewal, DelayedPump))
