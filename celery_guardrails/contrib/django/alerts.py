"""Alerts by e-mail: ``guardrails.alert(email=["ops@example.com"])``."""

from __future__ import annotations

from collections.abc import Sequence

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage

from celery_guardrails.errors import GuardrailsConfigError

__all__ = ["Mailer"]

_APP = "celery_guardrails.contrib.django"


class Mailer:
    """Sends by the mailer that the project is set up for.

    From ``SERVER_EMAIL``, as Django's own reports of errors. A mail server that hangs holds up further alerts by e-mail
    of this process and nothing else; ``EMAIL_TIMEOUT`` ends that.
    """

    def check(self) -> None:
        """Find out whether Django is there.

        Raises:
            GuardrailsConfigError: it is not set up, or does not know of us.
        """
        try:
            installed = apps.is_installed(_APP)
        except Exception as exc:
            raise GuardrailsConfigError(f"alert: email=… is sent by Django's mailer, and Django is not set up: {exc}") from exc
        if not installed:
            raise GuardrailsConfigError(f"alert: email=… is sent by Django's mailer: put {_APP!r} into INSTALLED_APPS, or give webhook=…")

    def send(self, recipients: Sequence[str], subject: str, body: str) -> str:
        """Send one message to all; raises what the mailer raises."""
        self.check()
        try:
            sender = settings.SERVER_EMAIL
        except ImproperlyConfigured as exc:
            raise GuardrailsConfigError(f"alert: email=…: {exc}") from exc
        sent = EmailMessage(subject, body, sender, list(recipients)).send()
        if not sent:
            raise OSError("the mailer took no message")
        return f"{sent} message handed to Django's mailer"
