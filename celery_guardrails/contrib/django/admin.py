"""Dead letters in Django's admin: groups, the letters of a group, one letter; replay, canary replay, discard, restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.formats import date_format
from django.utils.timezone import template_localtime

from celery_guardrails.dead_letters.decoder import KombuDecoder
from celery_guardrails.dead_letters.render import letter_data, letters_text, printable
from celery_guardrails.dead_letters.reports import ReplayReport
from celery_guardrails.errors import GuardrailsError
from celery_guardrails.integration.app import ensure_guardrails
from celery_guardrails.integration.clock import SystemClock

from .apps import celery_app
from .archive import Archive
from .click_command import project_app
from .models import ArchivedLetter, AuditEntry
from .presenting import group_query, group_rows, letter_sections, life_of, skipped_text

__all__ = ["ArchivedLetterAdmin", "AuditEntryAdmin"]

#: Seconds that a request may replay before it answers; what is left is for the next one.
REPLAY_SECONDS = 20.0
#: Letters that a confirmation page looks into one by one.
LOOKED_INTO = 1000
_GROUPS_SHOWN = 200
_State = ArchivedLetter.State
_CONFIRMED = "confirmed"
#: Permission by action.
_PERMISSIONS = {"replay": "replay", "canary": "replay", "discard": "discard", "restore": "restore"}
_LABELS = {"replay": "Replay", "canary": "Replay one as a canary", "discard": "Discard", "restore": "Restore"}
_FROM = {"replay": _State.WAITING, "canary": _State.WAITING, "discard": _State.WAITING, "restore": _State.DISCARDED}


def reading_archive() -> Archive:
    """Return the archive to look at; neither broker nor store need to be there."""
    app = celery_app()
    decoder = KombuDecoder(app.conf.accept_content if app is not None else ["json"])
    return Archive(None, None, clock=SystemClock(), decoder=decoder)


def working_archive() -> Archive:
    """Return the archive of the project's Celery app.

    Raises:
        GuardrailsError: there is no app, or what it needs is not configured or away.
    """
    return Archive.of(ensure_guardrails(project_app()))


class LookOnly(admin.ModelAdmin):
    """Nothing is added, changed or deleted by hand."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False


@admin.register(ArchivedLetter)
class ArchivedLetterAdmin(LookOnly):
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

    # -- permissions --------------------------------------------------------------------------------------------

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Whether the user may replay."""
        return bool(request.user.has_perm("guardrails.replay_letter"))

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Whether the user may discard."""
        return bool(request.user.has_perm("guardrails.discard_letter"))

    def has_restore_permission(self, request: HttpRequest) -> bool:
        """Whether the user may restore."""
        return bool(request.user.has_perm("guardrails.restore_letter"))

    def _buttons(self, request: HttpRequest, state: str) -> list[tuple[str, str]]:
        allowed = self.get_actions(request)
        return [(name, label) for name, label in _LABELS.items() if _FROM[name] == state and name in allowed]

    # -- pages --------------------------------------------------------------------------------------------------

    # a replay commits letter by letter: not inside of ATOMIC_REQUESTS' one transaction
    @transaction.non_atomic_requests
    def changelist_view(self, request: HttpRequest, extra_context: Mapping[str, Any] | None = None) -> HttpResponse:
        """Show the groups; with a filter the letters."""
        if request.method == "GET" and set(request.GET) <= {"groups"}:
            return self._groups_view(request)
        return super().changelist_view(request, {"groups_url": self._url("changelist"), **(extra_context or {})})

    def _groups_view(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        states = [name for name, _ in _State.choices]
        state = request.GET.get("groups", _State.WAITING)
        if state not in states:
            state = _State.WAITING
        found = reading_archive().groups(state=state)
        context = {
            "title": "Dead letters by what they died of",
            "groups": group_rows(found[:_GROUPS_SHOWN], state),
            "left_out": max(0, len(found) - _GROUPS_SHOWN),
            "number": sum(group.count for group in found),
            "state": state,
            "states": states,
            "buttons": self._buttons(request, state),
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
            "all_url": "?" + urlencode({"state__exact": state}),
            "audit_url": self._audit_url(request),
        }
        return self._page(request, "guardrails/groups.html", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Mapping[str, Any] | None = None
    ) -> HttpResponse:
        """Show one letter."""
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        letter = reading_archive().letter(row)
        data = letter_data(letter, full=True)
        others = ArchivedLetter.objects.filter(task_id=row.task_id).exclude(pk=row.pk).order_by("-pk") if row.task_id else ()
        context = {
            "title": f"Dead letter {row.letter_id}",
            "row": row,
            "heading": printable(f"{row.error}: {row.message}".strip(": "), limit=1000),
            "traceback": printable(data["traceback"], lines=True),
            "sections": letter_sections(data),
            "life": life_of(row),
            "others": others[:20],
            "group_url": self._url("changelist") + "?" + group_query(row, row.state),
            "act_url": self._url("changelist") + "?" + urlencode({"id__exact": row.pk}),
            "buttons": [button for button in self._buttons(request, row.state) if button[0] != "canary"],
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
            **(extra_context or {}),
        }
        return self._page(request, "guardrails/letter.html", context)

    @admin.display(description="died", ordering="died_at")
    def died(self, row: ArchivedLetter) -> str:
        """Return the time of death, in little room."""
        return _short(row.died_at)

    @admin.display(description="error")
    def failure(self, row: ArchivedLetter) -> str:
        """Return the error in a line."""
        return printable(f"{row.error}: {row.message}".strip(": ").partition("\n")[0], limit=120)

    def _page(self, request: HttpRequest, template: str, context: Mapping[str, Any]) -> HttpResponse:
        request.current_app = self.admin_site.name
        return TemplateResponse(request, template, {**self.admin_site.each_context(request), "opts": self.opts, **context})

    def _url(self, page: str, *arguments: Any) -> str:
        return str(reverse(f"admin:guardrails_archivedletter_{page}", args=arguments, current_app=self.admin_site.name))

    def _audit_url(self, request: HttpRequest) -> str | None:
        if not request.user.has_perm("guardrails.view_auditentry"):
            return None
        return str(reverse("admin:guardrails_auditentry_changelist", current_app=self.admin_site.name))

    # -- actions ------------------------------------------------------------------------------------------------

    @admin.action(permissions=["replay"], description="Replay selected letters")
    def replay(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Publish letters into their queues, after asking."""
        return self._ask_or_act(request, queryset, "replay")

    @admin.action(permissions=["replay"], description="Replay the newest selected letter as a canary")
    def canary(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        """Publish one letter, after asking."""
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
            archive = working_archive()
            rows = queryset.using(archive.using).defer(None).filter(state=_FROM[action])
            if request.POST.get(_CONFIRMED) != action:
                return self._confirmation(request, rows, action, archive, hopeless)
            rows = rows.filter(pk__lte=int(request.POST["newest"]))  # not what came in since the question
            return self._act(request, rows, action, archive, hopeless)
        except (GuardrailsError, KeyError, ValueError) as exc:
            messages.error(request, f"Nothing was done: {printable(exc)}")
            return HttpResponseRedirect(request.get_full_path())

    def _confirmation(self, request: HttpRequest, rows: Any, action: str, archive: Archive, hopeless: bool) -> HttpResponse:
        newest = rows.order_by("-pk").values_list("pk", flat=True).first()
        replays = _PERMISSIONS[action] == "replay"
        looked = (
            archive.replay(rows, who="", dry_run=True, canary=action == "canary", hopeless=hopeless, limit=LOOKED_INTO) if replays else None
        )
        context = {
            "title": f"{_LABELS[action]}: are you sure?",
            "action": action,
            "label": _LABELS[action],
            "number": rows.count(),
            "newest": newest or 0,
            "groups": group_rows(archive.groups_of(rows, limit=20), _FROM[action]),
            "destinations": sorted((looked.destinations if action == "canary" else archive.destinations(rows)).items()) if looked else (),
            "looked": looked,
            "looked_into": LOOKED_INTO,
            "skipped": skipped_text(looked) if looked else "",
            "selected": request.POST.getlist(helpers.ACTION_CHECKBOX_NAME),
            "everything": "1" if request.POST.get("select_across") == "1" else "0",
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
            "act_url": request.get_full_path(),
            "back_url": self._after(request),
        }
        return self._page(request, "guardrails/confirm.html", context)

    def _act(self, request: HttpRequest, rows: Any, action: str, archive: Archive, hopeless: bool) -> HttpResponse:
        trail = {"who": request.user.get_username(), "why": request.POST.get("why", "")[:2000], "selection": _selection(request)}
        if action == "discard":
            done = archive.discard(rows, **trail).discarded
            messages.success(request, f"Discarded {letters_text(done)}; they can be restored until retention deletes them.")
        elif action == "restore":
            messages.success(request, f"Restored {letters_text(archive.restore(rows, **trail))}: they wait again.")
        else:
            report = archive.replay(rows, canary=action == "canary", hopeless=hopeless, seconds=REPLAY_SECONDS, **trail)
            self._tell(request, report, action, rows)
        return HttpResponseRedirect(self._after(request))

    def _tell(self, request: HttpRequest, report: ReplayReport, action: str, rows: Any) -> None:
        to = ", ".join(f"{printable(queue)} ({number})" for queue, number in sorted(report.destinations.items()))
        text = f"Replayed {letters_text(report.replayed)}" + (f" to {to}." if to else ".")
        if action == "canary" and report.replayed:
            text += " See whether its task completes or the letter comes back, then replay the rest."
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
            return self._url("change", request.GET["id__exact"])
        if request.POST.get("select_across") == "1" and "fingerprint__exact" in request.GET:
            return self._url("changelist")
        return str(request.get_full_path())


def _short(moment: datetime | None) -> str:
    return str(date_format(template_localtime(moment), "SHORT_DATETIME_FORMAT")) if moment else "-"


def _selection(request: HttpRequest) -> str:
    chosen: Sequence[str] = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    by = ", ".join(f"{name.removesuffix('__exact')} = {value}" for name, value in request.GET.items())
    if request.POST.get("select_across") == "1":
        return f"all of: {by or 'everything'}"
    return f"{len(chosen)} selected: {', '.join(chosen[:20])}{' …' if len(chosen) > 20 else ''}"


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
