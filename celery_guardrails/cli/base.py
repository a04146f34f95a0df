"""What every command has: how it gets at the app, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..dead_letters.render import plain, printable
from ..errors import GuardrailsConfigError, GuardrailsError

if TYPE_CHECKING:
    from ..integration.app import Guardrails

__all__ = ["Command", "GetApp", "ask", "echo_array", "echo_json", "json_option", "options_of", "rails"]

#: Returns the Celery app that a command works on.
GetApp = Callable[[], Any]

_F = TypeVar("_F", bound=Callable[..., Any])
_GET_APP = "celery_guardrails.get_app"
#: Libraries whose errors mean that a server does not answer, or not as hoped: one line instead of a traceback.
_SERVERS = ("amqp", "kombu", "redis", "sqlalchemy", "django")


class Misconfigured(click.ClickException):
    exit_code = 2


class Command(click.Command):
    """A command that knows how to get at the app, and turns errors into one line and an exit code."""

    get_app: GetApp | None = None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        ctx.meta[_GET_APP] = self.get_app or _app_of_celery
        try:
            return super().invoke(ctx)
        except GuardrailsConfigError as exc:
            raise Misconfigured(printable(exc)) from exc
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


def ask(question: str) -> None:
    """Go on only where the operator says yes.

    Raises:
        click.Abort: the answer was no, or Ctrl-C.
        click.ClickException: there is nobody to answer (cron, a pipe that is empty); it names ``--yes``.
    """
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as exc:
        if isinstance(exc.__context__, EOFError):
            click.echo(err=True)
            raise click.ClickException("nobody answered, so nothing was done; --yes does it without asking") from exc
        raise


def rails() -> Guardrails:
    """Return the guardrails of the app that the command works on."""
    app = click.get_current_context().meta[_GET_APP]()
    found: Guardrails | None = getattr(app, "guardrails", None)
    if found is None:
        raise GuardrailsConfigError(
            f"the Celery app {getattr(app, 'main', None) or app!r} has no guardrails: add Guardrails(app) where it is made, "
            "or under Django 'celery_guardrails.contrib.django' to INSTALLED_APPS"
        )
    return found


def options_of(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Return one decorator that gives a command all these options."""

    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


def echo_json(data: Any, *, err: bool = False) -> None:
    """Print one value."""
    click.echo(json.dumps(plain(data), indent=2), err=err)


def echo_array(items: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON array, one element a line, without holding it in memory."""
    opening = "["
    for item in items:
        click.echo(f"{opening}\n  {json.dumps(plain(item))}", nl=False)
        opening = ","
    click.echo("[]" if opening == "[" else "\n]")
