"""``guardrails dead-letters export`` and ``import``: letters in files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from ..dead_letters.exchange import Export, ImportReport
from ..dead_letters.filters import Filter
from ..dead_letters.render import letters_text, printable
from ..dead_letters.reports import Failure
from .base import Command, echo_json, json_option
from .letter_options import dry_run_option, filter_options, ids_argument, place_options, service_of, state_option

__all__ = ["export", "import_"]


@click.command("export", cls=Command)
@ids_argument
@filter_options
@place_options
@state_option
@click.option("--output", metavar="FILE", default="-", show_default=True, help="Write there; - is standard output.")
@json_option
def export(ids: tuple[str, ...], queued: bool, archived: bool, state: str, output: str, as_json: bool, **options: Any) -> None:
    """Write dead letters as JSON lines, byte for byte, for `import`. Nothing is moved.

    Without IDs and options: all. Arguments are not redacted: a file is readable by its owner only, and appears under its
    name when it is complete. --json reports (on standard error where standard output has the letters).
    """
    service = service_of(queued=queued, archived=archived, state=state)
    with contextlib.closing(service.export(Filter.parse(now=service.now(), **options), ids=ids)) as lines:
        with _writing(output) as file:
            for line in lines:
                file.write(f"{line}\n")
        if as_json:
            echo_json(_export_data(lines), err=output == "-")
        else:
            click.echo(f"exported {letters_text(lines.count)}", err=True)
            _echo_failures(lines.failures, lines.failed)
            for identifier in lines.missing:
                click.echo(f"not found: {printable(identifier)}", err=True)
        if lines.failed or lines.missing:
            click.get_current_context().exit(1)


@click.command("import", cls=Command)
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@click.option("--queue", metavar="NAME", help="Into the dead letter queue of this task queue, instead of that of their own.")
@dry_run_option
@click.option("--again", is_flag=True, help="Also letters that lie there already.")
@json_option
def import_(file: IO[bytes], queue: str | None, dry_run: bool, again: bool, as_json: bool) -> None:
    """Put the letters of an `export` into dead letter queues.

    What lies there already is skipped: after a crash, just run it again. A line that cannot be read is told by its
    number and does not stop the rest; a file without any letter is bad usage.
    """
    report = service_of().import_(file, queue=queue, dry_run=dry_run, again=again)
    if as_json:
        echo_json(_import_data(report))
    else:
        click.echo(f"{'would import' if dry_run else 'imported'} {report.imported} of {letters_text(report.total)}")
        for destination, number in sorted(report.destinations.items()):
            click.echo(f"  to {printable(destination)}: {number}")
        if report.skipped:
            click.echo(f"skipped {letters_text(report.skipped)}, there already; --again imports them as well")
        _echo_failures(report.failures, report.failed)
        if report.stopped:
            click.echo(f"stopped before the last line: {printable(report.stopped)}; run it again to go on", err=True)
    if not report.clean:
        click.get_current_context().exit(1)


@contextlib.contextmanager
def _writing(output: str) -> Iterator[IO[str]]:
    """Open a file that appears under its name, whole, at the end; pipes and devices are written to as they are."""
    target = Path(output)
    if output == "-" or (target.exists() and not target.is_file()):
        with click.open_file(output, "w", encoding="ascii") as stream:
            yield stream
        return
    target = target.resolve()  # a link stays one
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as exc:
        raise click.BadParameter(f"{output!r}: {exc.strerror}", param_hint="--output") from exc
    try:
        with open(descriptor, "w", encoding="ascii") as stream:
            yield stream
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _echo_failures(failures: tuple[Failure, ...], failed: int) -> None:
    for failure in failures:
        click.echo(f"failed {failure.id}: {printable(failure.why)}", err=True)
    if failed > len(failures):
        click.echo(f"… and {failed - len(failures)} more", err=True)


def _export_data(lines: Export) -> dict[str, Any]:
    failures = [vars(failure) for failure in lines.failures]
    return {"exported": lines.count, "failed": lines.failed, "failures": failures, "missing": list(lines.missing)}


def _import_data(report: ImportReport) -> dict[str, Any]:
    return {**vars(report), "stopped": report.stopped or None, "failures": [vars(failure) for failure in report.failures]}
