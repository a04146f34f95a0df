"""What ``dead-letters replay`` and ``discard`` need besides their options: a change from an editor, an end between letters, a speed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ..dead_letters.edit import Edit, edit_of_text, parse_edit, text_to_edit
from ..errors import GuardrailsConfigError
from .base import options_of

if TYPE_CHECKING:
    from ..dead_letters.archive import Everywhere
    from ..dead_letters.service import DeadLetters

__all__ = ["Speed", "chosen_edit", "edit_options", "stop_between_letters"]

#: Seconds that a speed looks back.
_WINDOW = 10.0

edit_options = options_of(
    click.option("--edit", is_flag=True, help="Change the arguments first, in $EDITOR (of one letter) or by the three options below."),
    click.option("--set", "sets", metavar="NAME=JSON", multiple=True, help="One argument, by name or by position from 0; may be repeated."),
    click.option("--args", "args_text", metavar="JSON", help="All positional arguments, as a list."),
    click.option("--kwargs", "kwargs_text", metavar="JSON", help="All keyword arguments, as an object."),
    click.option("--force", is_flag=True, help="Edit also where the app does not know the task, and against its annotations."),
)


def chosen_edit(
    service: DeadLetters | Everywhere,
    ids: tuple[str, ...],
    *,
    edit: bool,
    sets: tuple[str, ...],
    args_text: str | None,
    kwargs_text: str | None,
    force: bool,
) -> Edit | None:
    """Return the change that the options ask for, or that somebody makes in an editor now.

    Raises:
        GuardrailsConfigError: it cannot be had that way, or is no change.
    """
    if sets or args_text is not None or kwargs_text is not None:
        return parse_edit(sets, args=args_text, kwargs=kwargs_text, force=force)
    if not edit:
        if force:
            raise GuardrailsConfigError("--force: only together with --edit or --set is allowed")
        return None
    if not _on_terminal():
        raise GuardrailsConfigError("--edit: without a terminal say what to change, with --set NAME=JSON, --args JSON or --kwargs JSON")
    if len(ids) != 1:
        raise GuardrailsConfigError("--edit: the editor takes one letter, so name one ID; --set NAME=JSON changes all chosen letters alike")
    letter = service.show(ids[0])
    text = click.edit(text_to_edit(letter), extension=".json")
    if text is None:
        raise click.ClickException("nothing was changed, so nothing was replayed")
    return edit_of_text(letter, text, force=force)


def _on_terminal() -> bool:
    return sys.stdin.isatty()


@contextmanager
def stop_between_letters() -> Iterator[Callable[[], bool]]:
    """Yield whether somebody has pressed Ctrl-C (SIGINT) or sent SIGTERM, once; the second time interrupts at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with contextlib.suppress(OSError):  # not click.echo: stderr may be in the middle of a write
            os.write(2, b"\nstopping behind the letter in hand; once more stops at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Speed:
    """Letters a second over the last ten seconds, and how long the rest takes at that."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def text(self, now: float, count: int, total: int) -> str:
        """Return both as text, or "" while there is nothing to tell.

        Args:
            now: in seconds, by any clock that only goes forward.
            count: letters so far.
            total: of all.
        """
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW:
            self._seen.popleft()
        (then, before), *_ = self._seen
        if now - then < 1.0 or count == before:  # over less than a second it is a guess
            return ""
        rate = (count - before) / (now - then)
        minutes, seconds = divmod(round(max(0, total - count) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{rate:.3g}/s  {left} left" if rate < 100 else f"{rate:.0f}/s  {left} left"
