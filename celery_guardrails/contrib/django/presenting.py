"""What the admin's pages show, made ready for the templates (which escape it)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.utils.html import format_html, format_html_join

from celery_guardrails.dead_letters.archive import ArchivedGroup
from celery_guardrails.dead_letters.render import letters_text, plain, printable, shown
from celery_guardrails.dead_letters.reports import ReplayReport

from .models import ArchivedLetter
from .moments import moment_of

__all__ = ["Attempt", "GroupRow", "attempts_of", "group_query", "group_rows", "letter_sections", "life_of", "skipped_text", "sparkline"]

_BAR, _HEIGHT = 4, 22
#: Shown in a place of their own.
_ELSEWHERE = (
    *("traceback", "error", "message", "args", "kwargs", "headers", "properties", "undecoded", "body"),
    *("history", "previous_deaths", "edited"),
)


@dataclass(frozen=True)
class GroupRow:
    """A group as a row of a table.

    Args:
        group: it is.
        error: its class.
        message: the sample's, in a line.
        tasks: names.
        first: first death.
        last: last death.
        trend: SVG.
        query: the query string that lists its letters.
    """

    group: ArchivedGroup
    error: str
    message: str
    tasks: str
    first: datetime | None
    last: datetime | None
    trend: str
    query: str


def group_query(group: Any, state: str) -> str:
    """Return the query string that lists the letters of a group (or of the group of a row) in one state."""
    return urlencode({"reason": group.reason, "error__exact": group.error, "fingerprint__exact": group.fingerprint, "state__exact": state})


def group_rows(groups: Iterable[ArchivedGroup], state: str) -> list[GroupRow]:
    """Return groups of letters in one state as rows."""
    return [
        GroupRow(
            group=group,
            error=printable(group.error or group.reason),
            message=printable(group.message.partition("\n")[0], limit=160),
            tasks=printable(", ".join(task or "no task's name" for task in group.tasks), limit=200),
            first=moment_of(group.first_seen),
            last=moment_of(group.last_seen),
            trend=sparkline(group.trend),
            query=group_query(group, state),
        )
        for group in groups
    ]


def sparkline(counts: Sequence[int]) -> str:
    """Return counts as small bars in SVG, the oldest on the left."""
    highest = max((*counts, 1))
    bars = []
    for place, count in enumerate(counts):
        height = max(2, round(count / highest * _HEIGHT)) if count else 1
        bars.append((place * _BAR, _HEIGHT - height, _BAR - 1, height, "guardrails-bar" if count else "guardrails-none"))
    said = f"{sum(counts)} in the last {len(counts)} hours, at most {max((*counts, 0))} in one"
    inside = format_html_join("", '<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>', bars)
    svg: str = format_html(
        '<svg class="guardrails-trend" viewBox="0 0 {} {}" width="{}" height="{}" role="img"><title>{}</title>{}</svg>',
        len(counts) * _BAR,
        _HEIGHT,
        len(counts) * _BAR,
        _HEIGHT,
        said,
        inside,
    )
    return svg


def letter_sections(data: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return what is known of a letter under headings: rows of a name, a text, and whether it has lines.

    Args:
        data: of :func:`~celery_guardrails.dead_letters.render.letter_data`, in full.
    """
    facts = [(name.replace("_", " "), shown(value), False) for name, value in data.items() if name not in _ELSEWHERE]
    if data["undecoded"]:
        arguments = [("not decoded", printable(data["undecoded"]), False), ("body", printable(data["body"]), False)]
    else:
        arguments = [("positional", _pretty(data["args"]), True), ("named", _pretty(data["kwargs"]), True)]
    headers = [(printable(name), shown(value), False) for name, value in data["headers"].items()]
    properties = [(printable(name), shown(value), False) for name, value in data["properties"].items()]
    return [("Arguments", arguments), ("Letter", facts), ("Headers", headers), ("Properties", properties)]


@dataclass(frozen=True)
class Attempt:
    """An attempt that failed, as a block that can be opened.

    Args:
        name: which one.
        at: when it failed.
        error: class and message.
        traceback: its end, or "".
        skipped: attempts before it that were left out to save room.
        last: whether the letter died of it.
    """

    name: str
    at: datetime | None
    error: str
    traceback: str
    skipped: int = 0
    last: bool = False


def attempts_of(data: Mapping[str, Any]) -> list[Attempt]:
    """Return the attempts that failed, the last one first.

    Args:
        data: of :func:`~celery_guardrails.dead_letters.render.letter_data`, in full.
    """
    found = []
    if data["traceback"] or data["history"]:
        found.append(Attempt("The last attempt", _moment(data["last_seen"]), _error(data), _lines(data["traceback"]), last=True))
    for past in reversed(data["history"]):
        name = f"Attempt {past['attempt']}" if past["attempt"] else "An attempt"
        found.append(Attempt(name, _moment(past["at"]), _error(past), _lines(past["traceback"]), past["skipped"]))
    return found


def _error(data: Mapping[str, Any]) -> str:
    return printable(f"{data['error']}: {data['message']}".strip(": ").partition("\n")[0], limit=300)


def _lines(text: str) -> str:
    return printable(text, lines=True).rstrip()


def _moment(text: str | None) -> datetime | None:
    return moment_of(None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


def life_of(row: ArchivedLetter, data: Mapping[str, Any]) -> list[tuple[datetime | None, str]]:
    """Return what happened to a letter, the oldest first.

    Args:
        row: the letter's.
        data: of :func:`~celery_guardrails.dead_letters.render.letter_data`, in full.
    """
    tries = f"{row.attempts} attempt{'' if row.attempts == 1 else 's'}"
    crashes = f", {row.crashes} worker{'' if row.crashes == 1 else 's'} lost" if row.crashes else ""
    worker = f" on {printable(row.worker)}" if row.worker else ""
    deaths = [
        (_moment(death["at"]), printable(f"died before, {death['reason']} {death['error']}".rstrip(), limit=300) + ", and was replayed")
        for death in data["previous_deaths"]
    ]
    life = [
        *deaths,
        (row.first_seen, "published" + (f" (replayed {row.replays} time{'' if row.replays == 1 else 's'} since)" if row.replays else "")),
        (row.died_at, f"died, {row.reason}, after {tries}{crashes}{worker}"),
        (row.archived_at, f"archived from {printable(row.dead_letter_queue)}"),
    ]
    if row.state != ArchivedLetter.State.WAITING:
        life.append((row.changed_at, row.state))
    if row.note:
        life.append((None, printable(row.note)))
    return life


def skipped_text(report: ReplayReport) -> str:
    """Return which letters of a replay are left alone, and why."""
    parts = []
    if report.skipped_max_replays:
        parts.append(f"{letters_text(report.skipped_max_replays)} replayed too often before")
    if report.skipped_hopeless:
        parts.append(
            f"{letters_text(report.skipped_hopeless)} that would only die again (select them one by one, or filter by their reason)"
        )
    return f"Left alone: {'; '.join(parts)}." if parts else ""


def _pretty(value: Any) -> str:
    return printable(json.dumps(plain(value), indent=2, ensure_ascii=False), lines=True, limit=20_000)
