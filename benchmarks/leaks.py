"""What one look at the process costs, as ``guardrails_watch_leaks`` takes it before and after each task."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from celery_guardrails.integration.sampling import Sampler

from .report import Table

_LOOKS = 200


def looks(rounds: int) -> Table:
    """Measure a look at processes that have more and more open."""
    table = Table(
        f"One look at the process' threads, children, files and memory: the best of {rounds * 5} times {_LOOKS}",
        ["process", "CPU µs"],
        notes=["two of them a task"],
    )
    over = threading.Event()
    files: list[int] = []
    try:
        for some, number in (("few", 12), ("100", 100), ("1,000", 1000)):
            files += [os.open(os.devnull, os.O_RDONLY) for _ in range(number - len(files))]
            table.rows.append([f"{some} open files", _best(Sampler().snapshot, rounds * 5)])
        while files:
            os.close(files.pop())
        threads = [threading.Thread(target=over.wait, daemon=True) for _ in range(30)]
        for thread in threads:
            thread.start()
        table.rows.append(["30 threads", _best(Sampler().snapshot, rounds * 5)])
        over.set()
        for thread in threads:
            thread.join()
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            table.rows.append(["a child that lives", _best(Sampler().snapshot, rounds * 5)])
            child.communicate(b"\n")
    finally:
        over.set()
        for number in files:
            os.close(number)
    return table


def _best(look: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        start = time.process_time()
        for _ in range(_LOOKS):
            look()
        found.append((time.process_time() - start) / _LOOKS * 1e6)
    return min(found)
