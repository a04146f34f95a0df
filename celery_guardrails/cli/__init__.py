"""``celery -A proj guardrails …``: one click group, whose commands Django's and Flask's command lines run as well.

Exit codes: 0 everything was done, 1 something failed or was not found, 2 the command line or the configuration is wrong.

Celery imports this with every command of its own, and so with every worker: what the commands need is imported when one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["commands", "guardrails"]


class _Later(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        return _tree().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one of them."""
        return _tree().get_command(ctx, cmd_name)


@click.group("guardrails", cls=_Later)
def guardrails(**_preload_options: Any) -> None:
    """Where every task is and what is wrong; dead letters, idempotency keys, resources, and what becomes of an error."""


def commands(get_app: Callable[[], Any], *, name: str = "guardrails") -> click.Group:
    """Return the whole group for another command line.

    Args:
        get_app: returns the Celery app, called when a command runs.
        name: of the group.
    """
    from .tree import bound

    group = bound(_tree(), get_app)
    group.name = name
    return group


def _tree() -> click.Group:
    from .tree import tree

    return tree
