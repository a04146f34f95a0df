"""``guardrails audit``: is every task waiting, delayed, running, completed or dead?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from ..audit.render import audit_data, audit_lines
from ..errors import GuardrailsConfigError
from .base import Command, echo_json, json_option, rails

__all__ = ["audit"]


@click.command("audit", cls=Command)
@click.option(
    "--keys",
    "file",
    metavar="FILE",
    type=click.File("r", encoding="utf-8"),
    help="Idempotency keys or task ids that were published, one a line; - for standard input. Each gets its state.",
)
@click.option("--each", is_flag=True, help="List the state of each of them, not only what is odd.")
@click.option("--queue", "queues", metavar="NAME", multiple=True, help="A task queue that the app does not name (a worker's -Q), too.")
@click.option("--limit", metavar="N", type=int, default=10_000, show_default=True, help="Look through no queue that has more messages.")
@click.option("--wait", metavar="SECONDS", type=float, default=10.0, show_default=True, help="Look for what is nowhere for so long.")
@click.option("--quorum", is_flag=True, help="Look through quorum queues of tasks, too: each look counts as a delivery there.")
@json_option
def audit(file: Any, each: bool, queues: tuple[str, ...], limit: int, wait: float, quorum: bool, as_json: bool) -> None:
    """Count what is waiting, delayed, running, completed and dead, and find what contradicts itself.

    With --keys: say of each published task which of these it is, or that it is nowhere. Tasks go on meanwhile; what is nowhere is
    looked for again. Queues of RabbitMQ are held for the moment in which they are looked through.

    Exit codes: 0 all is accounted for, 1 something contradicts itself or is nowhere, or broker or store did not answer, 2 bad usage.
    """
    if each and file is None:
        raise GuardrailsConfigError("--each: only together with --keys is allowed")
    names = None if file is None else _names(file)
    found = rails().audit(names, limit=limit, wait=wait, quorum=quorum, queues=queues)
    if as_json:
        echo_json(audit_data(found))
    else:
        for line in audit_lines(found, each=each):
            click.echo(line)
    if not found.conserved:
        click.get_current_context().exit(1)


def _names(lines: Iterable[str]) -> list[str]:
    try:
        names = [line.rstrip("\r\n") for line in lines]
    except UnicodeDecodeError as exc:
        raise GuardrailsConfigError(f"--keys: UTF-8 is allowed, one key a line: {exc}") from exc
    names = [name for name in names if name.strip()]
    if not names:
        raise GuardrailsConfigError("--keys: there is no key in it")
    return names
