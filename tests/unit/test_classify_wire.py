"""What HTTP clients make of what servers really do on the wire, and what the shipped rules make of that."""

from __future__ import annotations

import asyncio
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from celery_guardrails.policy.classify import Classifier
from tests.support.http import HttpServer
from tests.support.sessions import kind_and_rule, raised_by

# Seconds: of a client that waits for an answer that comes, on a machine as busy as it likes; of one that is left to wait.
PATIENT, HASTY = 30.0, 0.25


def with_requests(url: str, seconds: float = PATIENT) -> None:
    requests = pytest.importorskip("requests")
    requests.get(url, timeout=seconds).raise_for_status()


def with_httpx(url: str, seconds: float = PATIENT) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(timeout=seconds, trust_env=False, follow_redirects=True) as client:
        client.get(url).raise_for_status()


def with_httpx_async(url: str, seconds: float = PATIENT) -> None:
    httpx = pytest.importorskip("httpx")

    async def get() -> None:
        async with httpx.AsyncClient(timeout=seconds, trust_env=False, follow_redirects=True) as client:
            (await client.get(url)).raise_for_status()

    asyncio.run(get())


def with_aiohttp(url: str, seconds: float = PATIENT) -> None:
    aiohttp = pytest.importorskip("aiohttp")

    async def get() -> None:
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with aiohttp.ClientSession(raise_for_status=True, timeout=timeout) as session, session.get(url) as response:
            await response.read()

    asyncio.run(get())


def with_urllib(url: str, seconds: float = PATIENT) -> None:
    with urllib.request.urlopen(url, timeout=seconds) as response:
        response.read()


def with_urllib3(url: str, seconds: float = PATIENT) -> None:
    """Its own retries, which end in a ``MaxRetryError``."""
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager() as pool:
        pool.request("GET", url, timeout=seconds, retries=urllib3.Retry(1, backoff_factor=0))


def with_urllib3_alone(url: str, seconds: float = PATIENT) -> None:
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.PoolManager() as pool:
        pool.request("GET", url, timeout=seconds, retries=False)


BY_STATUS = (with_requests, with_httpx, with_httpx_async, with_aiohttp, with_urllib)
CLIENTS = (*BY_STATUS, with_urllib3, with_urllib3_alone)

Client = Callable[..., None]


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.close()


STATUSES = {
    "retryable": (408, 425, 500, 502, 503, 504),
    "throttled": (429,),
    "permanent": (400, 401, 403, 404, 405, 409, 410, 412, 413, 415, 422, 423, 451, 501, 505),
}


@pytest.mark.parametrize("client", BY_STATUS)
def test_a_status_has_its_kind_and_the_wait_that_comes_with_it_in_seconds_or_as_a_date(client: Client, server: HttpServer) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)
    for kind, statuses in STATUSES.items():
        for status in statuses:
            found = Classifier()(raised_by(client, server.answer(status, headers={"Retry-After": "7"})))
            assert (found.kind, found.rule) == (kind, f"http.{status}")
            assert found.retry_after == (None if kind == "permanent" else 7.0)
            found = Classifier()(raised_by(client, server.answer(status, headers={"Retry-After": later})), now=now.timestamp())
            assert found.retry_after == (None if kind == "permanent" else 90.0)


@pytest.mark.parametrize(
    ("client", "how"),
    [
        (client, how)
        for client in CLIENTS
        for how in ("nothing", "garbage", "half", "reset", "bad_chunk", "bad_gzip", "silent", "stalled")
        if (client, how) != (with_urllib, "bad_gzip")  # which does not uncompress
    ],
)
def test_an_answer_that_is_none_is_retryable(client: Client, server: HttpServer, how: str) -> None:
    seconds = HASTY if how in ("silent", "stalled") else PATIENT
    assert kind_and_rule(raised_by(client, server.misbehave(how), seconds))[0] == "retryable"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_port_that_nobody_listens_on_and_a_name_that_nobody_knows_are_retryable(client: Client) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert kind_and_rule(raised_by(client, f"http://127.0.0.1:{bound.getsockname()[1]}"))[0] == "retryable"
    assert kind_and_rule(raised_by(client, "http://nobody.invalid"))[0] == "retryable"


@pytest.mark.parametrize("client", CLIENTS)
def test_an_address_that_is_none_is_permanent(client: Client) -> None:
    for url in ("http://", "unknown://host"):
        assert kind_and_rule(raised_by(client, url))[0] == "permanent", url


@pytest.fixture(scope="module")
def self_signed() -> Iterator[HttpServer]:
    trustme = pytest.importorskip("trustme")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server = HttpServer(context)
    yield server
    server.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_certificate_that_nobody_knows_is_permanent_and_what_does_not_speak_tls_is_not(
    client: Client, server: HttpServer, self_signed: HttpServer
) -> None:
    assert kind_and_rule(raised_by(client, self_signed.answer(200)))[0] == "permanent"
    assert kind_and_rule(raised_by(client, server.answer(200).replace("http:", "https:"), HASTY))[0] == "retryable"


@pytest.mark.parametrize("client", [each for each in CLIENTS if each is not with_urllib3_alone])
def test_a_redirect_in_a_circle_is_permanent(client: Client, server: HttpServer) -> None:
    assert kind_and_rule(raised_by(client, server.misbehave("again")))[0] == "permanent"


@pytest.mark.parametrize(("status", "kind"), [(503, "retryable"), (429, "throttled"), (404, "retryable")])
def test_where_urllib3_itself_has_tried_again_the_status_still_counts(server: HttpServer, status: int, kind: str) -> None:
    urllib3, requests = pytest.importorskip("urllib3"), pytest.importorskip("requests")
    retry = urllib3.Retry(1, backoff_factor=0, status_forcelist=[status], respect_retry_after_header=False)
    url = server.answer(status)
    assert kind_and_rule(raised_by(lambda: urllib3.PoolManager().request("GET", url, retries=retry)))[0] == kind
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    assert kind_and_rule(raised_by(session.get, url))[0] == kind


def test_a_page_where_json_belongs_is_retryable_where_the_client_says_so(server: HttpServer) -> None:
    requests, aiohttp = pytest.importorskip("requests"), pytest.importorskip("aiohttp")
    url = server.answer(200, b"<html>", {"Content-Type": "text/html"})

    async def get() -> Any:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await response.json()

    assert kind_and_rule(raised_by(requests.get(url, timeout=5).json))[0] == "retryable"
    assert kind_and_rule(raised_by(asyncio.run, get()))[0] == "retryable"
