"""``guardrails overruns``: asks the workers which tasks run beyond their limit, and where they are."""

from __future__ import annotations

from typing import Any

import click

from ..dead_letters.render import table
from .base import Command, echo_array, json_option, rails

__all__ = ["overruns"]


@click.command("overruns", cls=Command)
@click.option("--timeout", metavar="SECONDS", type=float, default=2.0, show_default=True, help="Wait so long for the workers' answers.")
@json_option
def overruns(timeout: float, as_json: bool) -> None:
    """List the tasks that run beyond their time limit where nothing ends them; exit code 1 where no worker answers.

    A worker of the solo pool answers when its task has ended.
    """
    replies: list[dict[str, Any]] = rails().app.control.broadcast("guardrails_overruns", reply=True, timeout=timeout) or []
    found = [{"worker": node, **task} for reply in replies for node, tasks in reply.items() if isinstance(tasks, list) for task in tasks]
    if as_json:
        echo_array(found)
    elif found:
        rows = [(t["worker"], t["name"], t["id"], t["key"], f"{t['seconds']:.0f} s", f"{t['limit']:g} s", t["where"]) for t in found]
        for line in table(("WORKER", "TASK", "ID", "KEY", "RUNS", "LIMIT", "WHERE"), iter(rows)):
            click.echo(line)
    elif replies:
        click.echo("no task runs beyond its limit", err=True)
    if not replies:
        click.echo("no worker has answered", err=True)
        click.get_current_context().exit(1)
