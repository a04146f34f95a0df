"""One pytest session in which every mutant is met by the tests that come by its place.

The tests are collected and run once, unchanged, while it is written down which lines each of them comes by. Then the process
forks for every mutant: the child gives the functions the mutant's code and runs those tests, the quickest first, until one
fails. A mutant outside functions needs its module imported anew: its child forgets package and tests and lets pytest start
again, with all the libraries still in memory.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import importlib.util
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, Phase, settings

from . import lua, python
from .mutant import Mutant, Result

__all__ = ["Hunt"]

PACKAGE = "celery_guardrails"
#: Exit statuses of a child.
_SURVIVED, _KILLED, _BROKEN = 0, 1, 70
#: Seconds that a child gets: so much, and so often what its tests took unchanged; but no more than the last.
_PATIENCE = (20.0, 8.0, 150.0)
#: Seconds; longer tests are not run for what stands outside functions: all tests would meet it, whether they come by it or not.
_LONG = 0.5


class Hunt:
    """A pytest plug-in that runs mutants instead of tests.

    Args:
        root: the copy that the package is imported from.
        mutants: to be met.
        jobs: children at a time.
        report: called with each result.
        chosen: says which test modules are responsible for a file.
        servers: one Redis for each child that lives at a time, where the mutants are scripts.
    """

    def __init__(
        self,
        root: Path,
        mutants: list[Mutant],
        *,
        jobs: int,
        report: Callable[[Result], None],
        chosen: Callable[[str], tuple[str, ...]],
        servers: list[Any],
    ) -> None:
        self._root = root
        self._mutants = mutants
        self._jobs = jobs
        self._report = report
        self._chosen = chosen
        self._servers = servers
        self._seconds: dict[pytest.Item, float] = {}
        self._visits: dict[tuple[str, int], set[pytest.Item]] = defaultdict(set)
        self._functions: dict[str, list[FunctionType]] = defaultdict(list)
        self._item: pytest.Item | None = None
        self._running: dict[int, tuple[Mutant, list[pytest.Item], int, float, float, Path]] = {}
        self._files: dict[str, str | None] = {}
        self._asked: dict[str, set[pytest.Item]] = defaultdict(set)
        # No luck: the same examples each time; no shrinking: that a test fails is enough.
        settings.register_profile(
            "mutation",
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        settings.load_profile("mutation")

    # -- pytest's hooks

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep to the tests that are responsible for something."""
        names = {name for mutant in self._mutants for name in self._chosen(mutant.file)}
        items[:] = [item for item in items if any(name in item.nodeid for name in names)]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests once as they are, then the mutants."""
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        self._redis(0)
        self._watch_rules()
        failed = self._unchanged(session.items)
        if failed:
            raise pytest.UsageError("red without any mutant: " + ", ".join(failed))
        for found in gc.get_objects():
            if type(found) is FunctionType and (file := self._below(found.__code__.co_filename)) is not None:
                self._functions[file].append(found)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            self._meet_all(session.items)
        finally:
            for pid in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        return True

    def _unchanged(self, items: list[pytest.Item]) -> list[str]:
        failed = []
        for number, item in enumerate(items):
            self._item = item
            self._forget_caches()
            started = time.monotonic()
            if not self._servers:
                threading.settrace(self._trace)
                sys.settrace(self._trace)
            try:
                following = items[number + 1] if number + 1 < len(items) else None
                reports = runtestprotocol(item, nextitem=following, log=False)
            finally:
                sys.settrace(None)
                threading.settrace(None)
            self._seconds[item] = time.monotonic() - started
            if any(report.failed for report in reports):
                failed.append(item.nodeid)
        return failed

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        file = self._below(frame.f_code.co_filename)
        if file is None or not file.startswith("policy/"):
            return None
        visits, item = self._visits, self._item
        assert item is not None
        visits[file, frame.f_lineno].add(item)

        def local(inner: FrameType, _event: str, _argument: object) -> Any:
            visits[file, inner.f_lineno].add(item)
            return local

        return local

    def _below(self, filename: str) -> str | None:
        if filename not in self._files:
            path = Path(filename)
            inside = path.is_absolute() and path.is_relative_to(self._root / PACKAGE)
            self._files[filename] = str(path.relative_to(self._root / PACKAGE)) if inside else None
        return self._files[filename]

    def _forget_caches(self) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith(f"{PACKAGE}.policy"):
                for value in vars(module).values():
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()

    def _watch_rules(self) -> None:
        """Write down which tests ask for which shipped rule."""
        classify: Any = importlib.import_module(f"{PACKAGE}.policy.classify")
        hunt = self

        class Watched(dict[str, Any]):
            def get(self, name: str, default: Any = None) -> Any:
                if hunt._item is not None:
                    hunt._asked[name].add(hunt._item)
                return super().get(name, default)

        classify.SHIPPED = Watched(classify.SHIPPED)

    # -- the mutants

    def _meet_all(self, items: list[pytest.Item]) -> None:
        waiting = [*reversed(self._mutants), *self._controls()]
        free = list(range(self._jobs))
        running = self._running
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop()
                chosen = self._responsible(mutant, items)
                slot = free.pop()
                note = self._root / f"note.{slot}"
                note.write_text("")
                patience = min(_PATIENCE[0] + _PATIENCE[1] * sum(self._seconds[item] for item in chosen), _PATIENCE[2])
                pid = os.fork()
                if pid == 0:
                    self._child(mutant, chosen, slot, note)
                now = time.monotonic()
                running[pid] = (mutant, chosen, slot, now, now + patience, note)
            ended = [(pid, status) for pid in running for got, status in [os.waitpid(pid, os.WNOHANG)] if got]
            for pid, (mutant, _, slot, started, end, _) in list(running.items()):
                if time.monotonic() > end and pid not in dict(ended):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    del running[pid]
                    free.append(slot)
                    self._report(Result(mutant, "timeout", seconds=time.monotonic() - started))
            for pid, status in ended:
                mutant, chosen, slot, started, _, note = running.pop(pid)
                free.append(slot)
                code = os.waitstatus_to_exitcode(status)
                if code == _BROKEN:
                    raise RuntimeError(f"{mutant.name}: {note.read_text()}")
                verdict = "killed" if code != _SURVIVED else "survived" if mutant.reload or chosen else "uncovered"
                if mutant.site == python.CONTROL:
                    if verdict == "killed":
                        raise RuntimeError(f"{mutant.file}: red without any mutant, imported anew: {note.read_text()}")
                    continue
                self._report(Result(mutant, verdict, note.read_text().strip(), time.monotonic() - started))
            if not ended:
                time.sleep(0.005)

    def _controls(self) -> list[Mutant]:
        """Return one unchanged module for each group of tests that modules are imported anew for."""
        files = {self._chosen(mutant.file): mutant.file for mutant in self._mutants if mutant.file.endswith(".py")}
        return [Mutant(file, "", 1, 1, "", "", python.CONTROL, 0, reload=True) for file in files.values()]

    def _responsible(self, mutant: Mutant, items: list[pytest.Item]) -> list[pytest.Item]:
        names = self._chosen(mutant.file)
        candidates = [item for item in items if any(name in item.nodeid for name in names)]
        if mutant.site == python.ENTRY:
            # Not what is made of the rules themselves, one test each: of a rule that is gone there would be none.
            comers = self._asked[mutant.before]
            candidates = [item for item in candidates if f"[{mutant.before}]" not in item.nodeid]
            candidates = [item for item in candidates if item in comers or "test_classify_table" in item.nodeid]
        elif not (self._servers or mutant.reload):
            comers = set().union(*(self._visits.get((mutant.file, line), set()) for line in range(mutant.first, mutant.last + 1)))
            candidates = [item for item in candidates if item in comers]
        return sorted(candidates, key=self._seconds.__getitem__)

    def _child(self, mutant: Mutant, chosen: list[pytest.Item], slot: int, note: Path) -> None:
        status = _BROKEN
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            status = self._meet(mutant, chosen, slot, note)
        except BaseException as exc:  # noqa: BLE001 - the parent tells it
            note.write_text(repr(exc))
        os._exit(status)

    def _meet(self, mutant: Mutant, chosen: list[pytest.Item], slot: int, note: Path) -> int:
        path = self._root / PACKAGE / mutant.file
        source = path.read_text(encoding="utf-8")
        if self._servers:
            self._redis(slot)
            lua.use(path, lua.mutated(source, mutant))
        elif mutant.site == python.ENTRY:
            for module in ("classify", "rules"):
                del importlib.import_module(f"{PACKAGE}.policy.{module}").SHIPPED[mutant.before]
            self._forget_caches()
        else:
            functions = self._functions[mutant.file]
            # What no test comes by may have run when the module was imported: a table may be made by a function.
            if mutant.reload or not chosen or not functions or not python.swap(source, mutant, functions):
                return self._anew(mutant, source, note)
            self._forget_caches()
        for number, item in enumerate(chosen):
            following = chosen[number + 1] if number + 1 < len(chosen) else None
            if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
                note.write_text(item.nodeid)
                return _KILLED
        return _SURVIVED

    def _anew(self, mutant: Mutant, source: str, note: Path) -> int:
        """Import package and tests anew, with the mutant among them."""
        for name in list(sys.modules):
            if name.partition(".")[0] in (PACKAGE, "tests") and not name.startswith("tests.mutation"):
                del sys.modules[name]
        sys.dont_write_bytecode = True
        finder = _Finder(f"{PACKAGE}.{mutant.file[:-3].replace('/', '.')}".removesuffix(".__init__"), source, mutant)
        sys.meta_path.insert(0, finder)
        # Before pytest starts: it puts a finder of its own before ours, which takes the modules of every plug-in that is installed
        # editable, as this package is (_mark_plugins_for_rewrite in _pytest/config/__init__.py, 9.2).
        try:
            importlib.import_module(finder.name)
        except Exception as exc:  # noqa: BLE001 - whatever a mutant does when it is imported
            note.write_text(f"import: {exc!r}")
            return _KILLED
        names = self._chosen(mutant.file)
        order = {
            item.nodeid: seconds
            for item, seconds in self._seconds.items()
            if seconds < _LONG and any(name in item.nodeid for name in names)
        }
        tests = sorted({nodeid.split("::")[0] for nodeid in order})
        code = pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"], plugins=[_Witness(note, order)])
        if sys.modules[finder.name].__loader__ is not finder:
            raise RuntimeError("the tests met the module as it is written, not the mutant")
        return _SURVIVED if code == pytest.ExitCode.OK else _KILLED

    def _redis(self, slot: int) -> None:
        """Let the fixtures find the server that is there, emptied."""
        if self._servers:
            support: Any = importlib.import_module("tests.support")
            server = self._servers[slot]
            with server.client() as client:
                client.flushall()

            def start(ours: Any) -> Any:
                ours.port = server.port
                return ours

            support.RedisServer.start = start
            support.RedisServer.stop = lambda ours: None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module as the mutant has it."""

    def __init__(self, name: str, source: str, mutant: Mutant) -> None:
        self.name = name
        self._source = source
        self._mutant = mutant

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=self._mutant.file.endswith("__init__.py"))

    def exec_module(self, module: Any) -> None:
        exec(compile(python.mutated(self._source, self._mutant), self._mutant.file, "exec"), module.__dict__)


class _Witness:
    """Keeps to the tests that are responsible, the quickest first, and notes which of them noticed."""

    def __init__(self, note: Path, order: dict[str, float]) -> None:
        self._note = note
        self._order = order

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self._order), key=lambda item: self._order[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._note.write_text(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note.write_text(f"import of {report.nodeid}")
