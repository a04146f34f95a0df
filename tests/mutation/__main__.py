"""``python -m tests.mutation``: mutants of the policy and of the Lua scripts, and which of them no test notices.

Everything happens in a copy of the tree, so that nobody's edits come between. Exit status 1 where a mutant survives that
``survivors.json`` gives no reason for.
"""

# ruff: noqa: T201 - a command's output

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import lua, python, targets
from .mutant import Mutant, Result

ROOT = Path(__file__).resolve().parents[2]
REASONS = Path(__file__).parent / "survivors.json"
_SURVIVED = ("survived", "uncovered")
_VERDICTS = ("killed", "timeout", *_SURVIVED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("files", nargs="*", help="only files whose path contains one of these, as policy/lease.py or claim.lua")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time (2)")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--reasons", action="store_true", help="only print the survivors that have a reason, as docs/mutants.md has them")
    parser.add_argument("--only", help="only mutants whose name contains this")
    parser.add_argument("--again", type=Path, help="only mutants that survived in this file of results (--json)")
    parser.add_argument("--json", type=Path, help="write every result to this file")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside is not None:
        return _inside(options)
    if options.reasons:
        _print_reasons()
        return 0
    if options.list:
        for mutant in [*_mutants(ROOT, options, ".py"), *_mutants(ROOT, options, ".lua")]:
            print(f"{mutant.first:4} {mutant.name}{'  (module)' if mutant.reload else ''}")
        return 0
    with tempfile.TemporaryDirectory(prefix="guardrails-mutation-") as directory:
        copy = Path(directory)
        for part in ("benchmarks", "celery_guardrails", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        results: list[dict[str, Any]] = []
        for ending in (".py", ".lua"):
            if not list(_mutants(copy, options, ending)):
                continue
            found = copy / f"results{ending}.json"
            given = list(sys.argv[1:] if arguments is None else arguments)
            given += ["--again", str(options.again.resolve())] if options.again is not None else []
            command = [sys.executable, "-m", "tests.mutation", *given, "--inside", str(found)]
            # A seed for hashes: the same mutants meet the same tests in the same order.
            environment = {**os.environ, "PYTHONHASHSEED": "0", "MUTANTS_OF": ending}
            subprocess.run(command, cwd=copy, env=environment, check=True)
            results += json.loads(found.read_text(encoding="utf-8"))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return _tell(results)


def _mutants(root: Path, options: argparse.Namespace, ending: str) -> list[Mutant]:
    package = root / "celery_guardrails"
    table = targets.PYTHON if ending == ".py" else targets.LUA
    found: list[Mutant] = []
    for file in targets.files(package, table, ending):
        if not options.files or any(part in file for part in options.files):
            source = (package / file).read_text(encoding="utf-8")
            found += python.mutants(file, source) if ending == ".py" else lua.mutants(file, source)
            if "/rules/" in file:
                found += python.entries(file)
    if options.again is not None:
        earlier = json.loads(options.again.read_text(encoding="utf-8"))
        lived = {Mutant(**result["mutant"]).name for result in earlier if result["verdict"] in _SURVIVED}
        found = [mutant for mutant in found if mutant.name in lived]
    return [mutant for mutant in found if not options.only or options.only in mutant.name]


def _inside(options: argparse.Namespace) -> int:
    """In the copy: meet the mutants of one language, and write down what became of them."""
    import pytest

    from .hunt import Hunt

    ending = os.environ["MUTANTS_OF"]
    mutants = _mutants(ROOT, options, ending)
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        if result.verdict in _SURVIVED:
            print(f"{result.verdict}: {result.mutant.first}: {result.mutant.name}", flush=True)
        if len(results) % 100 == 0:
            print(f"{len(results)} of {len(mutants)}", time.strftime("%X"), flush=True)

    servers: list[Any] = []
    if ending == ".lua":
        from tests.support import RedisServer

        servers = [RedisServer(ROOT / f"redis{number}").start() for number in range(options.jobs)]
    hunt = Hunt(ROOT, mutants, jobs=options.jobs, report=report, chosen=targets.tests_for, servers=servers)
    parts = sorted({part for mutant in mutants for part in targets.tests_for(mutant.file)})
    try:
        code = pytest.main([*_arguments(parts), "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"], plugins=[hunt])
    finally:
        for server in servers:
            subprocess.run(["kill", str(server.pid)], check=False)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) or len(results) != len(mutants):
        return int(code) or 1
    options.inside.write_text(json.dumps([asdict(result) for result in results]), encoding="utf-8")
    return 0


def _arguments(parts: list[str]) -> list[str]:
    """Return what pytest must be given to collect the tests whose ids contain one of these parts."""
    found: set[str] = set()
    for part in parts:
        file = part.partition("::")[0]
        found.update(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if file in str(path.relative_to(ROOT)))
    return sorted(found)


def _print_reasons() -> None:
    last = ""
    for reason in sorted(_reasons(), key=lambda each: each["name"].partition(":")[0]):
        file, _, change = reason["name"].partition(":")
        if file != last:
            print(f"\n### {file}\n")
        last = file
        print(f"- `{change}`: {reason['why']}.")


def _reasons() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(REASONS.read_text(encoding="utf-8"))
    return found


def _tell(results: list[dict[str, Any]]) -> int:
    known = {reason["name"] for reason in _reasons()}
    counts: dict[str, Counter[str]] = {}
    unexplained = []
    for result in results:
        mutant = Mutant(**result["mutant"])
        counts.setdefault(mutant.file, Counter())[result["verdict"]] += 1
        if result["verdict"] in _SURVIVED and mutant.name not in known:
            unexplained.append(f"{mutant.first}: {mutant.name}")
    print(f"\n| module | mutants | {' | '.join(_VERDICTS)} |\n|---|---|{'---|' * len(_VERDICTS)}")
    total: Counter[str] = sum(counts.values(), Counter())
    for file, count in [*counts.items(), ("all", total)]:
        print(f"| {file} | {sum(count.values())} | {' | '.join(str(count[verdict]) for verdict in _VERDICTS)} |")
    if unexplained:
        print(f"\n{len(unexplained)} survived without a reason in {REASONS.name}:")
        print("\n".join(unexplained))
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
