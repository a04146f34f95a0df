"""A small HTTP server in threads of its own, for probes: it answers GET and HEAD on a few pages, and no client can hold it up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any

from celery.utils.log import get_logger

__all__ = ["Answer", "HttpServer", "Page"]

logger = get_logger(__name__)

#: Seconds that a client may be silent, and that it may take altogether.
_SILENCE, _LONGEST = 5.0, 10.0
#: Clients at one time; one more, and the connection that is open the longest is ended.
_CLIENTS = 32
#: Seconds between two looks at clients that take too long.
_LOOK = 0.5


@dataclass(frozen=True)
class Answer:
    """What a page answers.

    Args:
        status: of HTTP.
        body: bytes.
        content_type: of the body.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


#: Gets the headers of the request.
Page = Callable[[Message], Answer]


class HttpServer:
    """Listens from the beginning, answers from :meth:`start` on, until the process ends or :meth:`close`.

    The loop is its own and not :mod:`socketserver`'s: that one waits with ``select.poll``, which it may have taken before gevent
    replaced it, and a gevent worker would stand still.

    Args:
        host: name or address.
        port: number; 0 for any that is free.
        pages: by their path.

    Raises:
        OSError: nobody can listen there.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self._socket = _listener(host, port)
        # accept() must not wait for a client that has gone again, nor the look at slow ones for the next
        self._socket.settimeout(_LOOK)
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self._over = False

    @property
    def address(self) -> str:
        """Where it listens, as in the setting."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._accept, name="guardrails-http", daemon=True).start()

    def close(self) -> None:
        """Listen no longer. In a forked process it closes that process's copy only."""
        self._over = True
        with contextlib.suppress(OSError):
            self._socket.close()

    def forget_clients(self) -> None:
        """In a forked process: close its copies of the connections."""
        for client in list(self._open):
            with contextlib.suppress(OSError):
                client.close()

    def _accept(self) -> None:
        while not self._over:
            self._end_slow_clients()
            try:
                client, address = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as exc:  # too many open files, or closed
                logger.debug("guardrails_http: %r", exc)
                time.sleep(_LOOK / 5)
                continue
            self._note(client)
            try:
                threading.Thread(target=self._serve, args=(client, address), name="guardrails-http-client", daemon=True).start()
            except RuntimeError:  # no more threads
                self._end(client)

    def _note(self, client: socket.socket) -> None:
        with self._lock:
            if len(self._open) >= _CLIENTS:
                oldest = min(self._open, key=self._open.__getitem__)
                del self._open[oldest]  # now: its thread may come to it later, and the next client must not end it once more
                _hang_up(oldest)
            self._open[client] = time.monotonic()

    def _end_slow_clients(self) -> None:
        late = time.monotonic() - _LONGEST
        with self._lock:
            for client, since in self._open.items():
                if since < late:
                    _hang_up(client)

    def _serve(self, client: socket.socket, address: Any) -> None:
        try:
            _Handler(client, address, self)  # type: ignore[arg-type]  # it hands it on to itself only
        except OSError as exc:
            logger.debug("guardrails_http: a client has gone: %r", exc)
        except Exception:
            logger.exception("guardrails_http: a request failed")
        finally:
            self._end(client)

    def _end(self, client: socket.socket) -> None:
        with self._lock:
            self._open.pop(client, None)
        _hang_up(client)  # also where a child that was forked meanwhile has a copy
        client.close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of one connection."""

    server: Any
    timeout = _SILENCE
    server_version, sys_version = "celery-guardrails", ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse(self) -> None:
        self._send(Answer(405, b"only GET and HEAD\n"), ("Allow", "GET, HEAD"))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815 - their names in http.server

    def _answer(self) -> None:
        pages: Mapping[str, Page] = self.server.pages
        path = self.path.partition("?")[0]
        page = pages.get(path)
        if page is None:
            self._send(Answer(404, f"there are {', '.join(pages)}\n".encode()))
            return
        try:
            answer = page(self.headers)
        except Exception:
            logger.exception("guardrails_http: %s failed", path)
            answer = Answer(500, b"failed; the worker's log says why\n")
        self._send(answer)

    def _send(self, answer: Answer, *headers: tuple[str, str]) -> None:
        self.send_response(answer.status)
        for name, value in (
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no HTTP in a word, and not with a page that repeats it."""
        self.close_connection = True
        self._send(Answer(code, f"{int(code)}\n".encode()))

    def log_message(self, *args: Any) -> None:
        """Say nothing: a probe every few seconds is no news."""


def _listener(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # "localhost" is both: probes that say 127.0.0.1 mean the older one
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, backlog=_CLIENTS, dualstack_ipv6=both)


def _hang_up(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
