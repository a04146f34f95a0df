"""Flask: ``GuardrailsFlask(flask_app, celery_app)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Celery, signals
from flask import Flask
from kombu.utils.imports import symbol_by_name

from celery_guardrails.cli import commands
from celery_guardrails.errors import GuardrailsConfigError
from celery_guardrails.integration.app import Guardrails, ensure_guardrails

__all__ = ["GuardrailsFlask"]

_CONTEXT = "_guardrails_flask_context"


class GuardrailsFlask:
    """Puts the guard on the Celery app of a Flask app, its tasks into the app context, and ``flask guardrails …`` on the command line.

    Args:
        flask_app: the Flask app, or None to call :meth:`init_app` later.
        celery_app: its Celery app; by default ``flask_app.extensions["celery"]``, where Flask's documentation puts it.
        app_context: run each task in an application context; None: unless the Celery app's own task class has a
            ``__call__`` already, as the one in Flask's documentation does.

    Settings are the Celery app's: ``guardrails_*`` in the ``CELERY`` mapping of Flask's configuration. The mapping is
    given to the Celery app here where that has not been configured yet.
    """

    def __init__(self, flask_app: Flask | None = None, celery_app: Celery | None = None, *, app_context: bool | None = None) -> None:
        self._celery_app = celery_app
        self._app_context = app_context
        if flask_app is not None:
            self.init_app(flask_app, celery_app)

    def init_app(self, flask_app: Flask, celery_app: Celery | None = None) -> None:
        """Attach to a Flask app.

        Raises:
            GuardrailsConfigError: no Celery app was given and the Flask app has none.
        """
        app = celery_app or self._celery_app or flask_app.extensions.get("celery")
        if app is None:
            raise GuardrailsConfigError('GuardrailsFlask needs a Celery app: pass celery_app=, or put it at flask_app.extensions["celery"]')
        chosen = flask_app.config.get("CELERY")
        if isinstance(chosen, Mapping) and not app.configured and app._config_source is None:
            app.config_from_object(dict(chosen))
        ensure_guardrails(app)
        if self._app_context or (self._app_context is None and not _brings_its_context(app)):
            _run_in_context(flask_app, app)
        flask_app.extensions.setdefault("celery", app)
        flask_app.extensions["guardrails"] = self
        flask_app.cli.add_command(commands(lambda: app))
        self._celery_app = app

    @property
    def guardrails(self) -> Guardrails:
        """The guard of the Celery app."""
        if self._celery_app is None:
            raise GuardrailsConfigError("GuardrailsFlask has no app yet: call init_app(flask_app, celery_app)")
        return ensure_guardrails(self._celery_app)


def _brings_its_context(app: Celery) -> bool:
    """Whether the app's task class runs tasks in a way of its own."""
    mro = symbol_by_name(app.task_cls).__mro__
    return any("__call__" in cls.__dict__ and not cls.__module__.startswith(("celery.", "celery_guardrails.")) for cls in mro[:-1])


def _run_in_context(flask_app: Flask, app: Celery) -> None:
    """Push an application context for the time of each task of this app.

    By signals, not by a task class: they come before the guard computes a key or looks for a completed one, and they
    hold for tasks with a base class of their own.
    """

    def push(task: Any = None, **_: Any) -> None:
        if task.app is app:
            context = flask_app.app_context()
            context.push()
            setattr(task.request, _CONTEXT, context)

    def pop(task: Any = None, **_: Any) -> None:
        context = task.request.__dict__.pop(_CONTEXT, None)
        if context is not None:
            context.pop()

    signals.task_prerun.connect(push, weak=False, dispatch_uid=f"guardrails.flask.push.{id(app)}")
    signals.task_postrun.connect(pop, weak=False, dispatch_uid=f"guardrails.flask.pop.{id(app)}")
