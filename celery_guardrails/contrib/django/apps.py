"""The app config, which finds the project's Celery app."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

from celery import _state, signals
from django.apps import AppConfig
from django.conf import settings
from django.core import checks

from celery_guardrails.errors import GuardrailsError
from celery_guardrails.integration.app import ensure_guardrails

__all__ = ["GuardrailsConfig", "celery_app"]

_UID = "celery_guardrails.contrib.django"


class GuardrailsConfig(AppConfig):
    """Attaches :class:`~celery_guardrails.Guardrails` to the project's Celery app, unless the project has done so itself."""

    name = "celery_guardrails.contrib.django"
    label = "guardrails"
    verbose_name = "Guardrails"

    def ready(self) -> None:
        """Attach now, or when Celery loads the project's modules, where there is no Celery app yet."""
        checks.register(_check, checks.Tags.compatibility)
        app = celery_app()
        if app is not None:
            ensure_guardrails(app)
        else:
            signals.import_modules.connect(_on_import_modules, weak=False, dispatch_uid=_UID)


def celery_app() -> Any:
    """Return the project's current Celery app, or None where there is none.

    That is the app made last. Where none was made yet, the module ``celery`` beside the settings is imported, for a
    project that does not import it in its ``__init__``.
    """
    app = _made_app()
    if app is None:
        for name in _likely_modules():
            importlib.import_module(name)
            app = _made_app()
            if app is not None:
                break
    return app


def _made_app() -> Any:
    # not celery.current_app: asking that makes an app of its own where there is none, and the project's tasks might bind to it
    return _state._tls.current_app or _state.default_app


def _likely_modules() -> Iterator[str]:
    package = getattr(settings, "SETTINGS_MODULE", None) or ""
    while "." in package:
        package = package.rpartition(".")[0]
        name = f"{package}.celery"
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            yield name


def _on_import_modules(sender: Any = None, **_: Any) -> None:
    ensure_guardrails(sender)


def _check(**_: Any) -> list[checks.CheckMessage]:
    app = _made_app()
    if app is None:
        return [
            checks.Warning(
                "No Celery app was found, so nothing is guarded.",
                hint="Import your Celery app in the __init__.py of the project's package: from .celery import app as celery_app",
                id="guardrails.W001",
            )
        ]
    try:
        ensure_guardrails(app).settings  # noqa: B018 - reading them validates them
    except GuardrailsError as exc:
        return [
            checks.Error(str(exc), hint="Settings of the guard are CELERY_GUARDRAILS_… with the namespace CELERY.", id="guardrails.E001")
        ]
    return []
