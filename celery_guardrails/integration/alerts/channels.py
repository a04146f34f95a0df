"""Where alerts go: a callable, or a channel that a framework brings (e-mail by Django); a webhook has a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from kombu.utils.imports import symbol_by_name

from ...errors import GuardrailsConfigError
from ...policy.alerts import Alert
from .text import body, title

__all__ = ["Call", "Channel", "Mail"]

#: By name: this room does not know the frameworks. It is the class of a channel of its own.
_MAILER = "celery_guardrails.contrib.django.alerts:Mailer"


class Channel(Protocol):
    """Something that an alert can be sent through."""

    #: For logs and commands; without what must stay secret.
    label: str
    #: The same in every process of the fleet that sends to the same place, and in none that sends to another.
    identity: str

    def check(self) -> None:
        """Find out whether it can send at all.

        Raises:
            GuardrailsConfigError: it never will, and what to do.
        """

    def send(self, alert: Alert, app: str) -> str:
        """Send and return what came back; raises what went wrong."""


class Call:
    """A function of the user's, called with the :class:`~celery_guardrails.policy.alerts.Alert`."""

    def __init__(self, function: Callable[[Alert], object]) -> None:
        if not callable(function):
            raise GuardrailsConfigError(f"alert: {function!r}: a callable that takes an Alert is allowed, or webhook=…, or email=…")
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self.label = self.identity = f"callable {getattr(function, '__module__', '?')}.{name}"
        self._function = function

    def check(self) -> None:
        """Nothing to find out."""

    def send(self, alert: Alert, app: str) -> str:
        """See :class:`Channel`."""
        self._function(alert)
        return "done"


class Mail:
    """E-mail by the mailer of Django, which is loaded when the first one is sent: the app may be made before Django is set up."""

    def __init__(self, recipients: str | Sequence[str]) -> None:
        chosen = (recipients,) if isinstance(recipients, str) else tuple(recipients)
        if not chosen or not all(isinstance(address, str) and "@" in address and address.isprintable() for address in chosen):
            raise GuardrailsConfigError(f"alert: email = {recipients!r}: one address or several are allowed")
        self._recipients = chosen
        self.label = f"e-mail to {', '.join(chosen)}"
        self.identity = f"mail {sorted(chosen)}"
        if find_spec("django") is None:  # said where the alert is written; what it needs besides is asked in check()
            raise _no_mailer("Django is not installed")

    def check(self) -> None:
        """See :class:`Channel`."""
        self._mailer().check()

    def send(self, alert: Alert, app: str) -> str:
        """See :class:`Channel`."""
        return str(self._mailer().send(self._recipients, title(alert, app), body(alert)))

    def _mailer(self) -> Any:
        try:
            return symbol_by_name(_MAILER)()
        except ImportError as exc:
            raise _no_mailer(exc) from exc


def _no_mailer(why: object) -> GuardrailsConfigError:
    return GuardrailsConfigError(
        f"alert: email=… is sent by Django's mailer, with 'celery_guardrails.contrib.django' in INSTALLED_APPS ({why}); "
        "elsewhere give webhook=…, or a callable that sends"
    )
