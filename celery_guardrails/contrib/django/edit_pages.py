"""The admin's pages to replay one letter with other arguments: a form, then what would change, then the replay."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path

from celery_guardrails.dead_letters.edit import Edited, Editor, edit_of_text, text_to_edit
from celery_guardrails.dead_letters.letter import DeadLetter
from celery_guardrails.dead_letters.render import printable
from celery_guardrails.errors import GuardrailsConfigError, GuardrailsError

from . import pages
from .archive import Archive
from .models import ArchivedLetter, AuditEntry
from .pages import LetterPages

__all__ = ["EditPages"]

_WAITING = ArchivedLetter.State.WAITING
#: Characters of a form's text that are looked at.
_TEXT_LIMIT = 1_000_000


class EditPages(LetterPages):
    """Edit and replay, behind ``guardrails.edit_letter``."""

    def get_urls(self) -> list[Any]:
        """Return the admin's own addresses, and those of these pages."""
        view = self.admin_site.admin_view(self.edit_view)
        return [path("<int:pk>/edit/", view, name="guardrails_archivedletter_edit"), *super().get_urls()]

    # the replay commits by itself: not inside of ATOMIC_REQUESTS' one transaction
    @transaction.non_atomic_requests
    def edit_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Show the form; sent back, what would change; confirmed, replay."""
        if not (self.has_view_permission(request) and self.has_edit_permission(request)):
            raise PermissionDenied
        row = self.get_object(request, str(pk))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, str(pk))
        back = HttpResponseRedirect(self.url("change", pk))
        try:
            archive = pages.working_archive()
            letter = archive.letter(row)
            original = text_to_edit(letter)
        except GuardrailsError as exc:
            messages.error(request, f"Nothing was done: {printable(exc)}")
            return back
        if row.state != _WAITING or row.canary_id is not None:
            where = "is in an open canary" if row.state == _WAITING else f"was {row.state} meanwhile"
            messages.error(request, f"Nothing was done: the letter {where}.")
            return back
        text = request.POST.get("text", original)[:_TEXT_LIMIT]
        force = request.POST.get("force") == "1"
        context = {
            "row": row,
            "text": text,
            "force": force,
            "signature": _signature(archive, letter),
            "back_url": back.url,
            "act_url": self.url("edit", pk),
            "title": f"Edit and replay {row.letter_id}",
        }
        if request.method != "POST" or "again" in request.POST:
            return self.page(request, "guardrails/edit.html", context)
        try:
            edited = _edited(archive, letter, text, force=force)
        except GuardrailsConfigError as exc:
            return self.page(request, "guardrails/edit.html", {**context, "error": printable(exc)})
        if request.POST.get("confirmed") != "edit":
            context |= {"edited": edited, "title": "Edit and replay: are you sure?", "destination": printable(letter.queue)}
            return self.page(request, "guardrails/edit_confirm.html", context)
        self._replay(request, archive, row, edited)
        return back

    def _replay(self, request: HttpRequest, archive: Archive, row: ArchivedLetter, edited: Edited) -> None:
        changes = [dict(zip(("argument", "old", "new"), change, strict=True)) for change in edited.changes]
        diff = {"changes": changes, **({"key": edited.key, "new_key": edited.new_key} if edited.key != edited.new_key else {})}
        waiting = ArchivedLetter.objects.using(archive.using).filter(pk=row.pk, state=_WAITING)
        trail = {"who": request.user.get_username(), "why": request.POST.get("why", "")[:2000], "selection": f"letter {row.letter_id}"}
        with archive.audited(AuditEntry.Action.EDIT, waiting, outcome=json.dumps(diff), **trail) as entry:
            try:
                sent = archive.send(row, edited.letter, edited.letter.queue)
            except Exception as exc:  # noqa: BLE001 - broker and database raise what they like; the letter waits on
                entry.outcome = json.dumps({**diff, "stopped": f"{type(exc).__name__}: {exc}"})
                messages.error(request, f"It was not replayed, and waits on: {printable(exc)}")
                return
            entry.letters = int(sent)
        if sent:
            messages.success(request, f"Replayed to {printable(edited.letter.queue)} with other arguments.")
        else:
            messages.error(request, "Nothing was done: somebody else was faster.")


def _edited(archive: Archive, letter: DeadLetter, text: str, *, force: bool) -> Edited:
    edit = edit_of_text(letter, text, force=force)
    edited = Editor(edit, tasks=archive.tasks, decoder=archive.decoder, redact=archive.redact, store=archive.store)(letter)
    if not edited.changes:
        raise GuardrailsConfigError("nothing was changed: to replay it as it is, use Replay")
    return edited


def _signature(archive: Archive, letter: DeadLetter) -> str:
    try:
        task = archive.tasks(letter.task)
    except Exception:  # noqa: BLE001 - finding a task imports a project's modules
        task = None
    return "" if task is None else printable(f"{task.name}{task.signature}", limit=1000)
