"""``dead-letters archive``, ``restore`` and ``trail``: what only an archive can do."""

from __future__ import annotations

from typing import Any

import click

from ..dead_letters.filters import Filter
from ..dead_letters.render import letters_text, moment, printable, table
from ..errors import GuardrailsConfigError
from .base import Command, ask, echo_array, echo_json, json_option, rails
from .letter_options import NO_ARCHIVE, acting_options, dry_run_option, filter_options, ids_argument, with_archive

__all__ = ["archive", "restore", "trail"]


@click.command("restore", cls=Command)
@ids_argument
@filter_options
@dry_run_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@acting_options
@json_option
def restore(ids: tuple[str, ...], dry_run: bool, yes: bool, by: str | None, why: str, as_json: bool, **options: Any) -> None:
    """Let letters that were discarded wait again, in the archive, after asking. Without IDs and options: all of them."""
    service = with_archive(by=by, why=why)
    where = Filter.parse(now=service.now(), **options)
    if not (yes or dry_run or ids):
        number = service.restore(where, dry_run=True).total
        if number:
            ask(f"Restore {letters_text(number)}?")
    report = service.restore(where, ids=ids, dry_run=dry_run)
    if as_json:
        echo_json({**vars(report), "missing": list(report.missing)})
    else:
        click.echo(f"{'would restore' if dry_run else 'restored'} {letters_text(report.restored)}")
        for identifier in report.missing:
            click.echo(f"not found among the discarded: {printable(identifier)}", err=True)
    if not report.clean:
        click.get_current_context().exit(1)


@click.command("archive", cls=Command)
@click.option("--queue", "queues", metavar="NAME", multiple=True, help="Only this task queue's; may be given again. Default: all.")
@click.option("--batch", metavar="N", type=int, default=500, show_default=True, help="Letters in one transaction.")
@click.option("--keep-days", metavar="N", type=float, help="Afterwards delete what was replayed or discarded and archived longer ago.")
@click.option("--keep-count", metavar="N", type=int, help="Afterwards keep so many of those at most, the ones archived last.")
@click.option("--purge-waiting", is_flag=True, help="Retention deletes letters that wait, too.")
@click.option("--dry-run", is_flag=True, help="Move and delete nothing, only say what would be done.")
@click.option("--by", metavar="NAME", help="Who does it, for the audit trail; the user of this process unless told.")
@json_option
def archive(
    queues: tuple[str, ...],
    batch: int,
    keep_days: float | None,
    keep_count: int | None,
    purge_waiting: bool,
    dry_run: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """Move dead letters out of the broker into the database of the archive.

    A batch is inserted in one transaction and then taken out of the broker. A run that is killed is simply run
    again: no letter is lost, none gets two rows. Any number of runs may go on at once.

    Exit codes: 0 done, 1 some failed, 2 bad usage.
    """
    from ..dead_letters.archive import run_archive
    from ..dead_letters.archive.trail import os_user

    found = rails()
    if found.archive is None:
        raise GuardrailsConfigError(NO_ARCHIVE)
    report = run_archive(
        found,
        found.archive.table,
        queues=queues,
        batch=batch,
        keep_days=keep_days,
        keep_count=keep_count,
        purge_waiting=purge_waiting,
        dry_run=dry_run,
        who=by or os_user(),
    )
    if as_json:
        echo_json({**report.__dict__, "failures": [failure.__dict__ for failure in report.failures]})
    else:
        _tell(report)
    if not report.clean:
        click.get_current_context().exit(1)


@click.command("trail", cls=Command)
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=50, show_default=True, help="So many at most, the newest first.")
@json_option
def trail(limit: int, as_json: bool) -> None:
    """Show who did what to which letters, why, and how many there were before and after.

    An entry is written before anything is done: of a run that was killed it has no number after.
    """
    archive = rails().archive
    if archive is None:
        raise GuardrailsConfigError(NO_ARCHIVE)
    entries = archive.table.trail(limit)
    if as_json:
        echo_array({**vars(entry), "at": moment(entry.at)} for entry in entries)
        return
    if not entries:
        click.echo("nobody has done anything yet", err=True)
        return
    rows = (
        (moment(entry.at), entry.who, entry.action, entry.letters, entry.before, entry.after, entry.why, entry.selection)
        for entry in entries
    )
    for line in table(("AT", "WHO", "WHAT", "LETTERS", "BEFORE", "AFTER", "WHY", "WHICH"), rows):
        click.echo(line)


def _tell(report: Any) -> None:
    would, done = ("would ", "") if report.dry_run else ("", "d")
    click.echo(f"{would}archive{done} {letters_text(report.archived)}")
    for queue, number in sorted(report.queues.items()):
        if number:
            click.echo(f"  from {printable(queue)}: {number}")
    if report.elsewhere:
        click.echo(f"somebody else took {letters_text(report.elsewhere)} out of the queue meanwhile; they wait in the table with a note")
    if report.purged:
        click.echo(f"{would}delete{done} {letters_text(report.purged)} from the table")
    for failure in report.failures:
        click.echo(f"failed {failure.id}: {printable(failure.why)}", err=True)
    if report.failed > len(report.failures):
        click.echo(f"… and {report.failed - len(report.failures)} more", err=True)
    if report.stopped:
        click.echo(f"stopped before the last letter: {printable(report.stopped)}; run it again to go on", err=True)
