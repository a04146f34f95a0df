"""A payment gateway: a process of its own, reached over real HTTP, with its own ledger in SQLite.

It knows nothing of Celery. What it writes down is what the demo's figures are counted from:

* ``calls``: every call to ``POST /charges``, with time, order, idempotency key, calling process and answer,
* ``charges``: money that moved,
* ``phases``: when the gateway was up, down, mended.

As at most gateways' test systems, the amount (its last two digits) chooses what goes wrong:

======  ===========================================================================================
cents   behaviour
======  ===========================================================================================
``02``  402, the card is declined (until mended)
``40``  400, the request is refused (until mended)
``29``  429 with ``Retry-After: 2`` to the first call
``53``  503 to the first two calls
``54``  503 to every call (until mended)
``98``  the first call: the money moves, then no answer for :data:`HANG_SECONDS` (the caller times out)
other   200
======  ===========================================================================================

A repeated ``Idempotency-Key`` gets the answer of the first charge; a call without a key charges again, as at Stripe.
``POST /admin/down`` makes it answer 503, or close the connection, to everything for a while; ``POST /admin/mend`` ends all
failures. Run it alone with ``python -m example_project.gateway --ledger /tmp/ledger.sqlite3``.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HANG_SECONDS = 4.0
RETRY_AFTER_SECONDS = 2

DECLINED, REFUSED, BUSY, FLAKY, BROKEN, HANGS = 2, 40, 29, 53, 54, 98

SCHEMA = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, ended REAL, order_id INTEGER, idempotency_key TEXT, caller INTEGER,
    down INTEGER NOT NULL,              -- the gateway was down
    charged_before INTEGER NOT NULL,    -- the order had been charged already when the call came
    answer TEXT,                        -- NULL while it is worked on
    delivered INTEGER                   -- the caller was still there to read the answer
);
CREATE INDEX calls_by_order ON calls (order_id);
CREATE TABLE charges (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, order_id INTEGER NOT NULL, amount INTEGER NOT NULL,
    idempotency_key TEXT UNIQUE, call_id INTEGER NOT NULL REFERENCES calls (id)
);
CREATE INDEX charges_by_order ON charges (order_id);
CREATE TABLE phases (at REAL NOT NULL, phase TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Answer:
    """What goes back over the wire; ``status`` None closes the connection without a word."""

    status: int | None
    text: str
    body: dict[str, Any]
    retry_after: int | None = None


class Ledger:
    """The gateway's memory; safe for threads, readable from other processes while it is written."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(SCHEMA)

    def phase(self, name: str) -> None:
        """Write down that a phase begins."""
        with self._lock:
            self._db.execute("INSERT INTO phases VALUES (?, ?)", (time.time(), name))

    def call(self, order_id: int | None, key: str | None, caller: int | None, down: bool) -> tuple[int, int]:
        """Write a call down as it comes in; return its number and which call for this order it is, 1-based."""
        with self._lock:
            charged = self._one("SELECT count(*) FROM charges WHERE order_id = ?", order_id)
            number = self._one("SELECT count(*) FROM calls WHERE order_id = ? AND NOT down", order_id) + 1
            cursor = self._db.execute(
                "INSERT INTO calls (at, order_id, idempotency_key, caller, down, charged_before) VALUES (?,?,?,?,?,?)",
                (time.time(), order_id, key, caller, down, charged > 0),
            )
            return int(cursor.lastrowid or 0), number

    def charge(self, call_id: int, order_id: int, amount: int, key: str | None) -> tuple[int, bool]:
        """Move the money, or find the charge this key made before; return its number and whether it is new."""
        with self._lock:
            if key is not None:
                row = self._db.execute("SELECT id FROM charges WHERE idempotency_key = ?", (key,)).fetchone()
                if row:
                    return int(row[0]), False
            cursor = self._db.execute(
                "INSERT INTO charges (at, order_id, amount, idempotency_key, call_id) VALUES (?,?,?,?,?)",
                (time.time(), order_id, amount, key, call_id),
            )
            return int(cursor.lastrowid or 0), True

    def answer(self, call_id: int, text: str, delivered: bool) -> None:
        """Write down what the call was answered and whether anybody was there to read it."""
        with self._lock:
            self._db.execute("UPDATE calls SET ended = ?, answer = ?, delivered = ? WHERE id = ?", (time.time(), text, delivered, call_id))

    def _one(self, query: str, *values: Any) -> int:
        return int(self._db.execute(query, values).fetchone()[0])


class Gateway(ThreadingHTTPServer):
    """The server and its state."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], ledger: Ledger, down_seconds: float = 10.0) -> None:
        super().__init__(address, Handler)
        self.ledger = ledger
        self.down_seconds = down_seconds
        self.down_until = 0.0
        self.mended = False
        self.inflight: dict[int, dict[str, Any]] = {}

    def is_down(self) -> bool:
        """Whether it answers nobody at the moment."""
        return time.time() < self.down_until

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that was killed in mid-call is part of the day: no traceback."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def latency(self, order_id: int) -> float:
        """Return seconds of work for an order: 20 to 100 ms, the same every time."""
        return 0.02 + (order_id * 2654435761 % 1000) / 1000 * 0.08

    def work(self, call_id: int, number: int, order_id: int, amount: int, key: str | None) -> Answer:
        """Decide about a charge and, if all is well, make it."""
        if self.is_down():
            if order_id % 2:
                return Answer(None, "connection closed", {})
            return Answer(503, "503 down", {"error": "service unavailable"})
        cents = amount % 100
        time.sleep(self.latency(order_id) / 2)
        refusal = None if self.mended else self.refusal(cents, number)
        if refusal is not None:
            return refusal
        charge_id, new = self.ledger.charge(call_id, order_id, amount, key)
        time.sleep(self.latency(order_id) / 2)
        if cents == HANGS and number == 1 and not self.mended:
            time.sleep(HANG_SECONDS)
        body = {"charge": f"ch_{charge_id:06d}", "order_id": order_id, "amount": amount}
        return Answer(200, "200 charged" if new else "200 first charge returned", body)

    def refusal(self, cents: int, number: int) -> Answer | None:
        """Return what goes wrong with an amount, or None."""
        if cents == DECLINED:
            return Answer(402, "402 card declined", {"error": "card declined"})
        if cents == REFUSED:
            return Answer(400, "400 refused", {"error": "statement descriptor refused"})
        if cents == BUSY and number == 1:
            return Answer(429, "429 too many requests", {"error": "too many requests"}, RETRY_AFTER_SECONDS)
        if cents == BROKEN or (cents == FLAKY and number <= 2):
            return Answer(503, "503", {"error": "service unavailable"})
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection, one call."""

    server: Gateway

    def do_GET(self) -> None:
        """``/admin/inflight``: the calls that are worked on, so that the demo can kill a caller in the middle of one."""
        if self.path == "/admin/inflight":
            self.reply(Answer(200, "", {"calls": list(self.server.inflight.values()), "down": self.server.is_down()}))
        else:
            self.reply(Answer(404, "", {"error": "no such page"}))

    def do_POST(self) -> None:
        """``/charges``, ``/admin/down``, ``/admin/mend``."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path == "/charges":
            self.charges(body)
        elif self.path == "/admin/down":
            seconds = float(body.get("seconds", self.server.down_seconds))
            self.server.down_until = time.time() + seconds
            self.server.ledger.phase("down")
            timer = threading.Timer(seconds, self.server.ledger.phase, ("up",))
            timer.daemon = True
            timer.start()
            self.reply(Answer(200, "", {"down_for": seconds}))
        elif self.path == "/admin/mend":
            self.server.mended, self.server.down_until = True, 0.0
            self.server.ledger.phase("mended")
            self.reply(Answer(200, "", {"mended": True}))
        else:
            self.reply(Answer(404, "", {"error": "no such page"}))

    def charges(self, body: dict[str, Any]) -> None:
        """Take one charge through the ledger."""
        order_id, amount = int(body["order_id"]), int(body["amount"])
        key = self.headers.get("Idempotency-Key")
        caller = int(self.headers.get("X-Caller-Pid") or 0) or None
        call_id, number = self.server.ledger.call(order_id, key, caller, self.server.is_down())
        self.server.inflight[call_id] = {"call": call_id, "order_id": order_id, "caller": caller, "since": time.time()}
        try:
            answer = self.server.work(call_id, number, order_id, amount, key)
        finally:
            self.server.inflight.pop(call_id, None)
        # the caller may read the answer and call again before we are back here: write it down first
        self.server.ledger.answer(call_id, answer.text, self.caller_is_there())
        self.reply(answer)

    def caller_is_there(self) -> bool:
        """Whether the other end of the connection is still open (a killed or timed-out caller's is not)."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return True
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def reply(self, answer: Answer) -> None:
        """Send an answer; a caller that has gone is no error of ours."""
        self.close_connection = True
        if answer.status is None:
            return
        payload = json.dumps(answer.body).encode()
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            if answer.retry_after is not None:
                self.send_header("Retry-After", str(answer.retry_after))
            self.end_headers()
            self.wfile.write(payload)
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Keep quiet: the ledger is the log."""


def main(argv: list[str] | None = None) -> int:
    """Serve on a free loopback port until standard input closes (so that it never outlives who started it)."""
    parser = argparse.ArgumentParser(description="payment gateway of the demo")
    parser.add_argument("--ledger", type=Path, required=True, help="SQLite file to write; must not exist yet")
    parser.add_argument("--port", type=int, default=0, help="loopback port, 0 for a free one")
    options = parser.parse_args(argv)
    if options.ledger.exists():
        parser.error(f"{options.ledger} exists already")
    ledger = Ledger(options.ledger)
    ledger.phase("up")
    server = Gateway(("127.0.0.1", options.port), ledger)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        while os.read(0, 1024):
            pass
    except KeyboardInterrupt:
        pass
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
