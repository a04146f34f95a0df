"""An alert as text for people."""

from __future__ import annotations

from datetime import datetime, timezone

from ...policy.alerts import MESSAGE_LIMIT, Alert, Kind
from ...policy.printing import printable

__all__ = ["body", "title"]

#: Kinds that one message lists; the others are counted.
_LISTED = 10


def title(alert: Alert, app: str) -> str:
    """Return one line: a subject, or the beginning of a message."""
    return f"[{printable(app, limit=MESSAGE_LIMIT)}] {_headline(alert)}"


def body(alert: Alert) -> str:
    """Return the lines below the title: each kind with how many, where, why, and the command that shows them."""
    if alert.why == "test":
        return "Nothing has died. This is how `guardrails alert-test` sees whether alerts arrive."
    listed = alert.kinds[:_LISTED]
    if alert.why == "new":
        listed = tuple(kind for kind in listed if kind.new)
    lines = [line for kind in listed for line in _lines(kind)]
    letters = alert.letters - sum(kind.letters for kind in listed)
    if letters > 0:
        kinds = len(alert.kinds) - len(listed)
        what = f"{kinds} other kind{_s(kinds)}" + (" and more" if alert.beyond else "") if kinds else "other kinds"
        lines.append(f"{letters} more letter{_s(letters)} of {what} since {_clock(alert.since)}: guardrails dead-letters groups")
    return "\n".join(lines)


def _headline(alert: Alert) -> str:
    if alert.why == "test":
        return "a test of the alerts"
    if alert.why == "rate":
        rate = alert.rate
        within = f" within {rate.seconds:g} s (the alert's rate is {rate.letters})" if rate is not None else ""
        return f"{alert.count} dead letters{within}, {alert.letters} since {_clock(alert.since)}"
    new = sum(kind.new for kind in alert.kinds)
    return "a new kind of dead letter" if new == 1 else f"{new} new kinds of dead letters"


def _lines(kind: Kind) -> tuple[str, str]:
    mark = "new: " if kind.new else ""
    task = printable(kind.task) or "unknown task"
    error = ": ".join(printable(part) for part in (kind.error, kind.message[:MESSAGE_LIMIT]) if part)
    return (
        f"• {mark}{kind.letters} × {task} from queue {printable(kind.queue) or '?'}, {kind.reason}{f' ({error})' if error else ''}",
        f"  guardrails dead-letters list --fingerprint {printable(kind.fingerprint)}",
    )


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _s(number: int) -> str:
    return "" if number == 1 else "s"
