"""``celery -A proj guardrails …``: one click group, whose commands Django's and Flask's command lines run as well.

Exit codes: 0 everything was done, 1 something failed or was not found, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import click

from . import archiving, keys, letter_files
from .alerts import alert_test
from .base import Command, GetApp
from .classify import classify
from .letters import dead_letters
from .overruns import overruns
from .reproduce import reproduce
from .resources import resources

__all__ = ["GetApp", "commands", "guardrails"]

_C = TypeVar("_C", bound=click.Command)


@click.group("guardrails")
def guardrails(**_preload_options: Any) -> None:
    """Dead letters, idempotency keys, resources, and what becomes of an error."""


for _letter_command in (archiving.archive, archiving.restore, archiving.trail, letter_files.export, letter_files.import_, reproduce):
    dead_letters.add_command(_letter_command)
for _command in (dead_letters, keys.lookup, keys.forget, keys.leases, keys.break_lease, overruns, resources, classify, alert_test):
    guardrails.add_command(_command)


def commands(get_app: GetApp, *, name: str = "guardrails") -> click.Group:
    """Return the whole group for another command line.

    Args:
        get_app: returns the Celery app, called when a command runs.
        name: of the group.
    """
    group = _bound(guardrails, get_app)
    group.name = name
    return group


def _bound(command: _C, get_app: GetApp) -> _C:
    bound = copy.copy(command)
    if isinstance(bound, click.Group):
        bound.commands = {name: _bound(child, get_app) for name, child in bound.commands.items()}
    elif isinstance(bound, Command):
        bound.get_app = get_app
    return bound
