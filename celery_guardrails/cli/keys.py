"""``guardrails lookup``, ``forget``, ``leases`` and ``break``: idempotency keys and who holds them."""

from __future__ import annotations

from typing import Any

import click

from ..dead_letters.render import fields_text, lease_data, moment, printable, progress_data, record_data, shown, table
from ..errors import GuardrailsConfigError, StoreUnavailable
from ..policy.lease import RecordState
from .base import Command, ask, echo_array, echo_json, json_option, rails

__all__ = ["break_lease", "forget", "leases", "lookup", "progress_of_key"]


def progress_of_key(key: str | None) -> dict[str, Any]:
    """Return how far the loops of a key have come; nothing where there are none, or the store does not answer."""
    try:
        record = rails().lookup(key) if key else None
    except (StoreUnavailable, GuardrailsConfigError):
        return {}
    return {} if record is None else progress_data(record)


@click.command("lookup", cls=Command)
@click.argument("key")
@json_option
def lookup(key: str, as_json: bool) -> None:
    """Show what the store remembers of an idempotency key; exit code 1 where it remembers nothing.

    Of a task that loops with resume() it shows how far that is: cursor, items handled, when that was saved, and how many runs
    in a row have got no further.
    """
    record = rails().lookup(key)
    data = None if record is None else record_data(key, record)
    if as_json:
        echo_json(data)
    elif data is None:
        click.echo(f"there is no record of {printable(key)}", err=True)
    else:
        for line in fields_text(data):
            click.echo(line)
    if data is None:
        click.get_current_context().exit(1)


@click.command("forget", cls=Command)
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask, even if a task holds the key right now.")
@json_option
def forget(key: str, yes: bool, as_json: bool) -> None:
    """Let a completed idempotency key run again; exit code 1 where there was no record."""
    guard = rails()
    record = guard.lookup(key)
    if record is not None and record.state is RecordState.LEASED and not yes:
        holder = printable(record.owner or record.holder)
        ask(f"{printable(key)} is running now ({holder}): forgetting it lets a second one start. Forget it?")
    known = guard.forget(key)
    if as_json:
        echo_json({"key": key, "forgotten": known})
    else:
        click.echo(f"forgot {printable(key)}" if known else f"there is no record of {printable(key)}", err=not known)
    if not known:
        click.get_current_context().exit(1)


@click.command("leases", cls=Command)
@click.option("--older", metavar="SECONDS", type=float, default=0.0, help="Only those that were claimed at least so long ago.")
@json_option
def leases(older: float, as_json: bool) -> None:
    """List the idempotency keys that are held right now: by whom, since when, until when.

    It looks at the whole store in small steps and changes nothing. A lease whose end is past belongs to a worker that died,
    or was cut off: the next delivery of its message takes it over.
    """
    guard = rails()
    now = guard.store.now()
    found = (lease_data(key, record, now) for key, record in guard.leases() if now - record.claimed_at >= older)
    if as_json:
        echo_array(found)
        return
    rows = [
        (
            data["key"],
            data["owner"] or data["holder"],
            moment(data["claimed_at"]),
            f"{data['age']:.0f} s",
            f"{data['left']:.0f} s" if data["left"] > 0 else "over",
            data["fence"],
            data["attempts"],
            data["crashes"],
            shown(data.get("cursor")),
        )
        for data in sorted(found, key=lambda data: -data["age"])
    ]
    if not rows:
        click.echo("no key is held", err=True)
        return
    for line in table(("KEY", "HELD BY", "SINCE", "AGE", "LEFT", "FENCE", "ATTEMPTS", "CRASHES", "CURSOR"), iter(rows)):
        click.echo(line)


@click.command("break", cls=Command)
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def break_lease(key: str, yes: bool, as_json: bool) -> None:
    """Take the lease of a key from its holder, so that the next delivery runs at once; exit code 1 where nobody holds it.

    For a lease that is stuck. A holder that is alive goes on beside its successor until it looks, and then can no
    longer complete the key: kill it first if you can. Nothing is charged, and the fencing token rises.
    """
    guard = rails()
    record = guard.lookup(key)
    if record is not None and record.state is RecordState.LEASED and not yes:
        left = record.until - guard.store.now()
        alive = f"renewed until {left:.0f} s from now, so its worker seems alive" if left > 0 else f"over since {-left:.0f} s"
        ask(f"{printable(key)} is held by {printable(record.owner or record.holder)}, {alive}. Take the lease away?")
    before = guard.break_lease(key)
    if as_json:
        echo_json({"key": key, "broken": before is not None, "record": None if before is None else record_data(key, before)})
    elif before is None:
        click.echo(f"nobody holds {printable(key)}", err=True)
    else:
        click.echo(f"took {printable(key)} from {printable(before.owner or before.holder)}")
    if before is None:
        click.get_current_context().exit(1)
