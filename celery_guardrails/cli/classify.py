"""``guardrails classify``: what kind of failure an error is, which rule says so, and why."""

from __future__ import annotations

import builtins
import difflib
import errno
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..dead_letters.render import printable
from ..policy.classification import KINDS
from ..policy.matches import full_name
from ..policy.rules.grpc import STATUS
from ..policy.rules.table import attribute
from .base import Command, echo_json, json_option, rails
from .stand_in import Carried, find_class, stand_in

if TYPE_CHECKING:
    from ..integration.app import Guardrails
    from ..policy.classify import Explanation, Reason

__all__ = ["classify"]

_SQLSTATES = "08006 25006 40001 40P01 53300 55P03 57014 57P01 57P03 22001 22P02 23502 23503 23505 23514 28P01 42601 42P01".split()
_MYSQL = "1020 1040 1205 1213 1226 1290 2006 2013 1045 1048 1062 1064 1146 1264 1406 1452".split()
_SQLITE = "SQLITE_BUSY SQLITE_LOCKED SQLITE_IOERR SQLITE_FULL SQLITE_ERROR SQLITE_READONLY SQLITE_CORRUPT".split()
_REDIS = "LOADING BUSY TRYAGAIN CLUSTERDOWN MASTERDOWN READONLY NOREPLICAS MISCONF OOM ERR WRONGTYPE NOPERM".split()
_SMTP = (421, 450, 451, 452, 500, 550, 552, 554)
_CERTIFICATE = "certificate verify failed"
#: What else an error may carry that decides, and how to say it here.
_WRAPPED = ("orig", "reason", "__cause__")


@click.command("classify", cls=Command)
@click.argument("name", metavar="MODULE.ERROR")
@click.option("--task", "task_name", metavar="NAME", help="With the retryable and permanent lists of this task.")
@click.option("--status", metavar="N", type=int, help="As if it carried a response with this HTTP status.")
@click.option("--code", metavar="CODE", help="As if it carried this SQLSTATE, vendor code, errno, gRPC status or API error code.")
@click.option("--retry-after", metavar="VALUE", help="As if the response said so: seconds, or an HTTP-date.")
@click.option("--message", metavar="TEXT", default="", help="As if this were its text.")
@click.option("--cause", "causes", metavar="MODULE.ERROR", multiple=True, help="As if it were raised from this; may be given again.")
@json_option
def classify(
    name: str,
    task_name: str | None,
    status: int | None,
    code: str | None,
    retry_after: str | None,
    message: str,
    causes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what becomes of an error: retryable, throttled, permanent or poison; which rule says so, and why.

    MODULE.ERROR is imported; a bare name is one of Python's own. Where the rule looks at what an error carries, it says
    at what, and what would follow from it; the options fill it in. Exit code 2 where there is no such error or task.
    """
    guard = rails()
    try:
        cls, others = find_class(name), [find_class(cause) for cause in causes]
    except LookupError as exc:
        raise click.UsageError(printable(exc)) from exc
    retryable, permanent = _lists(guard, task_name)
    carried = Carried(status, code, retry_after, message)

    def explain(what: Carried) -> Explanation:
        error = stand_in(cls, what, others)
        return guard.classifier.explain(error, retryable=retryable, permanent=permanent, now=guard.clock.now())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = explain(carried)
        decided_by_rule = not found.reasons or found.reasons[0].source == "shipped"
        bare = stand_in(cls, carried, others)
        asked = guard.classifier.looks_at(bare) if decided_by_rule else ()
        settled = any(attribute(bare, each) is not None for each in asked if each not in ("args", "__cause__"))
        outcomes = {} if settled or found.reasons[1:] else _outcomes(asked, cls, carried, explain)
    if issubclass(cls, getattr(builtins, "BaseExceptionGroup", ())):
        asked = ("exceptions",)
    answer = found.classification
    data = {
        "error": full_name(cls),
        "kind": answer.kind,
        "retry_after": answer.retry_after,
        "rule": answer.rule,
        "source": found.reasons[0].source if found.reasons else "default",
        "why": [{"error": full_name(type(reason.error)), "matched": reason.matched, "source": reason.source} for reason in found.reasons],
        "depends_on": [each for each in asked if each not in ("headers", "hdrs")],
        "outcomes": outcomes,
        "task": task_name,
        "warnings": [str(each.message) for each in caught],
    }
    if as_json:
        echo_json(data)
        return
    for line in _lines(data, found.reasons):
        click.echo(line)


def _lists(guard: Guardrails, task_name: str | None) -> tuple[Any, Any]:
    """Return the lists ``retryable`` and ``permanent`` of a task; two empty ones without a task."""
    if task_name is None:
        return (), ()
    app = guard.app
    app.loader.import_default_modules()
    task = app.tasks.get(task_name)
    if task is None:
        close = difflib.get_close_matches(task_name, [each for each in app.tasks if not each.startswith("celery.")], n=3)
        hint = f"; there is {', '.join(close)}" if close else ""
        raise click.UsageError(f"the app {app.main or 'here'} has no task {printable(task_name)!r}{printable(hint)}")
    options = getattr(task, "guard_options", None)
    if options is None:
        raise click.UsageError(f"{printable(task_name)} is not guarded: give it base=GuardedTask, or define it with @guarded_task")
    return options.retryable, options.permanent


# -- what it depends on -----------------------------------------------------------------------------------------------


def _outcomes(asked: Iterable[str], cls: type[BaseException], carried: Carried, explain: Any) -> dict[str, list[str]]:
    """Return for each kind the options with which an error of this class would be of it."""
    found: dict[str, list[str]] = {}
    for label, sample in _samples(set(asked), {each.__module__.partition(".")[0] for each in cls.__mro__}, carried):
        answer = explain(sample).classification
        if answer.rule != "default":
            found.setdefault(answer.kind, []).append(label)
    return {kind: _ranges(found[kind]) for kind in KINDS if kind in found} if len(found) > 1 else {}


def _samples(asked: set[str], packages: set[str], carried: Carried) -> Iterable[tuple[str, Carried]]:
    """Yield values of one option that the rules of a class tell apart, with the words for each."""
    codes: Iterable[str] = ()
    statuses: Iterable[int] = ()
    if asked & {"sqlstate", "pgcode"}:
        codes = _SQLSTATES
    elif "sqlite_errorname" in asked:
        codes = _SQLITE
    elif "smtp_code" in asked:
        statuses = _SMTP
    elif packages & {"grpc", "google"} and asked & {"code", "grpc_status_code"}:
        codes = STATUS
    elif asked & {"response", "status", "http_status"} or ("code" in asked and "urllib" in packages):
        statuses = range(400, 600)
    elif packages & {"redis", "valkey"} and "message" in asked:
        codes = _REDIS
    elif "errno" in asked and "args" not in asked:
        codes = sorted(errno.errorcode.values())
    elif "args" in asked:
        codes = _MYSQL
    for status in statuses:
        yield f"--status {status}", replace(carried, status=status)
    for code in codes:
        yield f"--code {code}", replace(carried, code=code)
    if "message" in asked and not codes and not statuses:
        yield f'--message "{_CERTIFICATE}"', replace(carried, message=_CERTIFICATE)
        yield "--message anything else", replace(carried, message="anything else")


def _ranges(labels: list[str]) -> list[str]:
    """Put neighbouring statuses together: 500-504."""
    option, first = labels[0].split(" ", 1)
    if not first.isdecimal() or option != "--status":
        return labels
    runs: list[list[int]] = []
    for status in (int(label.split(" ", 1)[1]) for label in labels):
        if runs and status == runs[-1][-1] + 1:
            runs[-1].append(status)
        else:
            runs.append([status])
    return [f"--status {run[0]}" if len(run) == 1 else f"--status {run[0]}-{run[-1]}" for run in runs]


# -- for people -------------------------------------------------------------------------------------------------------


def _lines(data: dict[str, Any], reasons: Iterable[Reason]) -> Iterable[str]:
    kind = data["kind"]
    if data["outcomes"]:
        kind = f"it depends on what it carries; {kind} where that says nothing"
    yield f"{printable(data['error'])}: {kind}"
    yield f"  rule        {printable(data['rule'])}"
    for reason in reasons:
        inside = "" if full_name(type(reason.error)) == data["error"] else "inside it "
        yield f"  because     {inside}{printable(_because(reason))}"
    if data["source"] == "default":
        yield f"  because     no rule {'answers' if data['depends_on'] else 'is for it'}: guardrails_default_kind decides"
        if not data["depends_on"]:
            yield f'  mend        guardrails.rule("{printable(data["error"])}", kind=...), or the lists of its task'
    if data["retry_after"] is not None:
        yield f"  wait        at least {data['retry_after']:g} s, up to the cap of the task's RetryPolicy"
    if data["depends_on"]:
        yield f"  looks at    {', '.join(_words(each) for each in data['depends_on'])}"
    for each, options in data["outcomes"].items():
        name, values = options[0].split(" ", 1)[0], [option.split(" ", 1)[1] for option in options]
        yield f"  {each:<11} {name} {', '.join(values)}"
    for warning in data["warnings"]:
        yield f"  warning     {printable(warning)}"


def _because(reason: Reason) -> str:
    mine = full_name(type(reason.error))
    if reason.source == "registered":
        return f"of {mine} the rule {reason.matched!r} says so, which was registered with guardrails.rule()"
    derived = f"{mine} derives from {reason.matched}" if mine != reason.matched else mine
    if reason.source == "task":
        return f"{derived}, which one of the task's own lists names"
    if reason.source == "raised":
        return f"{derived}, which says it by itself"
    return f"{derived}, which a shipped rule is for"


def _words(asked: str) -> str:
    if asked in _WRAPPED:
        return f"{asked} (--cause)"
    return "its members: the worst of them decides" if asked == "exceptions" else asked
