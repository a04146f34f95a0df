"""``manage.py archive_dead_letters``: moves the dead letter queues into the database."""

from __future__ import annotations

import getpass
from typing import Any

import click

from celery_guardrails.cli.base import Command as Click
from celery_guardrails.cli.base import echo_json, json_option, rails
from celery_guardrails.contrib.django.click_command import ClickCommand, project_app
from celery_guardrails.dead_letters.render import letters_text, printable


@click.command("archive_dead_letters", cls=Click)
@click.option("--queue", "queues", metavar="NAME", multiple=True, help="Only this task queue's; may be given again. Default: all.")
@click.option("--batch", metavar="N", type=int, default=500, show_default=True, help="Letters in one transaction.")
@click.option("--keep-days", metavar="N", type=float, help="Afterwards delete what was replayed or discarded and archived longer ago.")
@click.option("--keep-count", metavar="N", type=int, help="Afterwards keep so many of those at most, the ones archived last.")
@click.option("--purge-waiting", is_flag=True, help="Retention deletes letters that wait, too.")
@click.option("--dry-run", is_flag=True, help="Move and delete nothing, only say what would be done.")
@json_option
def archive(
    queues: tuple[str, ...],
    batch: int,
    keep_days: float | None,
    keep_count: int | None,
    purge_waiting: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move dead letters out of the broker into the database, where the admin shows them.

    A batch is inserted in one transaction and then taken out of the broker. A run that is killed is simply run
    again: no letter is lost, none gets two rows. Any number of runs may go on at once.

    Exit codes: 0 done, 1 some failed, 2 bad usage.
    """
    from celery_guardrails.contrib.django.archiving import run_archive

    report = run_archive(
        rails(),
        queues=queues,
        batch=batch,
        keep_days=keep_days,
        keep_count=keep_count,
        purge_waiting=purge_waiting,
        dry_run=dry_run,
        who=_who(),
    )
    if as_json:
        echo_json({**report.__dict__, "failures": [failure.__dict__ for failure in report.failures]})
    else:
        would = "would " if dry_run else ""
        click.echo(f"{would}archive{'' if dry_run else 'd'} {letters_text(report.archived)}")
        for queue, number in sorted(report.queues.items()):
            if number:
                click.echo(f"  from {printable(queue)}: {number}")
        if report.elsewhere:
            click.echo(
                f"somebody else took {letters_text(report.elsewhere)} out of the queue meanwhile; they wait in the table with a note"
            )
        if report.purged:
            click.echo(f"{would}delete{'' if dry_run else 'd'} {letters_text(report.purged)} from the table")
        for failure in report.failures:
            click.echo(f"failed {failure.id}: {printable(failure.why)}", err=True)
        if report.failed > len(report.failures):
            click.echo(f"… and {report.failed - len(report.failures)} more", err=True)
        if report.stopped:
            click.echo(f"stopped before the last letter: {printable(report.stopped)}; run it again to go on", err=True)
    if not report.clean:
        click.get_current_context().exit(1)


archive.get_app = project_app


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "archive_dead_letters"


class Command(ClickCommand):
    """Archive."""

    help = "Move dead letters out of the broker into the database."

    def click_command(self, group: Any) -> click.Command:
        """Return the command; it is Django's alone."""
        return archive
