"""``guardrails dead-letters``: what died."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from ..dead_letters.archive import Everywhere
from ..dead_letters.filters import Filter
from ..dead_letters.pace import parse_rate
from ..dead_letters.render import (
    failure_lines,
    fields_text,
    group_data,
    letter_data,
    letter_text,
    letters_text,
    moment,
    printable,
    replay_lines,
    report_data,
    table,
)
from ..dead_letters.reports import DiscardReport, OnProgress, Progress, ReplayReport
from ..errors import GuardrailsConfigError
from .base import Command, ask, echo_array, echo_json, json_option
from .keys import progress_of_key
from .letter_options import acting_options, dry_run_option, filter_options, ids_argument, place_options, service_of, state_option
from .replaying import Speed, chosen_edit, edit_options, stop_between_letters

if TYPE_CHECKING:
    from ..dead_letters.service import DeadLetters

__all__ = ["dead_letters"]


# -- commands -----------------------------------------------------------------------------------------------------


@click.group("dead-letters")
def dead_letters() -> None:
    """List, group, show, replay, discard, restore, archive, export and import what died.

    Where there is an archive, they work on the letters in the dead letter queues and on those that were archived.

    Exit codes: 0 done, 1 some failed, 2 bad usage.
    """


@dead_letters.command("list", cls=Command)
@filter_options
@place_options
@state_option
@json_option
def list_(as_json: bool, queued: bool, archived: bool, state: str, **options: Any) -> None:
    """List dead letters, the oldest of each queue first, and say where each lies."""
    service = service_of(queued=queued, archived=archived, state=state)
    letters = service.list(Filter.parse(now=service.now(), **options))
    if as_json:
        echo_array(letter_data(letter) for letter in letters)
        return
    rows = (
        (
            letter.id,
            moment(letter.died_at),
            letter.place if letter.state == "waiting" else f"{letter.place}, {letter.state}",
            letter.queue,
            letter.reason,
            letter.task,
            letter.replays,
            letter.key,
            f"{letter.certificate.error}: {letter.shown_message}".strip(": ").partition("\n")[0],
        )
        for letter in letters
    )
    _echo_table(("ID", "DIED", "IN", "QUEUE", "REASON", "TASK", "REPLAYS", "KEY", "ERROR"), rows, service, options)


@dead_letters.command("groups", cls=Command)
@filter_options
@place_options
@state_option
@json_option
def groups(as_json: bool, queued: bool, archived: bool, state: str, **options: Any) -> None:
    """Show dead letters in groups of one reason and one error, the largest first."""
    service = service_of(queued=queued, archived=archived, state=state)
    found = service.groups(Filter.parse(now=service.now(), **options))
    if as_json:
        echo_array(group_data(group) for group in found)
        return
    rows = (
        (
            group.count,
            group.reason,
            group.fingerprint,
            moment(group.first_seen),
            moment(group.last_seen),
            ", ".join(task or "?" for task in group.tasks),
            group.sample,
            f"{group.error}: {group.message}".strip(": ").partition("\n")[0],
        )
        for group in found
    )
    _echo_table(("COUNT", "REASON", "FINGERPRINT", "FIRST", "LAST", "TASKS", "SAMPLE", "ERROR"), rows, service, options)


@dead_letters.command("show", cls=Command)
@click.argument("identifier", metavar="ID")
@place_options
@json_option
def show(identifier: str, queued: bool, archived: bool, as_json: bool) -> None:
    """Show one dead letter, by its identifier or its whole task id: arguments, error, traceback, headers, where it lies.

    Of a task that loops with resume() also how far it has come: a replay goes on there.
    """
    letter = service_of(queued=queued, archived=archived).show(identifier)
    progress = progress_of_key(letter.key)
    if as_json:
        echo_json({**letter_data(letter, full=True), **({"progress": progress} if progress else {})})
        return
    for line in letter_text(letter):
        click.echo(line)
    if progress:
        click.echo("\nits loop, where a replay goes on:")
        for line in fields_text(progress):
            click.echo(line)


@dead_letters.command("replay", cls=Command)
@ids_argument
@filter_options
@place_options
@dry_run_option
@click.option("--rate", metavar="N/s", help="So many at most, evenly spaced: 10/s, 600/m, 2000/h.")
@click.option("--to-queue", metavar="NAME", help="Put them into this queue instead of the one they came from.")
@click.option("--max-replays", metavar="N", type=int, default=3, show_default=True, help="Skip what has been replayed so often before.")
@click.option("--canary", is_flag=True, help="First one letter, then 1 %, then all; stop when they die again.")
@click.option("--canary-wait", metavar="SECONDS", type=float, help="Watch the canaries so long at most: 30 unless told.")
@edit_options
@acting_options
@json_option
def replay(
    ids: tuple[str, ...],
    queued: bool,
    archived: bool,
    by: str | None,
    why: str,
    dry_run: bool,
    rate: str | None,
    to_queue: str | None,
    max_replays: int,
    canary: bool,
    canary_wait: float | None,
    edit: bool,
    sets: tuple[str, ...],
    args_text: str | None,
    kwargs_text: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Put dead letters back into their queues: the same task id and key, fresh attempts.

    Without IDs and options: all. A key that completed meanwhile is not run again. Letters that nobody could
    read (undecodable, invalid, no task message at all) are skipped unless asked for by ID or --reason. Each is
    published with a confirm before it is removed: after a crash, just run it again. Ctrl-C ends it behind the
    letter in hand.
    """
    if canary_wait is not None and not canary:
        raise GuardrailsConfigError("--canary-wait: only together with --canary is allowed")
    service = service_of(queued=queued, archived=archived, by=by, why=why)
    where, pace = Filter.parse(now=service.now(), **options), parse_rate(rate)
    change = chosen_edit(service, ids, edit=edit, sets=sets, args_text=args_text, kwargs_text=kwargs_text, force=force)
    with _progress_bar("replaying", hidden=as_json or dry_run) as on_progress, stop_between_letters() as should_stop:
        report = service.replay(
            where,
            ids=ids,
            dry_run=dry_run,
            rate=pace,
            to_queue=to_queue,
            max_replays=max_replays,
            on_progress=on_progress,
            canary=canary,
            canary_wait=30.0 if canary_wait is None else canary_wait,
            edit=change,
            should_stop=should_stop,
        )
    if as_json:
        echo_json(report_data(report))
    else:
        for line in replay_lines(report, max_replays):
            click.echo(line)
        _echo_failures(report)
    _leave(report)


@dead_letters.command("discard", cls=Command)
@ids_argument
@filter_options
@place_options
@dry_run_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@acting_options
@json_option
def discard(
    ids: tuple[str, ...],
    queued: bool,
    archived: bool,
    dry_run: bool,
    yes: bool,
    by: str | None,
    why: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Set dead letters aside, after asking. Without IDs and options: all of them.

    Where there is an archive, they go there, and `restore` takes it back. Without one they are removed for good.
    """
    service = service_of(queued=queued, archived=archived, by=by, why=why, needs_archive=True)
    where, soft = Filter.parse(now=service.now(), **options), isinstance(service, Everywhere)
    if not (yes or dry_run):
        number = service.discard(where, ids=ids, dry_run=True).total
        if number:
            ask(f"Discard {letters_text(number)}{'' if soft else ' for good'}?")
    with _progress_bar("discarding", hidden=as_json or dry_run) as on_progress, stop_between_letters() as should_stop:
        report = service.discard(where, ids=ids, dry_run=dry_run, on_progress=on_progress, should_stop=should_stop)
    if as_json:
        echo_json(report_data(report))
    else:
        click.echo(f"{'would discard' if dry_run else 'discarded'} {report.discarded} of {letters_text(report.total)}")
        if soft and report.discarded and not dry_run:
            click.echo("  `restore` takes it back until retention deletes them")
        _echo_failures(report)
    _leave(report)


# -- output -------------------------------------------------------------------------------------------------------


def _echo_table(
    titles: tuple[str, ...], rows: Iterator[tuple[Any, ...]], service: DeadLetters | Everywhere, options: Mapping[str, Any]
) -> None:
    first = next(rows, None)
    if first is None:
        looked = ", ".join(map(printable, service.queues(options["queue"]).values()))
        both = " or in the archive" if isinstance(service, Everywhere) else ""
        click.echo(f"no dead letters{' that match' if any(options.values()) else ''} in {looked}{both}", err=True)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(titles, chain([first], rows), width=width):
        click.echo(line)


def _echo_failures(report: ReplayReport | DiscardReport) -> None:
    for line in failure_lines(report):
        click.echo(line, err=True)


def _leave(report: ReplayReport | DiscardReport) -> None:
    if not report.clean:
        click.get_current_context().exit(1)


@contextmanager
def _progress_bar(label: str, *, hidden: bool) -> Iterator[OnProgress | None]:
    """Show a bar on a terminal, and say how far it came when it is interrupted."""
    last, drawn, bar, due = Progress(0, 0, 0, 0, 0), 0, None, 0.0
    speed = Speed()

    def draw() -> None:
        nonlocal drawn, due
        if bar is not None:
            now = time.monotonic()
            bar.update(last.looked_at - drawn, speed.text(now, last.looked_at, last.total))
            drawn, due = last.looked_at, now + 0.1

    def on_progress(progress: Progress) -> None:
        nonlocal last, bar
        last = progress
        if bar is None and not hidden and sys.stderr.isatty():
            bar = click.progressbar(
                length=progress.total, label=label, file=sys.stderr, show_pos=True, show_eta=False, item_show_func=lambda text: text
            ).__enter__()
        if time.monotonic() >= due:
            draw()

    try:
        yield on_progress
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted: {last.done} done, {last.skipped} skipped, {last.failed} failed; run it again to go on", err=True)
        raise
    finally:
        if bar is not None:
            draw()
            bar.__exit__(None, None, None)
