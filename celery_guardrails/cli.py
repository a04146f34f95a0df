"""``celery -A proj guardrails …``: one click group, whose commands Django's and Flask's command lines run as well.

Exit codes: 0 everything was done, 1 something failed or was not found, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .dead_letters.filters import Filter
from .dead_letters.pace import parse_rate
from .dead_letters.render import (
    failure_lines,
    fields_text,
    group_data,
    letter_data,
    letter_text,
    letters_text,
    moment,
    plain,
    printable,
    record_data,
    replay_lines,
    report_data,
    table,
)
from .dead_letters.reports import DiscardReport, OnProgress, Progress, ReplayReport
from .errors import GuardrailsConfigError, GuardrailsError
from .policy.deadletter import REASONS
from .policy.lease import RecordState

if TYPE_CHECKING:
    from .dead_letters.service import DeadLetters
    from .integration.app import Guardrails

__all__ = ["GetApp", "commands", "guardrails"]

#: Returns the Celery app that a command works on.
GetApp = Callable[[], Any]

_C = TypeVar("_C", bound=click.Command)
_F = TypeVar("_F", bound=Callable[..., Any])
_GET_APP = "celery_guardrails.get_app"
#: Libraries whose errors mean that a server does not answer, or not as hoped: one line instead of a traceback.
_SERVERS = ("amqp", "kombu", "redis", "sqlalchemy", "django")


class _Misconfigured(click.ClickException):
    exit_code = 2


class _Command(click.Command):
    """A command that knows how to get at the app, and turns errors into one line and an exit code."""

    get_app: GetApp | None = None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        ctx.meta[_GET_APP] = self.get_app or _app_of_celery
        try:
            return super().invoke(ctx)
        except GuardrailsConfigError as exc:
            raise _Misconfigured(printable(exc)) from exc
        except (GuardrailsError, OSError) as exc:
            raise click.ClickException(printable(exc)) from exc
        except Exception as exc:
            if type(exc).__module__.partition(".")[0] not in _SERVERS:
                raise
            raise click.ClickException(printable(f"{type(exc).__name__}: {exc}")) from exc


def _app_of_celery() -> Any:
    """Return the app of Celery's own command line, with what its projects attach only when their modules are loaded."""
    app = click.get_current_context().obj.app
    if getattr(app, "guardrails", None) is None:
        app.loader.import_default_modules()  # under Django this runs django.setup(), and so our AppConfig
    return app


def commands(get_app: GetApp, *, name: str = "guardrails") -> click.Group:
    """Return the whole group for another command line.

    Args:
        get_app: returns the Celery app, called when a command runs.
        name: of the group.
    """
    group = _bound(guardrails, get_app)
    group.name = name
    return group


def _bound(command: _C, get_app: GetApp) -> _C:
    bound = copy.copy(command)
    if isinstance(bound, click.Group):
        bound.commands = {name: _bound(child, get_app) for name, child in bound.commands.items()}
    elif isinstance(bound, _Command):
        bound.get_app = get_app
    return bound


def _rails() -> Guardrails:
    app = click.get_current_context().meta[_GET_APP]()
    rails: Guardrails | None = getattr(app, "guardrails", None)
    if rails is None:
        raise GuardrailsConfigError(
            f"the Celery app {getattr(app, 'main', None) or app!r} has no guardrails: add Guardrails(app) where it is made, "
            "or under Django 'celery_guardrails.contrib.django' to INSTALLED_APPS"
        )
    return rails


def _service() -> DeadLetters:
    return _rails().dead_letters


# -- options ------------------------------------------------------------------------------------------------------


def _options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_filter_options = _options(
    click.option("--queue", metavar="NAME", help="Of this task queue (or the one with this dead letter queue)."),
    click.option("--task", metavar="PATTERN", help="Of this task; * and ? stand for any text and any character."),
    click.option("--reason", metavar="REASON", help=f"Dead for this reason: {', '.join(REASONS)}."),
    click.option("--error", metavar="PATTERN", help="With this class of error, qualified or its last part; * and ? as above."),
    click.option("--fingerprint", metavar="HEX", help="With this error fingerprint, or one that begins so."),
    click.option(
        "--since", metavar="TIME", help="That died at or after: ISO 8601 (UTC where it has no zone), or 30s, 15m, 2h, 3d, 1w ago."
    ),
    click.option("--until", metavar="TIME", help="That died before: the same."),
    click.option("--key", metavar="KEY", help="With this idempotency key (the task id where the task has none)."),
    click.option("--limit", metavar="N", type=int, help="So many at most."),
)
_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Move nothing, only say what would be done.")
_ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...")


# -- commands -----------------------------------------------------------------------------------------------------


@click.group("guardrails")
def guardrails(**_preload_options: Any) -> None:
    """Dead letters and idempotency keys."""


@guardrails.group("dead-letters")
def dead_letters() -> None:
    """List, group, show, replay and discard what died.

    Exit codes: 0 done, 1 some failed, 2 bad usage.
    """


@dead_letters.command("list", cls=_Command)
@_filter_options
@_json_option
def list_(as_json: bool, **options: Any) -> None:
    """List dead letters, the oldest of each queue first."""
    service = _service()
    letters = service.list(Filter.parse(now=service.now(), **options))
    if as_json:
        _echo_array(letter_data(letter) for letter in letters)
        return
    rows = (
        (
            letter.id,
            moment(letter.died_at),
            letter.queue,
            letter.reason,
            letter.task,
            letter.replays,
            letter.key,
            f"{letter.certificate.error}: {letter.certificate.message}".strip(": ").partition("\n")[0],
        )
        for letter in letters
    )
    _echo_table(("ID", "DIED", "QUEUE", "REASON", "TASK", "REPLAYS", "KEY", "ERROR"), rows, service, options)


@dead_letters.command("groups", cls=_Command)
@_filter_options
@_json_option
def groups(as_json: bool, **options: Any) -> None:
    """Show dead letters in groups of one reason and one error, the largest first."""
    service = _service()
    found = service.groups(Filter.parse(now=service.now(), **options))
    if as_json:
        _echo_array(group_data(group) for group in found)
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


@dead_letters.command("show", cls=_Command)
@click.argument("identifier", metavar="ID")
@_json_option
def show(identifier: str, as_json: bool) -> None:
    """Show one dead letter, by its identifier or its whole task id: arguments, error, traceback, headers."""
    letter = _service().show(identifier)
    if as_json:
        _echo_json(letter_data(letter, full=True))
        return
    for line in letter_text(letter):
        click.echo(line)


@dead_letters.command("replay", cls=_Command)
@_ids_argument
@_filter_options
@_dry_run_option
@click.option("--rate", metavar="N/s", help="So many at most, evenly spaced: 10/s, 600/m, 2000/h.")
@click.option("--to-queue", metavar="NAME", help="Put them into this queue instead of the one they came from.")
@click.option("--max-replays", metavar="N", type=int, default=3, show_default=True, help="Skip what has been replayed so often before.")
@_json_option
def replay(
    ids: tuple[str, ...], dry_run: bool, rate: str | None, to_queue: str | None, max_replays: int, as_json: bool, **options: Any
) -> None:
    """Put dead letters back into their queues: the same task id and key, fresh attempts.

    Without IDs and options: all. A key that completed meanwhile is not run again. Letters that nobody could
    read (undecodable, invalid, no task message at all) are skipped unless asked for by ID or --reason. Each is
    published with a confirm before it is removed: after a crash, just run it again.
    """
    service = _service()
    where, pace = Filter.parse(now=service.now(), **options), parse_rate(rate)
    with _progress_bar("replaying", hidden=as_json or dry_run) as on_progress:
        report = service.replay(
            where, ids=ids, dry_run=dry_run, rate=pace, to_queue=to_queue, max_replays=max_replays, on_progress=on_progress
        )
    if as_json:
        _echo_json(report_data(report))
    else:
        for line in replay_lines(report, max_replays):
            click.echo(line)
        _echo_failures(report)
    _leave(report)


@dead_letters.command("discard", cls=_Command)
@_ids_argument
@_filter_options
@_dry_run_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json_option
def discard(ids: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Remove dead letters for good, after asking. Without IDs and options: all of them."""
    service = _service()
    where = Filter.parse(now=service.now(), **options)
    if not (yes or dry_run):
        number = service.discard(where, ids=ids, dry_run=True).total
        if number:
            click.confirm(f"Discard {letters_text(number)} for good?", abort=True, err=True)
    with _progress_bar("discarding", hidden=as_json or dry_run) as on_progress:
        report = service.discard(where, ids=ids, dry_run=dry_run, on_progress=on_progress)
    if as_json:
        _echo_json(report_data(report))
    else:
        click.echo(f"{'would discard' if dry_run else 'discarded'} {report.discarded} of {letters_text(report.total)}")
        _echo_failures(report)
    _leave(report)


@guardrails.command("lookup", cls=_Command)
@click.argument("key")
@_json_option
def lookup(key: str, as_json: bool) -> None:
    """Show what the store remembers of an idempotency key; exit code 1 where it remembers nothing."""
    record = _rails().lookup(key)
    data = None if record is None else record_data(key, record)
    if as_json:
        _echo_json(data)
    elif data is None:
        click.echo(f"there is no record of {printable(key)}", err=True)
    else:
        for line in fields_text(data):
            click.echo(line)
    if data is None:
        click.get_current_context().exit(1)


@guardrails.command("forget", cls=_Command)
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask, even if a task holds the key right now.")
@_json_option
def forget(key: str, yes: bool, as_json: bool) -> None:
    """Let a completed idempotency key run again; exit code 1 where there was no record."""
    rails = _rails()
    record = rails.lookup(key)
    if record is not None and record.state is RecordState.LEASED and not yes:
        holder = printable(record.owner or record.holder)
        click.confirm(
            f"{printable(key)} is running now ({holder}): forgetting it lets a second one start. Forget it?", abort=True, err=True
        )
    known = rails.forget(key)
    if as_json:
        _echo_json({"key": key, "forgotten": known})
    else:
        click.echo(f"forgot {printable(key)}" if known else f"there is no record of {printable(key)}", err=not known)
    if not known:
        click.get_current_context().exit(1)


# -- output -------------------------------------------------------------------------------------------------------


def _echo_json(data: Any) -> None:
    click.echo(json.dumps(plain(data), indent=2))


def _echo_array(items: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON array, one element a line, without holding it in memory."""
    opening = "["
    for item in items:
        click.echo(f"{opening}\n  {json.dumps(plain(item))}", nl=False)
        opening = ","
    click.echo("[]" if opening == "[" else "\n]")


def _echo_table(titles: tuple[str, ...], rows: Iterator[tuple[Any, ...]], service: DeadLetters, options: Mapping[str, Any]) -> None:
    first = next(rows, None)
    if first is None:
        looked = ", ".join(map(printable, service.queues(options["queue"]).values()))
        click.echo(f"no dead letters{' that match' if any(options.values()) else ''} in {looked}", err=True)
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

    def draw() -> None:
        nonlocal drawn, due
        if bar is not None:
            bar.update(last.looked_at - drawn)
            drawn, due = last.looked_at, time.monotonic() + 0.1

    def on_progress(progress: Progress) -> None:
        nonlocal last, bar
        last = progress
        if bar is None and not hidden and sys.stderr.isatty():
            bar = click.progressbar(length=progress.total, label=label, file=sys.stderr, show_pos=True).__enter__()
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
