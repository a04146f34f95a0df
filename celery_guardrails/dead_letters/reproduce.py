"""A dead letter as a test: the text of a pytest file that runs its task with its payload, and sees it die the same way.

Everything that comes from the letter stands in the file as an ASCII literal or, escaped, in a comment: whatever a payload
holds, it stays data.
"""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Iterator, Mapping
from textwrap import indent, wrap
from typing import Any

from kombu.serialization import registry

from ..errors import DeadLetterError
from .decoder import Payload
from .letter import DeadLetter
from .render import moment

__all__ = ["literal", "reproduction"]

#: What a body itself has brought about; the others died before it, or of something that is not in their payload.
_REASONS = ("permanent", "exhausted", "deadline", "rejected")
_WHY_NOT = {
    "poison": "it kills the process that runs it, and would kill pytest",
    "undecodable": "nobody could read it, so no task ever ran",
    "unknown_task": "no worker knew its task",
    "invalid": "it was refused before its task ran",
    "conflict": "its key belonged to other arguments, which this letter does not hold",
    "broker": "the broker took it out of its queue before its task ran",
}
#: Errors that the harness does not raise: it has no pool that kills, and time that passes when it is told to.
_NOT_ITS_OWN = {
    "TimeLimitExceeded": "a time limit struck it, and the harness has none",
    "SoftTimeLimitExceeded": "a time limit struck it, and the harness has none",
    "WorkerLostError": "its process was lost",
    "DeadlineExceeded": "it waited, or ran, past its deadline",
    "NoProgress": "its loop was resumed again and again and got nowhere, each time for want of time",
}
_WIDTH = 100
_COMMENT_LIMIT = 400

_HEAD = '''"""A dead letter as a test, written by `guardrails dead-letters reproduce`.

{privacy}

It passes as long as the task dies as it did. When it is mended, turn the last lines round, as they say, and keep the test.
"""
'''
_PERSONAL = """MAY HOLD PERSONAL DATA: these are the arguments, and the error, of a real message. Look through the file before
you commit or share it, or write it again with --redact."""
_REDACTED = """Secrets have been redacted by name (--redact); what else is in the arguments is real and MAY BE PERSONAL DATA. What was
redacted may be what the task died of."""


def reproduction(letter: DeadLetter, *, app: tuple[str, str] | None = None, redact: bool = False) -> str:
    """Return the text of a test file.

    Args:
        letter: that died in its task's body.
        app: module and name that the Celery app is imported by; None for the current app.
        redact: write the arguments as the service shows them, without secrets, and nothing of the error's message.

    Raises:
        DeadLetterError: its payload is not what it died of; or it cannot be redacted.
    """
    _refuse(letter)
    error = letter.certificate.error
    name = re.sub(r"[^0-9a-z]+", "_", f"{letter.task}_dies_of_{error.rpartition('.')[2]}".lower()).strip("_")[:120]
    sent, decodes = _sent(letter, redact)
    lines = [
        _HEAD.format(privacy=_REDACTED if redact else _PERSONAL),
        *_facts(letter, redact),
        "",
        "from __future__ import annotations",
        "",
        *(["import base64", ""] if decodes else []),
        *_app_lines(app),
        "",
        "",
        f"def test_{name}(guardrails_harness):",
        "    harness = guardrails_harness(app)",
        indent(sent, "    "),
        "    harness.drain()",
        "",
        "    # This asserts that the task FAILS. When it is mended, put this in place of what follows:",
        "    #     assert harness.dead_letters == []",
        "    deaths = [letter for letter in harness.dead_letters if letter.task_id == task_id]",
        f"    assert [(letter.reason, letter.certificate.error) for letter in deaths] == [({letter.reason!a}, {error!a})]",
        "",
    ]
    return "\n".join(lines)


def _refuse(letter: DeadLetter) -> None:
    why = _WHY_NOT.get(letter.reason) or _NOT_ITS_OWN.get(letter.certificate.error.rpartition(".")[2])
    if why is None and (letter.reason not in _REASONS or letter.hopeless):
        why = "it does not say which task died, and of what"
    if why is not None:
        raise DeadLetterError(f"{letter.id} is dead for {letter.reason}: {why}; a test with its payload would show nothing")


def _facts(letter: DeadLetter, redact: bool) -> Iterator[str]:
    certificate = letter.certificate
    facts = {
        "dead letter": letter.id,
        "task": letter.task,
        "task id": letter.task_id,
        "died": moment(letter.died_at),
        "reason": f"{letter.reason}, after {certificate.attempts} attempts",
        "error": certificate.error if redact else f"{certificate.error}: {certificate.message}",
    }
    for name, value in facts.items():
        text = str(value)[:_COMMENT_LIMIT].encode("unicode_escape").decode("ascii")
        yield from wrap(f"{name}: {text}", _WIDTH, initial_indent="# ", subsequent_indent="#     ", break_on_hyphens=False)


def _app_lines(app: tuple[str, str] | None) -> list[str]:
    if app is None:
        return ["from celery import current_app as app  # it has no name in a module: import yours here"]
    module, attribute = app
    if attribute == "app":
        return [f"from {module} import app"]
    return [f"from {module} import {attribute} as app"]


def _sent(letter: DeadLetter, redact: bool) -> tuple[str, bool]:
    """Return the statement that publishes the task, and whether it decodes a body."""
    payload = letter.shown_payload() if redact else letter.payload
    call = None if payload.error else _by_arguments(letter, payload)
    if call is not None:
        return call, False
    if redact:
        why = payload.error or "there are arguments that cannot be written as Python literals"
        raise DeadLetterError(f"{letter.id}: --redact: {why}, and the whole body would not be redacted")
    return _by_body(letter), True


def _by_arguments(letter: DeadLetter, payload: Payload) -> str | None:
    serializer = registry.type_to_name.get(letter.message.content_type)
    args, kwargs = literal(list(payload.args)), literal(dict(payload.kwargs))
    if serializer is None or args is None or kwargs is None:
        return None
    given = [f"{name}={text}" for name, text in (("args", args), ("kwargs", kwargs)) if text not in ("[]", "{}")]
    parameters = [ascii(letter.task), *given, f"serializer={serializer!a}"]
    return f"task_id = harness.send(\n{indent(_lines(parameters), '    ')}\n).id"


def _by_body(letter: DeadLetter) -> str:
    message = letter.message
    pieces = wrap(base64.b64encode(message.body).decode("ascii"), _WIDTH) or [""]
    body = "\n".join(["base64.b64decode(", *(f'    "{piece}"' for piece in pieces), ")"])
    headers = {"compression": str(message.headers["compression"])} if message.headers.get("compression") else {}
    parameters = [
        ascii(letter.task),
        f"body={body}",
        f"content_type={message.content_type or ''!a}",
        f"content_encoding={message.content_encoding or ''!a}",
        *([f"headers={headers!a}"] if headers else []),
    ]
    return f"task_id = harness.put(\n{indent(_lines(parameters), '    ')}\n)"


def _lines(items: list[str]) -> str:
    return ",\n".join(items) + ","


# -- literals ---------------------------------------------------------------------------------------------------------


def literal(value: Any) -> str | None:
    """Return a value as a Python literal in ASCII, or None where the literal would not be the very same value."""
    try:
        text = _written(value, _WIDTH)
        return text if _same(ast.literal_eval(text), value) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _written(value: Any, width: int) -> str:
    flat = ascii(value)
    if len(flat) <= width or not value:
        return flat
    if type(value) is list:
        return f"[\n{indent(_lines([_written(item, width - 4) for item in value]), '    ')}\n]"
    if type(value) is dict:
        items = [f"{name!a}: {_written(item, width - 4)}" for name, item in value.items()]
        return f"{{\n{indent(_lines(items), '    ')}\n}}"
    return flat


def _same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, Mapping):
        return _same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, (set, frozenset)):
        return _same(sorted(left, key=ascii), sorted(right, key=ascii))
    return bool(left == right) and ascii(left) == ascii(right)  # -0.0 equals 0.0
