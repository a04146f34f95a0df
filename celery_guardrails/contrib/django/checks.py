"""System checks: what is configured wrong, said before a worker starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from celery import _state
from django.core import checks
from django.db import connections
from django.utils.module_loading import autodiscover_modules

from celery_guardrails.errors import GuardrailsConfigError, GuardrailsError
from celery_guardrails.integration.app import Guardrails, ensure_guardrails
from celery_guardrails.stores.sql import TABLE

from .table import alias_of

__all__ = ["check_configuration", "check_table", "made_app"]


def made_app() -> Any:
    """Return the Celery app made last, or None."""
    # not celery.current_app: asking that makes an app of its own where there is none, and the project's tasks might bind to it
    return _state._tls.current_app or _state.default_app


def check_configuration(**_: Any) -> list[checks.CheckMessage]:
    """Find settings and options of tasks that are wrong."""
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
    except GuardrailsError as exc:
        return [
            checks.Error(str(exc), hint="Settings of the guard are CELERY_GUARDRAILS_… with the namespace CELERY.", id="guardrails.E001")
        ]
    return list(_check_atomic_tasks(rails))


def _check_archive(rails: Guardrails) -> None:
    alias = alias_of(rails.settings.archive)
    if alias is not None and alias not in connections:
        raise GuardrailsConfigError(
            f"guardrails_archive = {rails.settings.archive!r}: no {alias!r} in DATABASES; allowed are {', '.join(map(repr, connections))}"
        )


def _check_atomic_tasks(rails: Guardrails) -> Iterator[checks.CheckMessage]:
    autodiscover_modules("tasks")  # the modules that Celery loads in a worker, and only there
    for task in list(rails.app.tasks.values()):
        if not (getattr(task, "guarded", False) and getattr(task, "atomic", False)):
            continue
        try:
            rails.transactional(task.guard_options)
        except GuardrailsError as exc:
            yield checks.Error(
                str(exc),
                hint="With the namespace CELERY the setting is CELERY_GUARDRAILS_STORE = 'django://default'.",
                id="guardrails.E002",
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
