"""The app config, which finds the project's Celery app."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

from celery import signals
from django.apps import AppConfig
from django.conf import settings
from django.core import checks

from celery_guardrails.integration.app import ensure_guardrails

from .checks import LIVE, check_configuration, check_live, check_table, made_app

__all__ = ["GuardrailsConfig", "celery_app"]

#: The store of a project that uses no Redis and names none.
FALLBACK_STORE = "django://default"
#: The archive of a project that names none: in the database that its routers say.
FALLBACK_ARCHIVE = "django://"
_UID = "celery_guardrails.contrib.django"


class GuardrailsConfig(AppConfig):
    """Attaches :class:`~celery_guardrails.Guardrails` to the project's Celery app, unless the project has done so itself."""

    name = "celery_guardrails.contrib.django"
    label = "guardrails"
    verbose_name = "Guardrails"

    def ready(self) -> None:
        """Attach now, or when Celery loads the project's modules, where there is no Celery app yet."""
        checks.register(check_configuration, "guardrails", checks.Tags.compatibility)
        checks.register(check_live, LIVE)
        checks.register(check_table, checks.Tags.database)
        app = celery_app()
        if app is not None:
            _attach(app)
        else:
            signals.import_modules.connect(_on_import_modules, weak=False, dispatch_uid=_UID)


def celery_app() -> Any:
    """Return the project's current Celery app, or None where there is none.

    That is the app made last. Where none was made yet, the module ``celery`` beside the settings is imported, for a
    project that does not import it in its ``__init__``.
    """
    app = made_app()
    if app is None:
        for name in _likely_modules():
            importlib.import_module(name)
            app = made_app()
            if app is not None:
                break
    return app


def _likely_modules() -> Iterator[str]:
    package = getattr(settings, "SETTINGS_MODULE", None) or ""
    while "." in package:
        package = package.rpartition(".")[0]
        name = f"{package}.celery"
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            yield name


def _on_import_modules(sender: Any = None, **_: Any) -> None:
    _attach(sender)


def _attach(app: Any) -> None:
    rails = ensure_guardrails(app)
    rails.fallback_store, rails.fallback_archive = FALLBACK_STORE, FALLBACK_ARCHIVE
