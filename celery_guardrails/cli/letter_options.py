"""Options that the commands on dead letters share, and the service over the places that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..dead_letters.render import printable
from ..errors import GuardrailsConfigError, GuardrailsError
from ..policy.deadletter import REASONS
from .base import options_of, rails

if TYPE_CHECKING:
    from ..dead_letters.archive import Everywhere
    from ..dead_letters.service import DeadLetters

__all__ = [
    "NO_ARCHIVE",
    "acting_options",
    "dry_run_option",
    "filter_options",
    "ids_argument",
    "place_options",
    "service_of",
    "state_option",
    "with_archive",
]

NO_ARCHIVE = (
    "there is no archive of dead letters. To have one, and with it what was replayed and discarded, name a database: "
    'guardrails_archive = "sqlalchemy+postgresql+psycopg://…", or under Django "django://ALIAS" (then `python manage.py migrate`)'
)

filter_options = options_of(
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
place_options = options_of(
    click.option("--queued", is_flag=True, help="Only those in the dead letter queues, not those in the archive."),
    click.option("--archived", is_flag=True, help="Only those in the archive, not those in the dead letter queues."),
)
state_option = click.option(
    "--state",
    type=click.Choice(["waiting", "replayed", "discarded", "all"]),
    default="waiting",
    show_default=True,
    help="What has become of them; letters that do not wait are in the archive only.",
)
acting_options = options_of(
    click.option("--why", metavar="TEXT", default="", help="The reason, for the audit trail of the archive."),
    click.option("--by", metavar="NAME", help="Who does it, for the audit trail; the user of this process unless told."),
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Move nothing, only say what would be done.")
ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...")


def service_of(
    *,
    queued: bool = False,
    archived: bool = False,
    state: str = "waiting",
    by: str | None = None,
    why: str = "",
    needs_archive: bool = False,
) -> DeadLetters | Everywhere:
    """Return the service over the queues, and over the archive where there is one.

    Args:
        queued: only the queues.
        archived: only the archive.
        state: of the archive's letters, or ``"all"``.
        by: does what is done; None: the user of this process.
        why: they do it.
        needs_archive: with ``queued``, too, where there is one; otherwise it may be away then.

    Raises:
        GuardrailsConfigError: the options contradict each other, or there is no archive.
        ClickException: the archive does not answer.
    """
    if queued and archived:
        raise GuardrailsConfigError("--queued, --archived: one of them is allowed; without either both places are looked at")
    if queued and state not in ("waiting", "all"):
        raise GuardrailsConfigError(f"--state {state!r}: with --queued only waiting is allowed, since a queue has no other letters")
    guard: Any = rails()
    archive = _archive(guard, may_be_away=queued and not needs_archive)
    if archive is None:
        if archived or state not in ("waiting", "all"):
            raise GuardrailsConfigError(f"{'--archived' if archived else f'--state {state}'}: {NO_ARCHIVE}")
        found: DeadLetters = guard.dead_letters
        return found
    return _everywhere(guard, archive, queued=not archived, archived=not queued, state=None if state == "all" else state, by=by, why=why)


def with_archive(*, by: str | None, why: str) -> Everywhere:
    """Return the service for what only an archive can do.

    Raises:
        GuardrailsConfigError: there is none; says what to set up.
        ClickException: it does not answer.
    """
    guard: Any = rails()
    archive = _archive(guard)
    if archive is None:
        raise GuardrailsConfigError(NO_ARCHIVE)
    return _everywhere(guard, archive, by=by, why=why)


def _archive(guard: Any, *, may_be_away: bool = False) -> Any:
    try:
        return getattr(guard, "archive", None)
    except GuardrailsError:
        raise
    except Exception as exc:  # the database's library raises what it likes
        why = printable(f"the archive of dead letters does not answer: {type(exc).__name__}: {exc}".strip().partition("\n")[0])
        if not may_be_away:
            raise click.ClickException(f"{why}; --queued looks at the queues alone") from exc
        click.echo(f"{why}; what is done now is not on its audit trail", err=True)
        return None


def _everywhere(guard: Any, archive: Any, *, by: str | None, **options: Any) -> Everywhere:
    from ..dead_letters.archive import Everywhere
    from ..dead_letters.archive.trail import os_user

    template = guard.settings.dead_letter_queue
    return Everywhere(guard.dead_letters, guard.broker, archive, who=by or os_user(), template=template, **options)
