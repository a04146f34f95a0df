"""``guardrails dead-letters reproduce``: a dead letter as a test."""

from __future__ import annotations

import keyword
import os
import sys
from typing import Any

import click

from ..dead_letters.reproduce import reproduction
from .base import Command, rails
from .letter_options import service_of

__all__ = ["reproduce"]


@click.command("reproduce", cls=Command)
@click.argument("identifier", metavar="ID")
@click.option("--output", metavar="FILE", type=click.Path(dir_okay=False), help="Write it to this new file instead of the terminal.")
@click.option("--redact", is_flag=True, help="Hide secrets among the arguments, as `show` does, and leave the error's message out.")
def reproduce(identifier: str, output: str | None, redact: bool) -> None:
    """Write a pytest file that runs the letter's task with its payload, and sees it die the same way.

    It needs the fixture `guardrails_harness`, which comes with this package. The arguments are those of the real message:
    the file may hold personal data.
    """
    found = rails()
    text = reproduction(service_of().show(identifier), app=_importable(found.app), redact=redact)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it may hold personal data
    except FileExistsError:
        raise click.ClickException(f"{output} is there already: name another file") from None
    with open(number, "w", encoding="ascii") as file:
        file.write(text)
    click.echo(f"written to {output}; it may hold personal data. Run: pytest {output}", err=True)


def _importable(app: Any) -> tuple[str, str] | None:
    """Return the module and the name by which a test can import the app, or None."""
    found = [
        (module, name)
        for module, loaded in list(sys.modules.items())
        for name, value in list((getattr(loaded, "__dict__", None) or {}).items())
        if value is app and _is_importable(module, name)
    ]
    return min(found, key=lambda place: (place[1].startswith("_"), len(place[0]), place), default=None)


def _is_importable(module: str, name: str) -> bool:
    if module == "__main__" or module.partition(".")[0] in ("celery", "celery_guardrails"):
        return False
    return all(part.isidentifier() and part.isascii() and not keyword.iskeyword(part) for part in (*module.split("."), name))
