"""``guardrails doctor``: what is wrong, why it loses or repeats tasks, and the line that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ..dead_letters.render import printable
from ..doctor import Diagnosis, Finding, Level
from .base import Command, echo_json, json_option, rails

__all__ = ["doctor"]

_NAMES = {Level.ERROR: ("error", "errors"), Level.WARNING: ("warning", "warnings"), Level.INFO: ("remark", "remarks")}
_COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow", Level.INFO: "cyan"}


@click.command("doctor", cls=Command)
@click.option("--offline", is_flag=True, help="Look at configuration and tasks only; connect to nothing.")
@click.option(
    "--management-url",
    metavar="URL",
    envvar="GUARDRAILS_MANAGEMENT_URL",
    help="RabbitMQ's management API, http://user:password@host:15672: policies cannot be seen without it.",
)
@click.option("--ignore", metavar="ID", multiple=True, help="Say nothing of these findings (W030); may be given several times.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, offline: bool, management_url: str | None, ignore: tuple[str, ...], as_json: bool) -> None:
    """Look at configuration, tasks, broker and store, and say for each finding what is wrong, why, and what mends it.

    It changes nothing. Exit code 0: nothing worse than warnings; 1: errors; 2: the configuration cannot be read.
    """
    diagnosis = rails().doctor(live=not offline, management_url=management_url, ignore=ignore)
    if as_json:
        echo_json(diagnosis_data(diagnosis))
    else:
        for finding in diagnosis.findings:
            _show(finding)
        click.echo("; ".join([_summary(diagnosis), *_looked_at(diagnosis, live=not offline)]))
    if not diagnosis.ok:
        ctx.exit(1)


def diagnosis_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as values of JSON types."""
    counts = {f"{level.value}s": diagnosis.count(level) for level in Level}
    return {"ok": diagnosis.ok, **counts, "findings": [{**vars(one), "level": one.level.value} for one in diagnosis.findings]}


def _show(finding: Finding) -> None:
    head = click.style(f"{finding.level.value.upper()} {finding.id}", fg=_COLOURS[finding.level], bold=True)
    click.echo(f"{head} {printable(finding.subject)}")
    for name in ("what", "why", "mend"):
        click.echo(f"  {name + ':':<5} {printable(getattr(finding, name))}")
    click.echo()


def _summary(diagnosis: Diagnosis) -> str:
    counted = [(diagnosis.count(level), *names) for level, names in _NAMES.items()]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counted)


def _looked_at(diagnosis: Diagnosis, *, live: bool) -> Iterator[str]:
    facts = diagnosis.facts
    yield f"looked at {len(facts.tasks)} tasks"
    if not live:
        yield "connected to nothing"
        return
    if facts.broker_error is None and facts.broker_unfit is None:
        yield f"broker {printable(facts.app.broker_url)}"
    if facts.store is not None and facts.store.error is None:
        yield f"store {printable(facts.store.url)}"
