"""A TCP proxy that a test can cut or stall: the network between a worker and its broker or store."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType


class Proxy:
    """Forwards a loopback port of its own to another one.

    One thread carries all connections; :meth:`cut`, :meth:`stall` and :meth:`mend` work on those that are open, too.
    """

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self._target = (host, target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._mode = "pass"
        self._lock = threading.Lock()
        self._closing = threading.Event()
        #: connections accepted and forwarded so far
        self.connections = 0
        self._thread = threading.Thread(target=self._work, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    def through(self, url: str) -> str:
        """Return the URL of what is behind it with its own port instead."""
        return url.replace(f":{self._target[1]}/", f":{self.port}/")

    def cut(self) -> None:
        """Reset what is open, refuse what comes: the host is gone."""
        with self._lock:
            self._mode = "cut"
            self._drop_all()

    def stall(self) -> None:
        """Keep everything open and carry nothing: packets are dropped, no error is seen."""
        with self._lock:
            self._mode = "stall"

    def mend(self) -> None:
        """Carry again; what was stalled goes on."""
        with self._lock:
            self._mode = "pass"

    def drop_connections(self) -> None:
        """Reset what is open once; new connections are carried."""
        with self._lock:
            self._drop_all()

    def close(self) -> None:
        """End it."""
        self._closing.set()
        self._thread.join(timeout=5)
        with self._lock:
            self._drop_all()
        self._selector.close()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._closing.is_set():
            if self._mode == "stall":
                self._closing.wait(0.02)
                continue
            for chosen, _ in self._selector.select(timeout=0.05):
                with self._lock:
                    if self._mode == "stall":
                        break
                    if chosen.fileobj is self._listener:
                        self._accept()
                    elif isinstance(chosen.fileobj, socket.socket) and chosen.fileobj in self._peers:
                        self._carry(chosen.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if self._mode == "cut":
            self._reset(near)
            return
        try:
            far = socket.create_connection(self._target, timeout=2)
        except OSError:
            self._reset(near)
            return
        self.connections += 1
        for one, other in ((near, far), (far, near)):
            one.settimeout(5)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _carry(self, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
            if data:
                self._peers[source].sendall(data)
                return
        except OSError:
            pass
        self._drop(source)

    def _drop(self, one: socket.socket) -> None:
        other = self._peers.pop(one, None)
        for end in (one, other):
            if end is not None:
                self._peers.pop(end, None)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(end)
                self._reset(end)

    def _drop_all(self) -> None:
        for one in list(self._peers):
            self._drop(one)

    @staticmethod
    def _reset(one: socket.socket) -> None:
        # A lingering close sends FIN; zero linger sends RST, which is what a dead host's kernel answers.
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        one.close()
