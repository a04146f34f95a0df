"""Every command, and the group as another command line has it."""

from __future__ import annotations

import copy
from typing import TypeVar

import click

from . import archiving, guardrails, keys, letter_files
from .alerts import alert_test
from .audit import audit
from .base import Command, GetApp
from .classify import classify
from .doctor import doctor
from .letters import dead_letters
from .overruns import overruns
from .reproduce import reproduce
from .resources import resources

__all__ = ["bound", "tree"]

_C = TypeVar("_C", bound=click.Command)


tree = click.Group(guardrails.name, help=guardrails.help)

for _letter_command in (archiving.archive, archiving.restore, archiving.trail, letter_files.export, letter_files.import_, reproduce):
    dead_letters.add_command(_letter_command)
_KEYS = (keys.lookup, keys.forget, keys.leases, keys.break_lease)
for _command in (audit, doctor, dead_letters, *_KEYS, overruns, resources, classify, alert_test):
    tree.add_command(_command)


def bound(command: _C, get_app: GetApp) -> _C:
    """Return a copy of a command, and of all below it, that takes its app from there."""
    mine = copy.copy(command)
    if isinstance(mine, click.Group):
        mine.commands = {name: bound(child, get_app) for name, child in mine.commands.items()}
    elif isinstance(mine, Command):
        mine.get_app = get_app
    return mine
