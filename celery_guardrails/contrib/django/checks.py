"""System checks: what is configured wrong, said before a worker starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from celery import _state
from django.core import checks
from django.db import connections
from django.utils.module_loading import autodiscover_modules

from celery_guardrails.doctor import CHECKS, Level
from celery_guardrails.errors import GuardrailsConfigError, GuardrailsError
from celery_guardrails.integration.app import Guardrails, ensure_guardrails
from celery_guardrails.integration.examination import collect
from celery_guardrails.stores.sql import TABLE

from .table import alias_of

__all__ = ["LIVE", "check_configuration", "check_live", "check_table", "made_app"]

#: Tag of the checks that connect to broker and store.
LIVE = "guardrails_live"


def made_app() -> Any:
    """Return the Celery app made last, or None."""
    # not celery.current_app: asking that makes an app of its own where there is none, and the project's tasks might bind to it
    return _state._tls.current_app or _state.default_app


def check_configuration(**_: Any) -> list[checks.CheckMessage]:
    """Find settings and options of tasks that are wrong."""
    return _checked(live=False)


def check_live(**_: Any) -> list[checks.CheckMessage]:
    """Find what is wrong with the broker and the store as they are; only ``check --tag guardrails_live`` connects to them."""
    return _checked(live=True) if _asked_for(LIVE) else []


def _checked(*, live: bool) -> list[checks.CheckMessage]:
    app = made_app()
    if app is None:
        return [
            checks.Warning(
                "No Celery app was found, so nothing is guarded.",
                hint="Import your Celery app in the __init__.py of the project's package: from .celery import app as celery_app",
                id="guardrails.W001",
            )
        ]
    rails = ensure_guardrails(app)
    try:
        rails.redact  # noqa: B018 - reading it reads all settings, which validates them
        _check_archive(rails)
        return _messages(rails, live=live)
    except GuardrailsError as exc:
        return [
            checks.Error(str(exc), hint="Settings of the guard are CELERY_GUARDRAILS_… with the namespace CELERY.", id="guardrails.E001")
        ]


def _asked_for(tag: str) -> bool:
    """Whether the command line names a tag. Django tells no check for which of its tags it is run."""
    words = sys.argv
    return any(word in (f"--tag={tag}", f"-t{tag}") or (word == tag and words[at - 1] in ("--tag", "-t")) for at, word in enumerate(words))


def _messages(rails: Guardrails, *, live: bool) -> list[checks.CheckMessage]:
    """Return the doctor's findings; its remarks are for those who ask the doctor."""
    autodiscover_modules("tasks")  # the modules that Celery loads in a worker, and only there
    kinds = {Level.ERROR: checks.Error, Level.WARNING: checks.Warning}
    found = [one for one in CHECKS if one.live == live and one.level in kinds]
    facts = collect(rails, live=live, imports=False)
    return [
        kinds[finding.level](f"{finding.subject}: {finding.what}", hint=f"{finding.why} {finding.mend}", id=finding.id)
        for one in found
        for finding in one.findings(facts)
    ]


def _check_archive(rails: Guardrails) -> None:
    alias = alias_of(rails.settings.archive)
    if alias is not None and alias not in connections:
        raise GuardrailsConfigError(
            f"guardrails_archive = {rails.settings.archive!r}: no {alias!r} in DATABASES; allowed are {', '.join(map(repr, connections))}"
        )


def check_table(databases: Sequence[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """Find out whether the store's table has been made; only ``check --database`` and ``migrate`` ask databases."""
    app = made_app()
    # `migrate` checks first, and then does just what the hint says
    if app is None or sys.argv[1:2] == ["migrate"]:
        return []
    try:
        url = ensure_guardrails(app).store_url
    except GuardrailsError:
        return []  # check_configuration tells
    scheme, _sep, alias = url.partition("://")
    alias = alias or "default"
    if scheme != "django" or alias not in (databases or ()) or TABLE in connections[alias].introspection.table_names():
        return []
    database = "" if alias == "default" else f" --database {alias}"
    return [
        checks.Warning(
            f"guardrails_store = {url!r}: the table {TABLE} is not there, so no guarded task can start.",
            hint=f"python manage.py migrate{database}",
            id="guardrails.W002",
        )
    ]
