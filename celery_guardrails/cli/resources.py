"""``guardrails resources``: what tasks share, how it is, and an operator's hand on its breaker."""

from __future__ import annotations

from typing import Any

import click

from ..dead_letters.filters import parse_span
from ..dead_letters.render import moment, printable, table
from ..policy.breaker import Condition
from ..policy.resource import ResourceView
from .base import Command, echo_array, echo_json, json_option, options_of, rails

__all__ = ["resources"]


def view_data(view: ResourceView) -> dict[str, Any]:
    """Return a resource as values of JSON types; ``wait`` is seconds, times are ISO 8601."""
    return {
        **vars(view),
        "condition": view.condition.value,
        "since": moment(view.since or None),
        "until": moment(view.until or None),
        "calls": round(view.calls, 1),
        "failures": round(view.failures, 1),
        "budget": None if view.budget is None else round(view.budget, 1),
        "free": None if view.free is None else round(view.free, 1),
        "wait": round(view.wait, 3),
    }


def _row(view: ResourceView) -> tuple[object, ...]:
    condition = view.condition.value + (" (forced)" if view.forced else ", probing" if view.probing else "")
    return (
        view.name,
        condition,
        moment(view.until) if view.forced or view.condition is Condition.OPEN else "-",
        f"{view.failures:.0f} of {view.calls:.0f}",
        "-" if view.budget is None else f"{view.budget:.1f}",
        view.running if view.max_concurrency is None else f"{view.running} of {view.max_concurrency}",
        "-" if view.free is None else f"{max(0.0, view.free):.0f}",
        f"{view.wait:.1f} s, {view.why}" if view.why else "-",
    )


@click.group("resources", invoke_without_command=True)
@json_option
@click.pass_context
def resources(ctx: click.Context, as_json: bool) -> None:
    """What tasks share and none may overrun: breakers, retry budgets, slots and rates of the whole fleet.

    Without a further command: `list`.
    """
    if ctx.invoked_subcommand is None:
        group = ctx.command
        assert isinstance(group, click.Group)
        listing = group.commands["list"]
        with listing.make_context("list", ["--json"] if as_json else [], parent=ctx) as inner:
            listing.invoke(inner)


@resources.command("list", cls=Command)
@json_option
def list_resources(as_json: bool) -> None:
    """List the declared resources as they stand now: breaker, failures in its window, retries left, slots taken."""
    views = rails().resources()
    if as_json:
        echo_array(view_data(view) for view in views)
        return
    if not views:
        click.echo("no resource is declared: guardrails.resource(name, ...) beside Guardrails(app)", err=True)
        return
    for line in table(("RESOURCE", "BREAKER", "UNTIL", "FAILED", "RETRIES", "RUNNING", "RATE", "WAIT"), map(_row, views)):
        click.echo(line)


_forcing = options_of(
    click.argument("name"),
    click.option("--for", "span", metavar="TIME", default="1h", show_default=True, help="For so long: 30s, 15m, 2h, 1d."),
    json_option,
)


def _force(name: str, condition: str | None, span: str, as_json: bool) -> None:
    guard = rails()
    guard.force(name, condition, parse_span("for", span))
    (view,) = (found for found in guard.resources() if found.name == name)
    if as_json:
        echo_json(view_data(view))
    elif condition is None:
        click.echo(f"{printable(name)} is left to itself: {view.condition.value}")
    else:
        click.echo(f"{printable(name)} is {condition} until {moment(view.until)}")


@resources.command("open", cls=Command)
@_forcing
def force_open(name: str, span: str, as_json: bool) -> None:
    """Let nobody call the resource for a time: its tasks wait in the broker and lose no attempt."""
    _force(name, Condition.OPEN.value, span, as_json)


@resources.command("close", cls=Command)
@_forcing
def force_closed(name: str, span: str, as_json: bool) -> None:
    """Let everybody call the resource for a time, whatever its breaker says."""
    _force(name, Condition.CLOSED.value, span, as_json)


@resources.command("auto", cls=Command)
@click.argument("name")
@json_option
def auto(name: str, as_json: bool) -> None:
    """Leave the breaker of the resource to itself again."""
    _force(name, None, "1s", as_json)
