"""The dependency: an HTTP server of limited capacity that slows, fails and heals when it is told to, and logs every call.

It knows nothing of tasks, attempts or contestants: its log is where all figures come from. Each line is a JSON list,
``["phase", time, name]`` or ``["call", arrived, ended, task, outcome]``, the times in seconds since the epoch. Outcomes:

=========  ===================================================================================================
``ok``     200, and the caller was still there to read it
``late``   the work was done, but the caller had gone: as most servers do, it does not notice before it answers
``busy``   503 at once: every slot and every place in the queue was taken
``down``   503
``hung``   no answer until the caller went away
``cut``    the server was stopped meanwhile
=========  ===================================================================================================

``POST /phase/NAME`` changes the phase, ``GET /call/TASK`` is the call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from .plan import PHASES, Plan

#: Seconds after which a caller that never goes away is let go.
_PATIENCE = 30.0


class Dependency:
    """The server.

    Args:
        plan: for its capacity.
        log: where every call is written to.
    """

    def __init__(self, plan: Plan, log: TextIO) -> None:
        self.plan = plan
        self.phase = "normal"
        self._log = log
        self._slots = asyncio.Semaphore(plan.slots)
        self._inside = 0
        self._failures = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one request of a connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
            _, kind, name = head.split(b" ", 2)[1].decode("ascii").split("/", 2)
            if kind == "phase" and name in PHASES:
                self.phase = name
                self._write("phase", time.time(), name)
                status: int | None = 200
            else:
                status = await self._call(name, reader)
            if status is not None:
                writer.write(b"HTTP/1.1 %d .\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
                await writer.drain()
        writer.close()

    async def _call(self, task: str, reader: asyncio.StreamReader) -> int | None:
        arrived, outcome = time.time(), "cut"
        try:
            outcome = await self._serve(reader)
        finally:
            self._write("call", arrived, time.time(), task, outcome)
        return {"ok": 200, "late": 200, "busy": 503, "down": 503}.get(outcome)

    async def _serve(self, reader: asyncio.StreamReader) -> str:
        if self.phase == "down":
            self._failures += 1
            if self._failures % self.plan.hang_every == 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(), _PATIENCE)
                return "hung"
            return "down"
        if self._inside >= self.plan.slots + self.plan.queue:
            return "busy"
        self._inside += 1
        try:
            async with self._slots:
                await asyncio.sleep(self.plan.slow_service if self.phase == "slow" else self.plan.service)
        finally:
            self._inside -= 1
        if self.phase == "down":
            return "down"
        return "late" if reader.at_eof() else "ok"

    def _write(self, *line: Any) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


async def serve(plan: Plan, port: int, log: TextIO) -> None:
    """Serve on the loopback interface until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_server(Dependency(plan, log).handle, "127.0.0.1", port, backlog=1024)
    await stop.wait()
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def main() -> int:
    """Serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm.dependency")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    chosen = parser.parse_args()
    with chosen.log.open("w", encoding="utf-8") as log:
        asyncio.run(serve(Plan(), chosen.port, log))
    return 0


if __name__ == "__main__":
    sys.exit(main())
