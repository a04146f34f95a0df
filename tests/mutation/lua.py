"""Mutants of the Lua scripts: a change of one token, of one condition, or of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .mutant import Mutant

__all__ = ["mutants", "mutated", "use"]

_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*) | (?P<string>'[^'\n]*') | (?P<number>\d+) | (?P<name>[A-Za-z_]\w*)
        | (?P<operator>==|~=|<=|>=|\.\.\.|\.\.|[-+*/<>=#(){}\[\],.;:]) | (?P<space>\s+)""",
    re.VERBOSE,
)
_INSTEAD = {
    "==": ("~=",),
    "~=": ("==",),
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "and": ("or",),
    "or": ("and",),
    "not": ("",),
    "true": ("false",),
    "false": ("true",),
}
#: A condition on one line.
_CONDITION = re.compile(r"^\s*if (?P<it>.+?) then\b", re.MULTILINE)
#: A statement on one line: what opens or closes a block is none.
_STATEMENT = re.compile(r"^ *(?!--|end\b|else\b|for\b|local function\b|function\b)(?P<it>\S.*)$", re.MULTILINE)
_BLOCK = re.compile(r"\b(then|do)$|^[a-z]+ and .*|.* then$")


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Yield every mutant of a script."""
    for site, (start, end, after) in enumerate(_changes(source)):
        line = source.count("\n", 0, start)
        text = source.splitlines()[line].strip()
        changed = (source[:start] + after + source[end:]).splitlines()[line].strip()
        yield Mutant(file, "", line + 1, line + 1, text, changed or "(nothing)", site, 0)


def mutated(source: str, mutant: Mutant) -> str:
    """Return the text of the mutant."""
    start, end, after = list(_changes(source))[mutant.site]
    return source[:start] + after + source[end:]


def _changes(source: str) -> Iterator[tuple[int, int, str]]:
    before = ""
    for match in _TOKEN.finditer(source):
        kind, text = match.lastgroup, match[0]
        if kind in ("space", "comment"):
            continue
        if kind == "number":
            yield (*match.span(), str(int(text) + 1))
            yield (*match.span(), str(int(text) - 1))
        elif kind == "string":
            yield (*match.span(), f"'XX{text[1:]}")
        elif text == "-" and before in ("=", "(", ",", "return", "{"):
            yield (*match.span(), "")
        else:
            for other in _INSTEAD.get(text, ()):
                yield (*match.span(), other)
        before = text
    for match in _CONDITION.finditer(source):
        for other in ("true", "false"):
            yield (*match.span("it"), other)
    for match in _STATEMENT.finditer(source):
        if not _BLOCK.search(match["it"]):
            yield (*match.span("it"), "")


def use(file: Path, text: str) -> None:
    """Let the package send another text instead of a script, whoever loaded it before."""
    from celery_guardrails.integration.brokers import redis as broker
    from celery_guardrails.stores.redis import runner
    from celery_guardrails.worker import safe_pop

    read = Path.read_text

    def read_text(self: Path, *args: Any, **options: Any) -> str:
        return text if self.name == file.name and self.resolve() == file else read(self, *args, **options)

    Path.read_text = read_text  # type: ignore[method-assign]
    runner.script_texts.cache_clear()
    safe_pop._TAKE, safe_pop._ACK = safe_pop._script("take.lua"), safe_pop._script("ack.lua")
    for name in broker._SCRIPTS:
        broker._SCRIPTS[name] = (Path(broker.__file__).parent / f"{name}.lua").read_text(encoding="utf-8")
