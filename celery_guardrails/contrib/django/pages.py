"""What the admin's pages about archived letters have in common: the archive, permissions, buttons, links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin import helpers
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse

from celery_guardrails.dead_letters.decoder import KombuDecoder
from celery_guardrails.dead_letters.redaction import HIDDEN, Redactor, hide_secrets
from celery_guardrails.dead_letters.tasks import tasks_of
from celery_guardrails.errors import GuardrailsError
from celery_guardrails.integration.app import ensure_guardrails
from celery_guardrails.integration.clock import SystemClock

from .apps import celery_app
from .archive import Archive
from .click_command import project_app
from .models import ArchivedLetter
from .table import alias_of

__all__ = ["LABELS", "STATES", "LetterPages", "LookOnly", "chosen_alias", "reading_archive", "selection_of", "working_archive"]

_State = ArchivedLetter.State
#: Actions on letters, each with a permission of its own, and the state that letters are in before.
LABELS = {"replay": "Replay", "canary": "Replay as a canary", "discard": "Discard", "restore": "Restore"}
STATES = {"replay": _State.WAITING, "canary": _State.WAITING, "discard": _State.WAITING, "restore": _State.DISCARDED}


def reading_archive() -> Archive:
    """Return the archive to look at; neither broker nor store need to be there."""
    app = celery_app()
    if app is None:
        return Archive(None, None, clock=SystemClock(), decoder=KombuDecoder(["json"]))
    decoder = KombuDecoder(app.conf.accept_content)
    using = chosen_alias()
    return Archive(None, None, clock=SystemClock(), decoder=decoder, redact=_redactor(app), tasks=tasks_of(app), using=using)


def chosen_alias() -> str | None:
    """Return the alias of the database that ``guardrails_archive`` names; None where it names none of this project."""
    app = celery_app()
    try:
        return None if app is None else alias_of(ensure_guardrails(app).archive_url)
    except GuardrailsError:  # the checks tell
        return None


def working_archive() -> Archive:
    """Return the archive of the project's Celery app.

    Raises:
        GuardrailsError: there is no app, or what it needs is not configured or away.
    """
    return Archive.of(ensure_guardrails(project_app()))


def _redactor(app: Any) -> Redactor:
    try:
        return ensure_guardrails(app).redact
    except GuardrailsError:  # the checks tell; until that is mended nobody knows what may be shown
        return _hide_all


def _hide_all(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict.fromkeys(value, HIDDEN)
    return [HIDDEN] * len(value) if isinstance(value, (list, tuple)) else HIDDEN if value else hide_secrets(value)


def selection_of(request: HttpRequest) -> str:
    """Return which letters a request is about, for the audit trail."""
    chosen: Sequence[str] = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    by = ", ".join(f"{name.removesuffix('__exact')} = {value}" for name, value in request.GET.items())
    if request.POST.get("select_across") == "1":
        return f"all of: {by or 'everything'}"
    return f"{len(chosen)} selected: {', '.join(chosen[:20])}{' …' if len(chosen) > 20 else ''}"


class LookOnly(admin.ModelAdmin):
    """Nothing is added, changed or deleted by hand."""

    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> Any:
        """Return what there is in the database that the settings name, or else the routers."""
        alias, rows = chosen_alias(), super().get_queryset(request)
        return rows if alias is None else rows.using(alias)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False


class LetterPages(LookOnly):
    """Permissions of the actions, and what every page is made of."""

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Whether the user may replay."""
        return bool(request.user.has_perm("guardrails.replay_letter"))

    def has_canary_permission(self, request: HttpRequest) -> bool:
        """Whether the user may start, move on and stop replays in stages."""
        return bool(request.user.has_perm("guardrails.canary_letter"))

    def has_edit_permission(self, request: HttpRequest) -> bool:
        """Whether the user may replay a letter with other arguments."""
        return bool(request.user.has_perm("guardrails.edit_letter"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Whether the user may discard."""
        return bool(request.user.has_perm("guardrails.discard_letter"))

    def has_restore_permission(self, request: HttpRequest) -> bool:
        """Whether the user may restore."""
        return bool(request.user.has_perm("guardrails.restore_letter"))

    def buttons(self, request: HttpRequest, state: str) -> list[tuple[str, str]]:
        """Return name and label of what the user may do with letters in a state."""
        allowed = self.get_actions(request)
        return [(name, label) for name, label in LABELS.items() if STATES[name] == state and name in allowed]

    def page(self, request: HttpRequest, template: str, context: Mapping[str, Any]) -> HttpResponse:
        """Return a page in the admin's frame."""
        request.current_app = self.admin_site.name
        return TemplateResponse(request, template, {**self.admin_site.each_context(request), "opts": self.opts, **context})

    def url(self, name: str, *arguments: Any) -> str:
        """Return the address of one of the pages about letters."""
        return str(reverse(f"admin:guardrails_archivedletter_{name}", args=arguments, current_app=self.admin_site.name))
