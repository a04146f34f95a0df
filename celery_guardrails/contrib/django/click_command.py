"""A management command that is one of the CLI's own click commands."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError, CommandParser

from celery_guardrails.cli import commands
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.integration.app import ensure_guardrails

from .apps import celery_app

__all__ = ["ClickCommand", "project_app"]

#: Options that Django itself gives every command, and whether a value follows.
_DJANGO_OPTIONS = {
    "--settings": True,
    "--pythonpath": True,
    "--verbosity": True,
    "-v": True,
    "--traceback": False,
    "--no-color": False,
    "--force-color": False,
    "--skip-checks": False,
}


class ClickCommand(BaseCommand):
    """Passes its arguments on to a click command; ``--help`` and exit codes are click's."""

    #: In an incident a failed check of some other app must not be in the way of a replay.
    requires_system_checks: Sequence[str] = []
    _prog_name: str | None = None

    def click_command(self, group: click.Group) -> click.Command:
        """Return the command of this name."""
        raise NotImplementedError

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Return a parser that takes Django's own options, wherever they stand, and leaves everything else to click."""
        self._prog_name = f"{os.path.basename(prog_name)} {subcommand}"
        parser = super().create_parser(prog_name, subcommand, add_help=False, allow_abbrev=False, **kwargs)
        parse_djangos = parser.parse_args

        def parse_args(args: Sequence[str], namespace: Any = None) -> Any:
            djangos, clicks = _divided(args)
            parsed = parse_djangos(djangos, namespace)
            parsed.args = clicks
            return parsed

        parser.parse_args = parse_args
        return parser

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Show click's help, for ``manage.py help …``."""
        self._run(["--help"], prog_name=f"{os.path.basename(prog_name)} {subcommand}")

    def handle(self, *args: str, **options: Any) -> None:
        """Run the click command."""
        out, err = options.get("stdout") or sys.stdout, options.get("stderr") or sys.stderr
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = self._run(list(args), prog_name=self._prog_name, color=_color(options))
        if code and self._called_from_command_line:
            sys.exit(code)
        if code:
            raise CommandError(f"exit code {code}", returncode=code)

    def _run(self, args: list[str], **options: Any) -> int:
        try:
            self.click_command(commands(project_app)).main(args, **options)
        except SystemExit as exc:
            return exc.code if isinstance(exc.code, int) else int(bool(exc.code))
        return 0


def project_app() -> Any:
    """Return the project's Celery app, with its guardrails.

    Raises:
        GuardrailsConfigError: there is none.
    """
    app = celery_app()
    if app is None:
        raise GuardrailsConfigError(
            "no Celery app was found: import it in the __init__.py of the project's package (from .celery import app as celery_app)"
        )
    ensure_guardrails(app)
    return app


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return Django's own options and the others."""
    djangos: list[str] = []
    clicks: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return djangos, [*clicks, argument, *waiting]
        name, separator, _ = argument.partition("=")
        if name not in _DJANGO_OPTIONS:
            clicks.append(argument)
            continue
        djangos.append(argument)
        if _DJANGO_OPTIONS[name] and not separator and waiting:
            djangos.append(waiting.pop(0))
    return djangos, clicks


def _color(options: dict[str, Any]) -> bool | None:
    if options.get("no_color"):
        return False
    return True if options.get("force_color") else None
