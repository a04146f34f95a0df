"""``guardrails alert-test``: do the alerts arrive?"""

from __future__ import annotations

import click

from ..dead_letters.render import printable
from .base import Command, echo_json, json_option, rails

__all__ = ["alert_test"]


@click.command("alert-test", cls=Command)
@json_option
@click.pass_context
def alert_test(ctx: click.Context, as_json: bool) -> None:
    """Send a test message through each alert and say what came back; exit code 1 when one failed."""
    tried = []
    for one in rails().alerts.test():
        tried.append(one)
        if not as_json:
            click.echo(f"{'ok' if one.ok else 'FAILED'}: {printable(one.channel)}: {printable(one.answer)}")
    if as_json:
        echo_json([vars(one) for one in tried])
    if not all(one.ok for one in tried):
        ctx.exit(1)
