"""Processes that die at a chosen line of the package's code.

A message says where, in its header ``crash``: in which process (``"child"`` or ``"main"``), in which attempt, and at which
``point``: ``"guard.py:120:2"`` is the second time that line 120 is reached. It happens once; without a point the lines are
only noted in the ledger. Run as a program it starts a worker whose main process is started again whenever it was killed.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from celery import Celery, signals

import celery_guardrails

from .ledger import Ledger

HEADER = "crash"
PACKAGE = str(Path(celery_guardrails.__file__).parent) + os.sep
#: Methods of a store whose return is noted among the lines.
_NOTED = ("claim", "complete", "save_step", "release", "reset", "transaction")
#: File and function in which a message arrives in the main process.
_ARRIVAL = (os.path.join(PACKAGE, "integration", "strategy.py"), "on_message")


class Lines:
    """The lines of the package that are reached, and the death at one of them.

    Args:
        ledger: for what is noted; the file that says that a name has had its death is beside it.
        name: of the effect.
        spec: the header.
    """

    def __init__(self, ledger: Ledger, name: str, spec: Mapping[str, Any]) -> None:
        self.ledger, self.name, self.spec = ledger, name, spec
        self.point: str = spec.get("point", "")
        self.seen: Counter[str] = Counter()
        self.reached: list[str] = []
        self.marks: list[tuple[str, int]] = []
        self.attempt = 0

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        """What Python calls for every function that is entered."""
        return self.within if frame.f_code.co_filename.startswith(PACKAGE) else None

    def within(self, frame: FrameType, event: str, arg: Any) -> Any:
        """What Python calls for every line of the package."""
        if event == "line":
            self.line(frame)
        elif event == "return" and frame.f_code.co_name in _NOTED and "stores" in frame.f_code.co_filename:
            self.mark(frame.f_code.co_name)
        return self.within

    def line(self, frame: FrameType) -> None:
        """Count a line; die there if it is the one."""
        where = f"{frame.f_code.co_filename[len(PACKAGE) :]}:{frame.f_lineno}"
        self.seen[where] += 1
        here = f"{where}:{self.seen[where]}"
        if not self.point:
            self.reached.append(here)
        elif here == self.point:
            self._die()

    def mark(self, what: str) -> None:
        """Note that something has happened between two lines."""
        self.marks.append((what, len(self.reached)))

    def note(self) -> None:
        """Write into the ledger what was reached."""
        if not self.point:
            self.ledger.record("lines", self.name, reached=self.reached, marks=self.marks, attempt=self.attempt)

    def _die(self) -> None:
        try:
            os.close(os.open(self.ledger.path.parent / f"died-{self.name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        self.ledger.record("dies", self.name, point=self.point)
        os.kill(os.getpid(), signal.SIGKILL)


_present: Lines | None = None


def mark(what: str) -> None:
    """Note, in a task's body, that something has happened."""
    if _present is not None:
        _present.mark(what)


def install(app: Celery, ledger: Ledger) -> None:
    """Let the processes of this app's workers die where messages say."""

    def begin(task: Any = None, args: Any = (), **_: Any) -> None:
        global _present  # noqa: PLW0603 - one task at a time runs in a pool process
        spec = getattr(task.request, HEADER, None)
        delivery = task.request.get("guardrails_delivery")
        if not spec or spec["side"] != "child" or delivery is None:
            return
        if not spec.get("point") or delivery.travel.attempts == spec["attempt"]:
            _present = Lines(ledger, args[0], spec)
            _present.attempt = delivery.travel.attempts
            sys.settrace(_present.enter)

    def end(task: Any = None, **_: Any) -> None:
        global _present  # noqa: PLW0603 - see above
        sys.settrace(None)
        if _present is not None:
            _present.note()
        _present = None

    def watch(**_: Any) -> None:
        watcher = _Main(ledger)
        threading.settrace(watcher.enter)
        sys.settrace(watcher.enter)

    def unwatch(**_: Any) -> None:
        threading.settrace(None)
        sys.settrace(None)

    signals.task_prerun.connect(begin, weak=False)
    signals.task_postrun.connect(end, weak=False)
    signals.worker_init.connect(watch, weak=False)
    signals.worker_process_init.connect(unwatch, weak=False)


class _Main:
    """Sees the messages come into the main process, and the lines that are reached from then on in all its threads."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lines: Lines | None = None

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        if (code.co_filename, code.co_name) == _ARRIVAL:
            headers = frame.f_locals["message"].headers or {}
            spec = headers.get(HEADER)
            if spec and spec["side"] == "main" and (self._lines is None or self._lines.name != spec["name"]):
                self._lines = Lines(self._ledger, spec["name"], spec)
        return self.within if self._lines is not None else None

    def within(self, frame: FrameType, event: str, arg: Any) -> Any:
        lines = self._lines
        if lines is None:
            return None
        if event == "line":
            lines.line(frame)
        elif event == "return" and frame.f_code.co_name == lines.spec["until"] and threading.current_thread() is threading.main_thread():
            lines.note()
            self._lines = None
        return self.within


def supervise(module: str, arguments: list[str]) -> None:
    """Start a worker again and again, as long as it is killed."""
    # imported once, before the fork: a worker is up in a moment then
    for name in ("celery.apps.worker", "celery.concurrency.prefork", "kombu.transport.redis", "kombu.transport.pyamqp"):
        importlib.import_module(name)
    app: Celery = importlib.import_module(module).app
    while True:
        pid = os.fork()
        if pid == 0:
            app.worker_main(["worker", *arguments])
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return


if __name__ == "__main__":
    supervise(sys.argv[1], sys.argv[2:])
