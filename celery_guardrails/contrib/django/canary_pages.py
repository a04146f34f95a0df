"""The admin's page of a replay in stages: how it stands, and what may be done with it."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import path

from celery_guardrails.dead_letters.canary import STAGES, sizes
from celery_guardrails.dead_letters.render import letters_text, printable
from celery_guardrails.errors import GuardrailsError

from . import pages
from .canarying import WATCH_SECONDS, Canaries, Look
from .models import ArchivedLetter, CanaryRun
from .pages import LetterPages

__all__ = ["CanaryPages"]

#: Seconds that a request may replay before it answers; what is left is for the next one.
REPLAY_SECONDS = 20.0
#: Seconds between two looks of an open page while a stage is watched.
_REFRESH = 5
_BIRDS_SHOWN = 20
_RUNS_SHOWN = 5


class CanaryPages(LetterPages):
    """Look at a canary; go on with it, or stop it, behind ``guardrails.canary_letter``."""

    def get_urls(self) -> list[Any]:
        """Return the admin's own addresses, and those of these pages."""
        view = self.admin_site.admin_view(self.canary_view)
        return [path("canary/<int:pk>/", view, name="guardrails_archivedletter_canary"), *super().get_urls()]

    def open_canaries(self) -> list[tuple[CanaryRun, str]]:
        """Return canaries that are not over, each with the address of its page."""
        runs = _runs().filter(state=CanaryRun.State.OPEN).order_by("-pk")[:_RUNS_SHOWN]
        return [(run, self.url("canary", run.pk)) for run in runs]

    # a replay commits letter by letter: not inside of ATOMIC_REQUESTS' one transaction
    @transaction.non_atomic_requests
    def canary_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Show how it stands; a POST goes on with it or stops it."""
        if not self.has_view_permission(request) or (request.method == "POST" and not self.has_canary_permission(request)):
            raise PermissionDenied
        run = _runs().filter(pk=pk).first()
        if run is None:
            messages.error(request, f"There is no canary {pk}.")
            return HttpResponseRedirect(self.url("changelist"))
        try:
            canaries = Canaries(pages.working_archive())
        except GuardrailsError as exc:
            return self._shown(request, run, Look(problem=printable(exc)), birds=())
        if request.method == "POST":
            return self._move(request, run, canaries)
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "POST"])
        look = canaries.look(run)
        return self._shown(request, run, look, birds=canaries.birds(run)[:_BIRDS_SHOWN])

    def _move(self, request: HttpRequest, run: CanaryRun, canaries: Canaries) -> HttpResponse:
        who, todo = request.user.get_username(), request.POST.get("do")
        if todo == "stop":
            if canaries.stop(run, who=who):
                messages.success(request, "Stopped. The letters that are left wait on, and are anybody's again.")
            else:
                messages.error(request, f"Nothing was done: it was {run.state} already.")
        elif todo == "go on" and request.POST.get("stage", "").isdecimal():
            why = canaries.go_on(run, int(request.POST["stage"]), who=who, seconds=REPLAY_SECONDS)
            if why:
                messages.warning(request, f"Not all was done: {printable(why)}")
        return HttpResponseRedirect(self.url("canary", run.pk))

    def _shown(self, request: HttpRequest, run: CanaryRun, look: Look, *, birds: Any) -> HttpResponse:
        is_open = run.state == run.State.OPEN
        rest = run.chosen - sum(stage["replayed"] for stage in json.loads(run.stages)) - run.moved
        context = {
            "title": f"Canary {run.pk}",
            "run": run,
            "look": look,
            "is_open": is_open,
            "stages": _stages(run, look),
            "state_text": _state_text(run, look),
            "failing": [printable(why) for why in look.failing[:3]],
            "birds": [(row, self.url("change", row.pk)) for row in birds] if is_open and run.stage < len(STAGES) - 1 else (),
            "letters_url": f"{self.url('changelist')}?canary__id__exact={run.pk}",
            "refresh": _REFRESH if is_open and look.watching else None,
            "may": self.has_canary_permission(request) and is_open,
            "next_text": _next_text(run, look) if look.may_go_on else "",
            "warning": look.may_go_on and look.sent and look.unheard,
            "rest": letters_text(max(0, rest)),
            "waiting": ArchivedLetter.State.WAITING,
        }
        return self.page(request, "guardrails/canary.html", context)


def _runs() -> Any:
    """Return the runs, where they are written: a copy of the database may be behind."""
    return CanaryRun.objects.using(pages.chosen_alias() or router.db_for_write(CanaryRun))


def _stages(run: CanaryRun, look: Look) -> list[dict[str, Any]]:
    """Return the three stages as they went, stand, and are planned."""
    rows: list[dict[str, Any]] = [{**stage, "is": "over"} for stage in json.loads(run.stages)]
    planned = sizes(run.chosen)
    before = sum(stage["replayed"] for stage in rows)
    for number in range(len(rows), len(STAGES)):
        unknown = dict.fromkeys(("replayed", "completed", "failed", "unheard"))
        row = {"name": STAGES[number], "size": planned[number], "is": "to come", **unknown}
        if number == run.stage:
            last = number == len(STAGES) - 1
            row |= {"is": "now" if run.state == run.State.OPEN else run.state, "replayed": run.moved, "size": look.size or planned[number]}
            row |= (
                {}
                if last or run.state != run.State.OPEN
                else {"completed": look.completed, "failed": len(look.failing), "unheard": look.unheard}
            )
        elif number == len(STAGES) - 1:
            row["size"] = "the rest"
        elif run.chosen - before <= 1:
            row["size"] = "-"
        rows.append(row)
    return rows


def _state_text(run: CanaryRun, look: Look) -> str:
    """Return in a sentence how it stands."""
    if run.state != run.State.OPEN:
        return printable(run.outcome)
    if look.problem:
        return f"Nobody can say how it stands, so it does not go on: {printable(look.problem)}"
    if not look.sent:
        return f"{run.moved} sent in this stage, {letters_text(look.left)} left."
    if look.failing:
        return "It is being watched: a canary has failed again, and waits for its retry."
    if look.watching:
        waited = f"{look.seconds:.0f} of {WATCH_SECONDS:.0f} s"
        return f"It is being watched: nothing has been heard of {look.unheard} of {look.size}, for {waited}."
    if look.unheard:
        return f"Nothing has been heard of {look.unheard} of {look.size} within {WATCH_SECONDS:.0f} s; none has died."
    return "The letter of this stage has completed." if look.size == 1 else f"All {look.size} of this stage have completed."


def _next_text(run: CanaryRun, look: Look) -> str:
    """Return what the button to go on says."""
    if not look.sent:
        return f"Send on: {letters_text(look.left)} left" if run.stage == len(STAGES) - 1 else "Send the rest of this stage"
    number = min(sizes(run.chosen)[run.stage + 1], look.left)
    return f"Go on with {STAGES[run.stage + 1]}: {letters_text(number)}"
