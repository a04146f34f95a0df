"""Dead letters in Django's admin: groups, the letters of a group, one letter; replay, canary, edit, discard, restore."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.formats import date_format
from django.utils.timezone import template_localtime

from celery_guardrails.dead_letters.render import letter_data, letters_text, printable
from celery_guardrails.dead_letters.reports import ReplayReport
from celery_guardrails.errors import GuardrailsError

from . import pages
from .archive import Archive
from .canary_pages import REPLAY_SECONDS, CanaryPages
from .canarying import Canaries
from .confirming import canary_plan, replay_plan
from .edit_pages import EditPages
from .models import ArchivedLetter, AuditEntry
from .pages import LABELS, STATES, LookOnly, selection_of
from .presenting import attempts_of, group_query, group_rows, letter_sections, life_of, skipped_text

__all__ = ["ArchivedLetterAdmin", "AuditEntryAdmin"]

_GROUPS_SHOWN = 200
_State = ArchivedLetter.State
_CONFIRMED = "confirmed"


@admin.register(ArchivedLetter)
class ArchivedLetterAdmin(CanaryPages, EditPages):
    """Archived dead letters; the index shows groups."""

    change_list_template = "guardrails/letters.html"
    list_display = ("letter_id", "died", "task", "failure", "state")
    list_filter = ("state", "reason", "queue", "task")
    search_fields = ("=letter_id", "=task_id", "key", "task", "error", "message")
    search_help_text = "Letter, task id, key, task, or what the error says"
    ordering = ("-pk",)
    actions = ("replay", "canary", "discard", "restore")

    def get_queryset(self, request: HttpRequest) -> Any:
        """Return letters without what only the page of a letter shows."""
        return super().get_queryset(request).defer("body", "headers", "properties", "certificate")

    # -- pages --------------------------------------------------------------------------------------------------

    # a replay commits letter by letter: not inside of ATOMIC_REQUESTS' one transaction
    @transaction.non_atomic_requests
    def changelist_view(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        """Show the groups; with a filter the letters."""
        if request.method == "GET" and set(request.GET) <= {"groups"}:
            return self._groups_view(request)
        return super().changelist_view(request, {"groups_url": self.url("changelist"), **(extra_context or {})})

    def _groups_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        states = [name for name, _ in _State.choices]
        state = request.GET.get("groups", _State.WAITING)
        if state not in states:
            state = _State.WAITING
        found = pages.reading_archive().groups(state=state)
        context = {
            "title": "Dead letters by what they died of",
            "groups": group_rows(found[:_GROUPS_SHOWN], state),
            "left_out": max(0, len(found) - _GROUPS_SHOWN),
            "number": sum(group.count for group in found),
            "state": state,
            "states": states,
            "buttons": self.buttons(request, state),
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
            "all_url": "?" + urlencode({"state__exact": state}),
            "audit_url": self._audit_url(request),
            "canaries": self.open_canaries() if state == _State.WAITING else (),
        }
        return self.page(request, "guardrails/groups.html", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Mapping[str, Any] | None = None
    ) -> HttpResponse:
        """Show one letter."""
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        letter = pages.reading_archive().letter(row)
        data = letter_data(letter, full=True)
        held = row.state == _State.WAITING and row.canary_id is not None
        others = self.get_queryset(request).filter(task_id=row.task_id).exclude(pk=row.pk).order_by("-pk") if row.task_id else ()
        context = {
            "title": f"Dead letter {row.letter_id}",
            "row": row,
            "heading": printable(f"{row.error}: {letter.shown_message}".strip(": "), limit=1000),
            "attempts": attempts_of(data),
            "changes": [tuple(map(printable, change.values())) for change in data.get("edited", ())],
            "sections": letter_sections(data),
            "life": life_of(row, data),
            "others": others[:20],
            "group_url": self.url("changelist") + "?" + group_query(row, row.state),
            "act_url": self.url("changelist") + "?" + urlencode({"id__exact": row.pk}),
            "canary": row.canary_id and self.url("canary", row.canary_id),
            "held": held,
            "buttons": [] if held else [button for button in self.buttons(request, row.state) if button[0] != "canary"],
            "edit_url": self.url("edit", row.pk) if self._may_edit(request, row) and not held else None,
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
            **(extra_context or {}),
        }
        return self.page(request, "guardrails/letter.html", context)

    def _may_edit(self, request: HttpRequest, row: ArchivedLetter) -> bool:
        return row.state == _State.WAITING and self.has_edit_permission(request)

    @admin.display(description="died", ordering="died_at")
    def died(self, row: ArchivedLetter) -> str:
        """Return the time of death, in little room."""
        return _short(row.died_at)

    @admin.display(description="error")
    def failure(self, row: ArchivedLetter) -> str:
        """Return the error in a line."""
        message = pages.reading_archive().redact(row.message)
        return printable(f"{row.error}: {message}".strip(": ").partition("\n")[0], limit=120)

    def _audit_url(self, request: HttpRequest) -> str | None:
        if not request.user.has_perm("guardrails.view_auditentry"):
            return None
        return str(reverse("admin:guardrails_auditentry_changelist", current_app=self.admin_site.name))

    # -- actions ------------------------------------------------------------------------------------------------

    @admin.action(permissions=["replay"], description="Replay selected letters")
    def replay(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Publish letters into their queues, after asking."""
        return self._ask_or_act(request, queryset, "replay")

    @admin.action(permissions=["canary"], description="Replay selected letters as a canary, in stages")
    def canary(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Begin a replay in stages, after asking."""
        return self._ask_or_act(request, queryset, "canary")

    @admin.action(permissions=["discard"], description="Discard selected letters")
    def discard(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Set letters aside, after asking."""
        return self._ask_or_act(request, queryset, "discard")

    @admin.action(permissions=["restore"], description="Restore selected discarded letters")
    def restore(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Let discarded letters wait again, after asking."""
        return self._ask_or_act(request, queryset, "restore")

    def _ask_or_act(self, request: HttpRequest, queryset: Any, action: str) -> HttpResponse | None:
        everything = request.POST.get("select_across") == "1"
        # letters that nobody could read want to be asked for by name or by their reason
        hopeless = not everything or "reason" in request.GET
        try:
            archive = pages.working_archive()
            rows = queryset.using(archive.using).defer(None).filter(state=STATES[action])
            if request.POST.get(_CONFIRMED) != action:
                return self._confirmation(request, rows, action, archive, hopeless)
            rows = rows.filter(pk__lte=int(request.POST["newest"]))  # not what came in since the question
            return self._act(request, archive.table.free(rows), action, archive, hopeless)
        except (GuardrailsError, KeyError, ValueError) as exc:
            messages.error(request, f"Nothing was done: {printable(exc)}")
            return HttpResponseRedirect(request.get_full_path())

    def _confirmation(self, request: HttpRequest, rows: Any, action: str, archive: Archive, hopeless: bool) -> HttpResponse:
        newest = rows.order_by("-pk").values_list("pk", flat=True).first()
        chosen = archive.table.free(rows)
        context = {
            "title": f"{LABELS[action]}: are you sure?",
            "action": action,
            "label": LABELS[action],
            "number": chosen.count(),
            "held": rows.filter(state=_State.WAITING, canary__isnull=False).count(),
            "newest": newest or 0,
            "groups": group_rows(archive.groups_of(chosen, limit=20), STATES[action]),
            "selected": request.POST.getlist(helpers.ACTION_CHECKBOX_NAME),
            "everything": "1" if request.POST.get("select_across") == "1" else "0",
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
            "act_url": request.get_full_path(),
            "back_url": self._after(request),
        }
        if action == "replay":
            context |= replay_plan(archive, chosen, hopeless=hopeless)
        elif action == "canary":
            context |= canary_plan(archive, chosen)
        return self.page(request, "guardrails/confirm.html", context)

    def _act(self, request: HttpRequest, rows: Any, action: str, archive: Archive, hopeless: bool) -> HttpResponse:
        trail = {"who": request.user.get_username(), "why": request.POST.get("why", "")[:2000], "selection": selection_of(request)}
        if action == "canary":
            run, problem = Canaries(archive).start(rows, seconds=REPLAY_SECONDS, **trail)
            if problem:
                messages.error(request, f"The first letter was not replayed: {printable(problem)}")
            return HttpResponseRedirect(self.url("canary", run.pk))
        if action == "discard":
            done = archive.discard(rows, **trail).discarded
            messages.success(request, f"Discarded {letters_text(done)}; they can be restored until retention deletes them.")
        elif action == "restore":
            messages.success(request, f"Restored {letters_text(archive.restore(rows, **trail))}: they wait again.")
        else:
            self._tell(request, archive.replay(rows, hopeless=hopeless, seconds=REPLAY_SECONDS, **trail), rows)
        return HttpResponseRedirect(self._after(request))

    def _tell(self, request: HttpRequest, report: ReplayReport, rows: Any) -> None:
        to = ", ".join(f"{printable(queue)} ({number})" for queue, number in sorted(report.destinations.items()))
        text = f"Replayed {letters_text(report.replayed)}" + (f" to {to}." if to else ".")
        messages.success(request, text)
        if report.skipped:
            messages.warning(request, skipped_text(report))
        for failure in report.failures[:3]:
            messages.error(request, f"{failure.id} was not replayed: {printable(failure.why)}")
        if report.failed > 3:
            messages.error(request, f"{report.failed} letters were not replayed; they wait on.")
        if report.stopped:
            left = rows.filter(state=_State.WAITING).count()
            messages.warning(request, f"Stopped: {printable(report.stopped)}. {letters_text(left)} wait on: do it again to go on.")

    def _after(self, request: HttpRequest) -> str:
        """Return the page that one comes from: of a letter, the groups, or the list."""
        if "id__exact" in request.GET:
            return self.url("change", request.GET["id__exact"])
        if request.POST.get("select_across") == "1" and "fingerprint__exact" in request.GET:
            return self.url("changelist")
        return str(request.get_full_path())


def _short(moment: datetime | None) -> str:
    return str(date_format(template_localtime(moment), "SHORT_DATETIME_FORMAT")) if moment else "-"


@admin.register(AuditEntry)
class AuditEntryAdmin(LookOnly):
    """The audit trail."""

    list_display = ("moment", "who", "action", "letters", "change", "why", "selection")
    list_filter = ("action", "who")
    search_fields = ("who", "selection", "why")

    @admin.display(description="when", ordering="at")
    def moment(self, entry: AuditEntry) -> str:
        """Return when it was, in little room."""
        return _short(entry.at)

    @admin.display(description="before, after")
    def change(self, entry: AuditEntry) -> str:
        """Return how many letters there were before and after; of a run that was killed only before."""
        return f"{entry.before} \N{RIGHTWARDS ARROW} {'?' if entry.after is None else entry.after}"
