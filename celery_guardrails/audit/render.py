"""An audit as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dead_letters.render import moment, printable, table
from .report import Audit
from .standing import State

__all__ = ["audit_data", "audit_lines"]


def audit_data(audit: Audit) -> dict[str, Any]:
    """Return an audit as values of JSON types."""
    data = {name: value for name, value in vars(audit).items() if name not in ("standings", "findings", "queues", "at")}
    asked = bool(audit.standings)
    return {
        "at": moment(audit.at),
        "conserved": audit.conserved,
        **data,
        "waiting": audit.waiting,
        "dead": audit.dead,
        "workers": list(audit.workers),
        "queues": [{**vars(queue)} for queue in audit.queues],
        "published": len(audit.standings) if asked else None,
        "balance": {state.value: count for state, count in audit.balance.items()} if asked else None,
        "standings": [_standing(one) for one in audit.standings],
        "findings": [vars(finding) for finding in audit.findings],
    }


def _standing(one: Any) -> dict[str, Any]:
    return {**{name: value for name, value in vars(one).items() if name != "fence"}, "state": one.state.value}


def audit_lines(audit: Audit, *, each: bool = False) -> Iterator[str]:
    """Yield the lines that tell people.

    Args:
        audit: what was found.
        each: also where each of those stands that were asked for.
    """
    rows = [
        (queue.name, queue.waiting, queue.consumers, queue.dead, "not looked at" if queue.reasons is None else _listed(queue.reasons))
        for queue in audit.queues
    ]
    yield from table(("QUEUE", "WAITING", "CONSUMERS", "DEAD", "REASONS"), rows)
    yield ""
    for name, value in _counts(audit):
        yield f"{name.ljust(11)}{value}"
    if audit.standings:
        parts = " + ".join(f"{state.value} {count}" for state, count in audit.balance.items() if count or state is not State.FAILED)
        yield ""
        yield f"{'published'.ljust(11)}{len(audit.standings)} = {parts}"
    if each:
        yield ""
        asked = [(one.name, one.state.value, one.key if one.key != one.name else "", one.where) for one in audit.standings]
        yield from table(("ASKED FOR", "STATE", "KEY", "WHERE"), asked)
    if audit.findings:
        yield ""
    for finding in audit.findings:
        yield f"{'error' if finding.error else 'note'}: {printable(finding.kind)}: {printable(finding.text)}"
        if finding.mend:
            yield f"       {printable(finding.mend)}"
    yield ""
    yield _verdict(audit)


def _counts(audit: Audit) -> Iterator[tuple[str, str]]:
    overdue = "" if audit.overdue is None else f", {audit.overdue} of them due"
    yield "waiting", str(audit.waiting)
    yield "delayed", f"{audit.delayed}{overdue}"
    yield "running", f"{audit.running}" + (f", and {audit.over} leases whose holder is gone" if audit.over else "")
    yield "held", f"{audit.held} messages in the hands of workers, running or not"
    yield "completed", "not counted by this store" if audit.completed is None else f"{audit.completed} that are still remembered"
    yield "dead", str(audit.dead)
    if audit.archived is not None:
        yield "archived", _listed(audit.archived)
    yield "workers", f"{len(audit.workers)} answered"


def _verdict(audit: Audit) -> str:
    looked = f"looked for {audit.seconds:.1f} s, while tasks went on"
    if not audit.conserved:
        return f"NOT conserved: {sum(finding.error for finding in audit.findings)} errors ({looked})"
    if audit.standings:
        return f"conserved: every one of {len(audit.standings)} is in exactly one state ({looked})"
    return f"nothing contradicts itself ({looked}); --keys FILE says of each published task where it is"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{printable(name)} {count}" for name, count in sorted(counts.items()) if count) or "-"
