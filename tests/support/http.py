"""An HTTP server of a test's own that answers every request as it was told, also as no server should."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["HttpServer"]


class HttpServer:
    """Listens on loopback until :meth:`close`; a test says with :meth:`answer` or :meth:`misbehave` what comes next.

    Args:
        context: speak TLS with it.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._over = threading.Event()
        #: Method, path, headers and body of each request, as they came.
        self.requests: list[tuple[str, str, Mapping[str, str], bytes]] = []
        self._act: Callable[[_Handler], None] = _Handler.nothing
        server = self

        class Handler(_Handler):
            def act(self) -> None:
                server._act(self)

            def came(self, body: bytes) -> None:
                server.requests.append((self.command, self.path, dict(self.headers), body))

            def wait(self) -> None:
                server._over.wait(30)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is what tests are after
        if context is not None:
            # the handshake in the thread of the connection: one client that refuses must not end the server
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self._server.server_port}"

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> str:
        """Answer so from now on; returns the URL."""
        self._act = lambda handler: handler.respond(status, body, headers or {})
        return self.url

    def misbehave(self, how: str) -> str:
        """Do from now on one of the methods of :class:`_Handler`; returns the URL."""
        self._act = lambda handler: getattr(handler, how)()
        return self.url

    def close(self) -> None:
        """End it, and every answer that is still waited for."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def act(self) -> None:
        """Answer a request."""

    def wait(self) -> None:
        """Wait for the end of the server."""

    def came(self, body: bytes) -> None:
        """Keep a request."""

    def _any(self) -> None:
        self.came(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self.close_connection = True
        self.act()

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _any  # noqa: N815 - their names in http.server

    def respond(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answer as HTTP has it."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def nothing(self) -> None:
        """Hang up without a word."""

    def garbage(self) -> None:
        """Speak something else."""
        self.wfile.write(b"\x16\x03\x01 what\r\n\r\n")

    def half(self) -> None:
        """Hang up in the middle of the body."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    def reset(self) -> None:
        """Reset the connection in the middle of the body."""
        self.half()
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def bad_chunk(self) -> None:
        """Send a chunk whose size is no number."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")

    def bad_gzip(self) -> None:
        """Say that the body is compressed, which it is not."""
        self.respond(200, b"nope", {"Content-Encoding": "gzip"})

    def silent(self) -> None:
        """Do not answer at all."""
        self.wait()

    def stalled(self) -> None:
        """Stop in the middle of the body."""
        self.half()
        self.wfile.flush()
        self.wait()

    def again(self) -> None:
        """Redirect to itself."""
        self.respond(302, b"", {"Location": self.path})

    def log_message(self, *args: Any) -> None:
        """Say nothing."""
