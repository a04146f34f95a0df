"""The shipped rules against the real client libraries of HTTP, gRPC and clouds, each where it is installed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.classify import Classifier

otherwise_permanent = Classifier(default_kind="permanent")
otherwise_retryable = Classifier(default_kind="retryable")


def kind_and_rule(error: BaseException) -> tuple[str, str]:
    one, other = otherwise_permanent(error), otherwise_retryable(error)
    assert one == other, f"{error!r} fell through to the default"
    return one.kind, one.rule


class _Answers(BaseHTTPRequestHandler):
    """``GET /503/7`` answers 503 with ``Retry-After: 7``; ``/cut`` hangs up in the middle of a body."""

    def do_GET(self) -> None:
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
            return
        _, status, wait = self.path.split("/")
        self.send_response(int(status))
        self.send_header("Retry-After", wait)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as httpd:
        thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses connections: bound, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


STATUSES = [(503, "retryable", 7.0), (429, "throttled", 7.0), (404, "permanent", None), (501, "permanent", None)]
REFUSED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"


def test_requests(server: str, nobody: str) -> None:
    requests = pytest.importorskip("requests")

    def caught(url: str) -> BaseException:
        with pytest.raises(requests.RequestException) as info:
            requests.get(url, timeout=5).raise_for_status()
        return info.value

    for status, kind, wait in STATUSES:
        assert otherwise_permanent(caught(f"{server}/{status}/7")) == Classification(kind, wait, f"http.{status}")
    assert kind_and_rule(caught(nobody)) == ("retryable", "requests.ConnectionError")
    assert kind_and_rule(caught(f"{server}/cut"))[0] == "retryable"
    assert kind_and_rule(caught("no scheme"))[0] == "permanent"
    assert kind_and_rule(requests.ReadTimeout()) == ("retryable", "requests.Timeout")
    assert kind_and_rule(requests.TooManyRedirects()) == ("permanent", "requests.TooManyRedirects")
    assert kind_and_rule(requests.exceptions.SSLError(REFUSED)) == ("permanent", "requests.SSLError")
    assert kind_and_rule(requests.exceptions.SSLError("EOF occurred")) == ("retryable", "requests.SSLError")
    assert kind_and_rule(requests.exceptions.JSONDecodeError("no", "<html>", 0))[0] == "retryable"
    assert otherwise_permanent(requests.RequestException()).rule == "default"


def test_httpx(server: str, nobody: str) -> None:
    httpx = pytest.importorskip("httpx")

    def caught(url: str) -> BaseException:
        with pytest.raises((httpx.HTTPError, httpx.InvalidURL)) as info:
            httpx.get(url, trust_env=False).raise_for_status()
        return info.value

    for status, kind, wait in STATUSES:
        assert otherwise_permanent(caught(f"{server}/{status}/7")) == Classification(kind, wait, f"http.{status}")
    assert kind_and_rule(caught(nobody)) == ("retryable", "httpx.ConnectError")
    assert kind_and_rule(caught(f"{server}/cut"))[0] == "retryable"
    assert kind_and_rule(caught("ftp://x")) == ("permanent", "httpx.UnsupportedProtocol")
    assert kind_and_rule(httpx.PoolTimeout("x")) == ("retryable", "httpx.TransportError")
    assert kind_and_rule(httpx.ConnectError(REFUSED)) == ("permanent", "httpx.ConnectError")
    assert kind_and_rule(httpx.TooManyRedirects("x"))[0] == "permanent"
    assert kind_and_rule(httpx.LocalProtocolError("x"))[0] == "permanent"
    assert kind_and_rule(httpx.ResponseNotRead())[0] == "permanent"


def test_aiohttp(server: str, nobody: str) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    import asyncio

    async def get(url: str) -> None:
        async with aiohttp.ClientSession(raise_for_status=True) as session, session.get(url) as response:
            await response.read()

    def caught(url: str) -> BaseException:
        with pytest.raises(aiohttp.ClientError) as info:
            asyncio.run(get(url))
        return info.value

    for status, kind, wait in STATUSES:
        assert otherwise_permanent(caught(f"{server}/{status}/7")) == Classification(kind, wait, f"http.{status}")
    assert kind_and_rule(caught(nobody)) == ("retryable", "aiohttp.ClientConnectionError")
    assert kind_and_rule(caught(f"{server}/cut")) == ("retryable", "aiohttp.ClientPayloadError")
    assert kind_and_rule(caught("http://")) == ("permanent", "aiohttp.InvalidURL")
    assert kind_and_rule(aiohttp.ServerTimeoutError())[0] == "retryable"
    assert kind_and_rule(aiohttp.ContentTypeError(None, (), status=200)) == ("retryable", "aiohttp.ClientResponseError")  # type: ignore[arg-type]
    certificate = aiohttp.ClientConnectorCertificateError(None, ssl.SSLCertVerificationError())
    assert kind_and_rule(certificate) == ("permanent", "aiohttp.ClientConnectorCertificateError")


def test_urllib3(server: str, nobody: str) -> None:
    urllib3 = pytest.importorskip("urllib3")
    exceptions = urllib3.exceptions

    def caught(url: str, **options: Any) -> BaseException:
        with pytest.raises(exceptions.HTTPError) as info:
            urllib3.PoolManager().request("GET", url, **options)
        return info.value

    assert kind_and_rule(caught(nobody, retries=False))[0] == "retryable"
    assert kind_and_rule(caught(nobody, retries=1)) == ("retryable", "urllib3.TimeoutError")
    forced = urllib3.Retry(total=0, status_forcelist=[503], respect_retry_after_header=False)
    assert kind_and_rule(caught(f"{server}/503/7", retries=forced)) == ("retryable", "urllib3.ResponseError")
    assert kind_and_rule(caught(f"{server}/cut", retries=False)) == ("retryable", "urllib3.ProtocolError")
    assert kind_and_rule(caught("foo://x")) == ("permanent", "urllib3.LocationValueError")
    assert kind_and_rule(exceptions.MaxRetryError(None, "/", exceptions.SSLError(REFUSED))) == ("permanent", "urllib3.SSLError")
    assert kind_and_rule(exceptions.MaxRetryError(None, "/", None)) == ("retryable", "urllib3.MaxRetryError")
    assert kind_and_rule(exceptions.SSLError("EOF"))[0] == "retryable"


def test_botocore(nobody: str) -> None:
    pytest.importorskip("botocore")
    import botocore.config
    import botocore.session
    from botocore import exceptions

    def client_error(code: str, status: int = 400, **headers: str) -> BaseException:
        meta = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        return exceptions.ClientError({"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": meta}, "PutItem")  # type: ignore[typeddict-item]

    for code in ("ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded", "SlowDown"):
        assert kind_and_rule(client_error(code)) == ("throttled", f"botocore.{code}")
    assert kind_and_rule(client_error("RequestTimeout")) == ("retryable", "botocore.RequestTimeout")
    assert kind_and_rule(client_error("Odd", 503)) == ("retryable", "http.503")
    assert kind_and_rule(client_error("ConditionalCheckFailedException")) == ("permanent", "http.400")
    assert kind_and_rule(client_error("AccessDenied", 403)) == ("permanent", "http.403")
    assert otherwise_permanent(client_error("SlowDown", 503, **{"retry-after": "4"})).retry_after == 4.0
    assert otherwise_permanent(exceptions.ClientError({}, "PutItem")).rule == "default"  # type: ignore[arg-type]

    config = botocore.config.Config(retries={"max_attempts": 0}, connect_timeout=1, parameter_validation=True)
    client = botocore.session.Session().create_client(
        "sqs", "eu-west-1", endpoint_url=nobody, aws_access_key_id="x", aws_secret_access_key="x", config=config
    )
    with pytest.raises(exceptions.EndpointConnectionError) as refused:
        client.list_queues()
    assert kind_and_rule(refused.value) == ("retryable", "botocore.ConnectionError")
    with pytest.raises(exceptions.ParamValidationError) as wrong:
        client.send_message()
    assert kind_and_rule(wrong.value) == ("permanent", "botocore.ParamValidationError")
    assert kind_and_rule(exceptions.ReadTimeoutError(endpoint_url="x")) == ("retryable", "botocore.HTTPClientError")
    assert kind_and_rule(exceptions.SSLError(endpoint_url="x", error=REFUSED)) == ("permanent", "botocore.SSLError")


def test_google_api_core() -> None:
    google = pytest.importorskip("google.api_core.exceptions")

    assert kind_and_rule(google.ServiceUnavailable("x"))[0] == "retryable"
    assert kind_and_rule(google.TooManyRequests("x"))[0] == "throttled"
    assert kind_and_rule(google.ResourceExhausted("x"))[0] == "throttled"
    assert kind_and_rule(google.Aborted("x")) == ("retryable", "grpc.ABORTED")
    assert kind_and_rule(google.Cancelled("x")) == ("retryable", "grpc.CANCELLED")
    assert kind_and_rule(google.DataLoss("x")) == ("permanent", "grpc.DATA_LOSS")
    assert kind_and_rule(google.DeadlineExceeded("x"))[0] == "retryable"
    assert kind_and_rule(google.RetryError("x", None)) == ("retryable", "google.RetryError")
    for cls in (google.NotFound, google.InvalidArgument, google.PermissionDenied, google.AlreadyExists, google.MethodNotImplemented):
        assert kind_and_rule(cls("x"))[0] == "permanent", cls
    assert kind_and_rule(google.from_http_status(502, "x")) == ("retryable", "http.502")


def test_google_api_core_honours_the_wait_of_retry_info_and_of_headers() -> None:
    google = pytest.importorskip("google.api_core.exceptions")
    details = pytest.importorskip("google.rpc.error_details_pb2")
    from types import SimpleNamespace

    info = details.RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = 3, 500_000_000
    assert otherwise_permanent(google.ResourceExhausted("x", details=[details.ErrorInfo(), info])).retry_after == 3.5
    as_json = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.25s"}
    assert otherwise_permanent(google.ServiceUnavailable("x", details=[as_json])).retry_after == 2.25
    response = SimpleNamespace(headers={"Retry-After": "9"})
    assert otherwise_permanent(google.TooManyRequests("x", response=response)).retry_after == 9.0
    assert otherwise_permanent(google.NotFound("x", details=[info])).retry_after is None


def test_google_auth() -> None:
    auth = pytest.importorskip("google.auth.exceptions")
    assert kind_and_rule(auth.TransportError("x"))[0] == "retryable"
    assert kind_and_rule(auth.RefreshError("x", retryable=True)) == ("retryable", "google.GoogleAuthError")
    assert kind_and_rule(auth.DefaultCredentialsError("x"))[0] == "permanent"
    assert otherwise_permanent(auth.RefreshError("x")).rule == "default"


def test_grpc_by_status_code(nobody: str) -> None:
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(nobody.removeprefix("http://")) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/x/y", _registered_method=False)(b"", timeout=5)
    assert kind_and_rule(refused.value) == ("retryable", "grpc.UNAVAILABLE")
    assert otherwise_permanent(grpc.RpcError()).rule == "default"
    assert kind_and_rule(grpc.FutureTimeoutError())[0] == "retryable"


def test_every_grpc_status_has_a_kind() -> None:
    grpc = pytest.importorskip("grpc")
    from celery_guardrails.policy.rules.grpc import STATUS

    assert set(STATUS) == {code.name for code in grpc.StatusCode} - {"OK"}


def test_grpc_honours_the_wait_in_the_trailing_metadata() -> None:
    """From a real server, through google.rpc.Status as grpcio-status packs it, and as gRFC A6 has it."""
    grpc = pytest.importorskip("grpc")
    details = pytest.importorskip("google.rpc.error_details_pb2")
    from concurrent.futures import ThreadPoolExecutor

    from google.protobuf import any_pb2
    from google.rpc import status_pb2

    info = details.RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = 4, 250_000_000
    packed, other = any_pb2.Any(), any_pb2.Any()
    packed.Pack(info)
    other.Pack(details.ErrorInfo(reason="x"))
    status = status_pb2.Status(code=14, message="busy", details=[other, packed])
    trailing = {
        "/t/details": (("grpc-status-details-bin", status.SerializeToString()),),
        "/t/info": (("google.rpc.retryinfo-bin", info.SerializeToString()),),
        "/t/pushback": (("grpc-retry-pushback-ms", "1500"),),
        "/t/never": (("grpc-retry-pushback-ms", "-1"),),
        "/t/none": (("x-other", "1"),),
    }

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            def refuse(request: bytes, context: Any) -> bytes:
                context.set_trailing_metadata(trailing[call.method])
                context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
                return b""

            return grpc.unary_unary_rpc_method_handler(refuse)

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        waits = {}
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method in trailing:
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(method, _registered_method=False)(b"", timeout=10)
                found = otherwise_permanent(refused.value)
                assert (found.kind, found.rule) == ("retryable", "grpc.UNAVAILABLE")
                waits[method] = found.retry_after
        server.stop(None)
    assert waits == {"/t/details": 4.25, "/t/info": 4.25, "/t/pushback": 1.5, "/t/never": None, "/t/none": None}


def test_stripe() -> None:
    stripe = pytest.importorskip("stripe")
    limited = stripe.RateLimitError("x", http_status=429, headers={"Retry-After": "2"})
    assert otherwise_permanent(limited) == Classification("throttled", 2.0, "stripe.RateLimitError")
    assert kind_and_rule(stripe.APIConnectionError("x")) == ("retryable", "stripe.APIConnectionError")
    assert kind_and_rule(stripe.APIError("x", http_status=500)) == ("retryable", "http.500")
    assert kind_and_rule(stripe.APIError("x")) == ("retryable", "stripe.APIError")
    assert kind_and_rule(stripe.CardError("x", None, "card_declined", http_status=402)) == ("permanent", "stripe.CardError")
    assert kind_and_rule(stripe.AuthenticationError("x", http_status=401)) == ("permanent", "stripe.AuthenticationError")
    assert kind_and_rule(stripe.IdempotencyError("x", http_status=400)) == ("permanent", "stripe.IdempotencyError")
    told = stripe.InvalidRequestError("x", None, http_status=409, headers={"stripe-should-retry": "true"})
    assert kind_and_rule(told) == ("retryable", "stripe.should_retry")
    locked = stripe.InvalidRequestError("x", None, code="lock_timeout", http_status=429)
    assert kind_and_rule(locked) == ("throttled", "stripe.should_retry")
