"""Dead letters as text for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain, islice
from typing import Any

from ..policy.delivery import DEAD_LETTER_HEADER, TRAVEL_HEADER
from ..policy.lease import Record
from ..policy.printing import printable
from ..policy.progress import PROGRESS
from ..stores.codec import progress_of
from .letter import DeadLetter
from .reports import DiscardReport, Group, ReplayReport

__all__ = [
    "failure_lines",
    "fields_text",
    "group_data",
    "letter_data",
    "letter_text",
    "letters_text",
    "moment",
    "plain",
    "printable",
    "progress_data",
    "record_data",
    "replay_lines",
    "report_data",
    "shown",
    "table",
]

#: Rows that are looked at to find the width of the columns; later ones may stick out, and are never held in memory.
_SAMPLE = 100
#: Characters of one value, and of one body, that are shown to people.
_VALUE_LIMIT = 2_000
_BODY_SHOWN = 200
#: Headers that repeat the arguments, unredacted, or are shown elsewhere.
_CHANGE = ("argument", "old", "new")
_HIDDEN_HEADERS = (DEAD_LETTER_HEADER, "argsrepr", "kwargsrepr")


def moment(seconds: float | None) -> str | None:
    """Return unix time in seconds as ISO 8601 in UTC, which ``--since`` takes, or None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(value: object) -> str:
    """Return a value of one of the mappings below as one line for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, str):
        return printable(value, limit=_VALUE_LIMIT)
    return printable(json.dumps(plain(value), ensure_ascii=False), limit=_VALUE_LIMIT)


def plain(value: Any) -> Any:
    """Return a value of JSON types only, whatever a serializer made."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return ascii(value)[2:-1] if isinstance(value, (bytes, bytearray)) else str(value)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, width: int | None = None) -> Iterator[str]:
    """Yield the lines of a table.

    Args:
        titles: of the columns; the last column takes what room is left.
        rows: cells; made printable here. They are read as they are needed.
        width: characters of a line, or None for as many as it takes.
    """
    texts = ([printable("-" if cell is None or cell == "" else cell, limit=_VALUE_LIMIT) for cell in row] for row in rows)
    sample = list(islice(texts, _SAMPLE))
    widths = [max(len(title), *(len(row[column]) for row in sample)) if sample else len(title) for column, title in enumerate(titles)]
    for row in chain([list(titles)], sample, texts):
        line = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        yield line if width is None or len(line) <= width else line[: width - 1] + "…"


def letter_data(letter: DeadLetter, *, full: bool = False) -> dict[str, Any]:
    """Return a letter as values of JSON types.

    Args:
        letter: the letter.
        full: with its arguments, redacted, its headers and properties, its traceback, and what went before.
    """
    certificate = letter.certificate
    data: dict[str, Any] = {
        "id": letter.id,
        "task": letter.task,
        "task_id": letter.task_id,
        "key": letter.key,
        "reason": letter.reason,
        "error": certificate.error,
        "message": letter.shown_message,
        "fingerprint": certificate.fingerprint,
        "attempts": certificate.attempts,
        "crashes": certificate.crashes,
        "replays": letter.replays,
        "first_seen": moment(certificate.first_seen),
        "last_seen": moment(certificate.last_seen),
        "worker": certificate.worker,
        "queue": letter.queue,
        "dead_letter_queue": letter.dead_letter_queue,
        "exchange": certificate.exchange,
        "routing_key": certificate.routing_key,
        "content_type": letter.message.content_type,
        "size": letter.size,
        "place": letter.place,
        "state": letter.state,
    }
    if not full:
        return data
    payload = letter.shown_payload()
    data["args"] = list(payload.args)
    data["kwargs"] = dict(payload.kwargs)
    data["undecoded"] = payload.error or None
    if payload.error:
        data["body"] = letter.redact(ascii(letter.message.body[:_BODY_SHOWN])[2:-1] + ("…" if letter.size > _BODY_SHOWN else ""))
    data["headers"] = letter.redact(_shown_headers(letter.message.headers))
    data["properties"] = letter.redact(dict(letter.message.properties))
    data["traceback"] = letter.redact(certificate.traceback)
    data["previous_deaths"] = [{**vars(death), "at": moment(death.at)} for death in letter.travel.deaths]
    history = certificate.redacted(letter.redact).history
    data["history"] = [{**vars(past), "at": moment(past.at)} for past in history]
    if letter.travel.edited:
        data["edited"] = [dict(zip(_CHANGE, change, strict=True)) for change in letter.travel.edited]
    return data


def _shown_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    shown_headers = {name: value for name, value in headers.items() if name not in _HIDDEN_HEADERS}
    travel = shown_headers.get(TRAVEL_HEADER)
    if isinstance(travel, Mapping):
        shown_headers[TRAVEL_HEADER] = {name: value for name, value in travel.items() if name not in ("history", "deaths")}
    return shown_headers


def letter_text(letter: DeadLetter) -> Iterator[str]:
    """Yield the lines that show one letter to people."""
    data = letter_data(letter, full=True)
    traceback, deaths, history = data.pop("traceback"), data.pop("previous_deaths"), data.pop("history")
    yield from fields_text({name: value for name, value in data.items() if value is not None})
    if traceback:
        yield ""
        yield from _lines(traceback)
    for past in reversed(history):
        yield ""
        failure = printable(f"{past['error']}: {past['message']}".strip(": "), limit=_VALUE_LIMIT)
        yield f"attempt {past['attempt']}, {past['at'] or '-'}: {failure}"
        yield from _lines(past["traceback"])
        if past["skipped"]:
            yield ""
            yield f"… attempts that were left out to save room: {past['skipped']}"
    if deaths:
        yield ""
    for number, death in enumerate(deaths, 1):
        yield f"death {number}, {death['at'] or '-'}: {printable(death['reason'])} {printable(death['error'])}".rstrip()


def _lines(text: str) -> list[str]:
    return printable(text, lines=True).rstrip().split("\n") if text else []


def fields_text(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each field of one of the mappings here."""
    width = max(map(len, data))
    for name, value in data.items():
        yield f"{name.replace('_', ' ').ljust(width)}  {shown(value)}"


def group_data(group: Group) -> dict[str, Any]:
    """Return a group as values of JSON types."""
    data = {**group.__dict__, "tasks": list(group.tasks), "queues": list(group.queues)}
    return {**data, "first_seen": moment(group.first_seen), "last_seen": moment(group.last_seen)}


def report_data(report: ReplayReport | DiscardReport) -> Mapping[str, Any]:
    """Return a report as values of JSON types."""
    data = {**report.__dict__, "missing": list(report.missing), "stopped": report.stopped or None}
    data["failures"] = [failure.__dict__ for failure in report.failures]
    if isinstance(report, ReplayReport):
        del data["edited"], data["edits"], data["canary"]
        data.update(_special_data(report))
    return data


def _special_data(report: ReplayReport) -> Iterator[tuple[str, Any]]:
    """Yield what there is only where it was asked for."""
    if report.edited:
        yield "edited", report.edited
        yield (
            "edits",
            [{**note.__dict__, "changes": [dict(zip(_CHANGE, change, strict=True)) for change in note.changes]} for note in report.edits],
        )
    if report.canary is not None:
        stages = [stage.__dict__ for stage in report.canary.stages]
        last = stages[-1]["name"] if stages else None
        yield "canary", {**report.canary.__dict__, "stages": stages, "stage": last, "why": report.canary.why or None}


def record_data(key: str, record: Record) -> dict[str, Any]:
    """Return what a store remembers of a key as values of JSON types; of the result only its size."""
    data = {"key": key, **record.__dict__, "state": record.state.value}
    result = record.result
    data["until"], data["claimed_at"] = moment(record.until or None), moment(record.claimed_at or None)
    data["steps"] = _steps(record)
    data.update(progress_data(record))
    data["result"] = None if result is None else {"task_id": result.task_id, "kept": result.has_value, "bytes": len(result.data)}
    return data


def lease_data(key: str, record: Record, now: float) -> dict[str, Any]:
    """Return a lease as values of JSON types; ``age`` and ``left`` are seconds, times unix time in seconds."""
    return {
        "key": key,
        "holder": record.holder,
        "owner": record.owner,
        "claimed_at": record.claimed_at,
        "until": record.until,
        "age": max(0.0, now - record.claimed_at),
        "left": record.until - now,
        "fence": record.fence,
        "attempts": record.attempts,
        "crashes": record.crashes,
        "steps": _steps(record),
        **progress_data(record),
    }


def _steps(record: Record) -> list[str]:
    return sorted(name for name in record.steps if name != PROGRESS)


def progress_data(record: Record) -> dict[str, Any]:
    """Return how far the loops of a key have come as values of JSON types; nothing where it has none.

    The cursor is that of the loop without a name, or a mapping of the names.
    """
    progress = progress_of(record.steps)
    if progress is None:
        return {}
    cursors = dict(progress.cursors)
    cursor = cursors.get("") if set(cursors) <= {""} else cursors
    return {"cursor": plain(cursor), "items": progress.items, "saved_at": moment(progress.saved_at), "stalls": progress.stalls}


def letters_text(number: int) -> str:
    """Return a number of dead letters in words."""
    return f"{number} dead letter{'' if number == 1 else 's'}"


def replay_lines(report: ReplayReport, max_replays: int) -> Iterator[str]:
    """Yield the lines that tell people what a replay did; what failed is told by :func:`failure_lines`."""
    yield f"{'would replay' if report.dry_run else 'replayed'} {report.replayed} of {letters_text(report.total)}"
    for destination, number in sorted(report.destinations.items()):
        yield f"  to {printable(destination)}: {number}"
    if report.dry_run:
        for reason, number in sorted(report.reasons.items()):
            yield f"  dead for {printable(reason)}: {number}"
    if report.already_completed:
        yield f"  already completed meanwhile: {report.already_completed}; their tasks would not run again"
    yield from _edit_lines(report)
    yield from _canary_lines(report)
    if report.skipped_max_replays:
        yield f"skipped {letters_text(report.skipped_max_replays)} replayed {max_replays} times before; --max-replays allows more"
    if report.skipped_hopeless:
        yield f"skipped {letters_text(report.skipped_hopeless)} that would only die again; name their ID or --reason to replay them"


def _edit_lines(report: ReplayReport) -> Iterator[str]:
    if report.edited:
        yield f"edited {letters_text(report.edited)}"
    for note in report.edits:
        changes = ", ".join(f"{printable(name)} {printable(old)} → {printable(new)}" for name, old, new in note.changes)
        yield f"  {note.id}: {changes}"
        if note.new_key != note.key:
            yield f"    its key is made from its arguments: {printable(note.key)} → {printable(note.new_key)}"
    if report.edited > len(report.edits):
        yield f"  … and {report.edited - len(report.edits)} more"


def _canary_lines(report: ReplayReport) -> Iterator[str]:
    for stage in () if report.canary is None else report.canary.stages:
        watched = ""
        if stage.name != "all":
            unheard = f", {stage.unheard} unheard of" if stage.unheard else ""
            failed = f", {stage.failed} failed" if stage.failed else ""
            watched = f", {stage.completed} completed{failed}{unheard} after {stage.seconds:.1f} s"
        yield f"  canary, {stage.name}: {stage.replayed} replayed{watched}"


def failure_lines(report: ReplayReport | DiscardReport) -> Iterator[str]:
    """Yield the lines that tell people what was not done, and what to do about it."""
    for failure in report.failures:
        yield f"failed {failure.id}: {printable(failure.why)}"
    if report.failed > len(report.failures):
        yield f"… and {report.failed - len(report.failures)} more"
    for identifier in report.missing:
        yield f"not found: {printable(identifier)}"
    if isinstance(report, ReplayReport) and report.canary is not None and report.canary.why:
        yield printable(report.stopped)
        yield f"left {letters_text(report.canary.left)} where they were"
    elif report.stopped:
        yield f"stopped before the last letter: {printable(report.stopped)}; run it again to go on"
