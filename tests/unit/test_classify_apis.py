"""stripe's and Google's own clients against local servers: what they raise, and what the shipped rules make of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.classify import Classifier
from tests.support.http import HttpServer
from tests.support.sessions import kind_and_rule, raised_by

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.close()


# -- stripe ---------------------------------------------------------------------------------------------------------


def stripes_error(url: str) -> Exception:
    stripe = pytest.importorskip("stripe")
    client = stripe.StripeClient(
        "sk_test_x", base_addresses={"api": url}, max_network_retries=0, http_client=stripe.RequestsClient(timeout=0.3)
    )
    charges = getattr(client, "v1", client).charges
    return raised_by(lambda: charges.create({"amount": 1, "currency": "eur", "source": "tok"}))


@pytest.mark.parametrize(
    ("status", "error", "headers", "expected"),
    [
        (429, {"type": "invalid_request_error", "code": "rate_limit"}, {"Retry-After": "2"}, ("throttled", 2.0, "stripe.RateLimitError")),
        (429, {"type": "invalid_request_error", "code": "lock_timeout"}, {}, ("throttled", None, "stripe.RateLimitError")),
        (402, {"type": "card_error", "code": "card_declined"}, {}, ("permanent", None, "stripe.CardError")),
        (401, {"type": "invalid_request_error"}, {}, ("permanent", None, "stripe.AuthenticationError")),
        (403, {"type": "invalid_request_error"}, {}, ("permanent", None, "stripe.PermissionError")),
        (404, {"type": "invalid_request_error", "code": "resource_missing"}, {}, ("permanent", None, "stripe.InvalidRequestError")),
        (400, {"type": "idempotency_error"}, {}, ("permanent", None, "stripe.IdempotencyError")),
        (
            409,
            {"type": "invalid_request_error", "code": "idempotency_key_in_use"},
            {"Stripe-Should-Retry": "true"},
            ("retryable", None, "stripe.should_retry"),
        ),
        (500, {"type": "api_error"}, {}, ("retryable", None, "http.500")),
        (503, {"type": "api_error"}, {"Retry-After": "9"}, ("retryable", 9.0, "http.503")),
    ],
)
def test_stripes_errors(server: HttpServer, status: int, error: dict[str, str], headers: dict[str, str], expected: Any) -> None:
    server.answer(status, json.dumps({"error": {"message": "no", **error}}).encode(), {**JSON, **headers})
    assert Classifier()(stripes_error(server.url)) == Classification(*expected)


def test_stripe_behind_something_else_or_not_there_is_retryable(server: HttpServer) -> None:
    server.answer(502, b"<html>", {"Content-Type": "text/html"})
    assert kind_and_rule(stripes_error(server.url)) == ("retryable", "http.502")
    for how in ("nothing", "silent"):
        assert kind_and_rule(stripes_error(server.misbehave(how))) == ("retryable", "stripe.APIConnectionError")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert kind_and_rule(stripes_error(f"http://127.0.0.1:{bound.getsockname()[1]}"))[0] == "retryable"


# -- Google ---------------------------------------------------------------------------------------------------------


def googles_error(url: str) -> Exception:
    """As Google's REST clients do: requests fetches, api-core raises."""
    exceptions, requests = pytest.importorskip("google.api_core.exceptions"), pytest.importorskip("requests")
    error: Exception = exceptions.from_http_response(requests.get(url, timeout=5))
    return error


@pytest.mark.parametrize(
    ("status", "kind", "rule"),
    [
        (400, "permanent", "grpc.INVALID_ARGUMENT"),
        (403, "permanent", "grpc.PERMISSION_DENIED"),
        (404, "permanent", "grpc.NOT_FOUND"),
        (409, "permanent", "http.409"),
        (429, "throttled", "grpc.RESOURCE_EXHAUSTED"),
        (500, "retryable", "grpc.INTERNAL"),
        (502, "retryable", "http.502"),
        (503, "retryable", "grpc.UNAVAILABLE"),
        (504, "retryable", "grpc.DEADLINE_EXCEEDED"),
    ],
)
def test_google_over_rest(server: HttpServer, status: int, kind: str, rule: str) -> None:
    pytest.importorskip("grpc")
    server.answer(status, json.dumps({"error": {"message": "no", "errors": []}}).encode(), {**JSON, "Retry-After": "4"})
    found = Classifier()(googles_error(server.url))
    assert (found.kind, found.retry_after) == (kind, None if kind == "permanent" else 4.0)
    assert found.rule == rule or found.rule == f"http.{status}"


def test_google_over_rest_says_in_the_details_when_to_come_again(server: HttpServer) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.5s"}
    server.answer(429, json.dumps({"error": {"message": "no", "details": [info]}}).encode(), JSON)
    assert Classifier()(googles_error(server.url)).retry_after == 2.5


def test_google_over_grpc() -> None:
    """A real server, and the wrapper that every generated client puts around its calls."""
    grpc = pytest.importorskip("grpc")
    helpers = pytest.importorskip("google.api_core.grpc_helpers")
    details = pytest.importorskip("google.rpc.error_details_pb2")
    from google.protobuf import any_pb2
    from google.rpc import status_pb2

    info = details.RetryInfo()
    info.retry_delay.seconds = 6
    packed = any_pb2.Any()
    packed.Pack(info)

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            code = getattr(grpc.StatusCode, call.method.rpartition("/")[2])

            def refuse(request: bytes, context: Any) -> bytes:
                status = status_pb2.Status(code=code.value[0], message="no", details=[packed])
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                context.abort(code, "no")
                return b""

            return grpc.unary_unary_rpc_method_handler(refuse)

    expected = {
        "UNAVAILABLE": ("retryable", 6.0),
        "RESOURCE_EXHAUSTED": ("throttled", 6.0),
        "ABORTED": ("retryable", 6.0),
        "INTERNAL": ("retryable", 6.0),
        "CANCELLED": ("retryable", 6.0),
        "NOT_FOUND": ("permanent", None),
        "ALREADY_EXISTS": ("permanent", None),
        "DATA_LOSS": ("permanent", None),
        "UNIMPLEMENTED": ("permanent", None),
        "FAILED_PRECONDITION": ("permanent", None),
    }
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name, answer in expected.items():
                bare = channel.unary_unary(f"/t/{name}", _registered_method=False)
                for call in (bare, helpers.wrap_errors(bare)):
                    found = Classifier()(raised_by(lambda call=call: call(b"", timeout=10)))
                    assert (found.kind, found.retry_after, found.rule) == (*answer, f"grpc.{name}"), call
        server.stop(None)


def test_a_grpc_call_that_takes_too_long_is_retryable() -> None:
    grpc = pytest.importorskip("grpc")
    with socket.socket() as listening:  # accepts, and never says a word
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with grpc.insecure_channel(f"127.0.0.1:{listening.getsockname()[1]}") as channel:
            error = raised_by(lambda: channel.unary_unary("/t/x", _registered_method=False)(b"", timeout=0.2))
    assert kind_and_rule(error) == ("retryable", "grpc.DEADLINE_EXCEEDED")
