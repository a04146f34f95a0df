"""The server of the probes: few pages, two methods, and clients that are slow, rude or gone."""

from __future__ import annotations

import os
import select
import socket
import time
import urllib.error
import urllib.request

import pytest

from celery_guardrails.worker import http_server
from celery_guardrails.worker.http_server import Answer, HttpServer
from tests.support import eventually


def broken(headers):
    raise RuntimeError("password=hunter2")


PAGES = {
    "/page": lambda headers: Answer(200, f"hello {headers.get('Accept', '')}\n".encode()),
    "/red": lambda headers: Answer(503, b"not ready: stopping\n"),
    "/broken": broken,
}


@pytest.fixture
def server():
    made = HttpServer("127.0.0.1", 0, PAGES)
    made.start()
    yield made
    made.close()


def say(server, data, *, then=b""):
    """Send bytes as they are and return all that comes back."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=30) as client:
        client.sendall(data)
        answer = b""
        while True:
            try:
                part = client.recv(65536)
            except ConnectionResetError:
                return answer
            if not part:
                return answer
            answer += part


def test_a_page_is_answered_and_the_connection_ended(server):
    answer = say(server, b"GET /page?x=1 HTTP/1.1\r\nHost: x\r\nAccept: me\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert b"Content-Length: 9" in head
    assert b"Python" not in head
    assert body == b"hello me\n"


def test_head_is_answered_without_a_body(server):
    answer = say(server, b"HEAD /red HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 503 ")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 20" in answer


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /elsewhere HTTP/1.1", b"404"),
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /../page HTTP/1.1", b"404"),
        (b"POST /page HTTP/1.1", b"405"),
        (b"DELETE /page HTTP/1.1", b"405"),
        (b"BREW /page HTTP/1.1", b"501"),
        (b"what is this", b"400"),
        (b"GET /page HTTP/9.9", b"505"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1", b"414"),
    ],
)
def test_everything_else_is_refused_in_a_word(server, request_line, status):
    answer = say(server, request_line + b"\r\n\r\n")
    assert status in answer.partition(b"\r\n")[0] or answer == status + b"\n"
    assert len(answer.partition(b"\r\n\r\n")[2]) < 60
    assert say(server, b"GET /page HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 200")


def test_a_page_that_fails_says_so_and_nothing_of_its_error(server, caplog):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{server.address}/broken", timeout=30)
    assert caught.value.code == 500
    assert caught.value.read() == b"failed; the worker's log says why\n"
    assert "/broken failed" in caplog.text


@pytest.mark.parametrize("words", [b"", b"GET /page HTTP/1.1\r\nX: "])
def test_a_client_that_sends_a_byte_now_and_then_is_ended(server, monkeypatch, words):
    monkeypatch.setattr(http_server, "_LONGEST", 1.5)
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(words)
        begun = time.monotonic()

        def ended():
            try:
                client.sendall(b"x")
                return bool(select.select([client], [], [], 0)[0]) and client.recv(1000) == b""
            except OSError:
                return True

        eventually(ended, 30, every=0.2)
        assert time.monotonic() - begun < 10


def test_many_open_connections_keep_no_one_out(server, monkeypatch):
    monkeypatch.setattr(http_server, "_LONGEST", 1000.0)  # nor do they have to be waited for
    monkeypatch.setattr(http_server._Handler, "timeout", 1000.0)
    host, _, port = server.address.rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(3 * http_server._CLIENTS)]
    assert say(server, b"GET /page HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 200")

    def ended():
        return [client for client in idle if select.select([client], [], [], 0)[0]]

    eventually(lambda: len(ended()) == len(idle) - http_server._CLIENTS + 1, 30)  # the last question was one more
    assert set(ended()) == set(idle[: len(ended())]), "the oldest"
    for client in idle:
        client.close()


def test_a_client_that_has_gone_before_its_answer_is_no_trouble(server, caplog):
    host, _, port = server.address.rpartition(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /page HTTP/1.1\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert say(server, b"GET /page HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 200")
    eventually(lambda: not server._open, 30)
    assert "failed" not in caplog.text


def test_it_listens_on_ipv6_as_it_is_written_in_the_setting():
    server = HttpServer("::1", 0, PAGES)
    try:
        assert server.address.startswith("[::1]:")
        server.start()
        assert say(server, b"GET /page HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 200")
    finally:
        server.close()


def test_a_port_can_be_taken_again_at_once_after_it_was_used(server):
    say(server, b"GET /page HTTP/1.1\r\n\r\n")
    host, _, port = server.address.rpartition(":")
    with pytest.raises(OSError, match="in use"):
        HttpServer(host, int(port), PAGES)
    server.close()
    eventually(lambda: HttpServer(host, int(port), PAGES), 30, ignoring=(OSError,)).close()


def test_a_name_that_nobody_knows_is_an_error_that_says_so():
    with pytest.raises(OSError):
        HttpServer("no-such-host.invalid", 0, PAGES)


def test_a_forked_process_can_close_its_copies_and_the_parent_goes_on(server):
    pid = os.fork()
    if pid == 0:
        try:
            server.close()
            server.forget_clients()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert say(server, b"GET /page HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 200")
