"""botocore's own clients against a local endpoint, retries off: what they raise, and what the shipped rules make of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_guardrails.policy.classify import Classifier
from tests.support.http import HttpServer
from tests.support.sessions import kind_and_rule, raised_by

botocore = pytest.importorskip("botocore")
session = pytest.importorskip("botocore.session")
config = pytest.importorskip("botocore.config")

AMZ_JSON = {"Content-Type": "application/x-amz-json-1.0"}
ITEM = {"TableName": "orders", "Item": {"id": {"S": "1"}}}


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    server = HttpServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: HttpServer) -> Callable[..., Any]:
    """Make clients of services."""
    made = session.Session()
    once = config.Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=0.3)

    def make(service: str, url: str = server.url) -> Any:
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        return made.create_client(service, "eu-west-1", endpoint_url=url, config=once, **keys)

    return make


@pytest.fixture(scope="module")
def dynamodb(client: Callable[..., Any]) -> Any:
    return client("dynamodb")


def said(code: str, **fields: Any) -> bytes:
    return json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no", **fields}).encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "ThrottlingException", "throttled"),
        (400, "ProvisionedThroughputExceededException", "throttled"),
        (400, "RequestLimitExceeded", "throttled"),
        (500, "InternalServerError", "retryable"),
        (503, "ServiceUnavailable", "retryable"),
        (400, "ExpiredTokenException", "retryable"),
        (400, "TransactionConflictException", "retryable"),
        (400, "ReplicatedWriteConflictException", "retryable"),
        (400, "ConditionalCheckFailedException", "permanent"),
        (400, "ResourceNotFoundException", "permanent"),
        (400, "ValidationException", "permanent"),
        (400, "AccessDeniedException", "permanent"),
        (400, "UnrecognizedClientException", "permanent"),
    ],
)
def test_the_code_of_dynamodb_decides(server: HttpServer, dynamodb: Any, status: int, code: str, kind: str) -> None:
    server.answer(status, said(code), {**AMZ_JSON, "Retry-After": "3"})
    found = Classifier()(raised_by(lambda: dynamodb.put_item(**ITEM)))
    assert (found.kind, found.retry_after) == (kind, None if kind == "permanent" else 3.0)


@pytest.mark.parametrize(
    ("reasons", "kind"),
    [
        (["None", "TransactionConflict"], "retryable"),
        (["ThrottlingError", "TransactionConflict"], "throttled"),
        (["ProvisionedThroughputExceeded"], "throttled"),
        (["ConditionalCheckFailed", "TransactionConflict"], "permanent"),
        (["ValidationError"], "permanent"),
        ([], "permanent"),
    ],
)
def test_a_transaction_of_dynamodb_that_was_cancelled_goes_by_the_worst_of_its_reasons(
    server: HttpServer, dynamodb: Any, reasons: list[str], kind: str
) -> None:
    server.answer(400, said("TransactionCanceledException", CancellationReasons=[{"Code": reason} for reason in reasons]), AMZ_JSON)
    error = raised_by(lambda: dynamodb.transact_write_items(TransactItems=[{"Put": ITEM}]))
    assert kind_and_rule(error) == (kind, "botocore.TransactionCanceledException")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", "throttled"),
        (503, "ServiceUnavailable", "retryable"),
        (500, "InternalError", "retryable"),
        (400, "RequestTimeout", "retryable"),
        (409, "OperationAborted", "retryable"),
        (409, "ConditionalRequestConflict", "retryable"),
        (412, "PreconditionFailed", "permanent"),
        (404, "NoSuchKey", "permanent"),
        (403, "AccessDenied", "permanent"),
    ],
)
def test_the_code_of_s3_decides(server: HttpServer, client: Callable[..., Any], status: int, code: str, kind: str) -> None:
    server.answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), {"Content-Type": "application/xml"})
    assert kind_and_rule(raised_by(lambda: client("s3").get_object(Bucket="bucket", Key="key")))[0] == kind


def test_without_a_code_the_status_decides(server: HttpServer, client: Callable[..., Any]) -> None:
    s3 = client("s3")
    for status, kind in ((503, "retryable"), (404, "permanent"), (429, "throttled")):
        server.answer(status)
        assert kind_and_rule(raised_by(lambda: s3.head_object(Bucket="bucket", Key="key"))) == (kind, f"http.{status}")
    server.answer(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"})
    assert kind_and_rule(raised_by(client("lambda").list_functions)) == ("retryable", "http.502")


def test_an_answer_that_is_not_the_services_is_retryable(server: HttpServer, client: Callable[..., Any]) -> None:
    server.answer(200, b"<html>", {"Content-Type": "text/xml"})
    assert kind_and_rule(raised_by(client("sns").list_topics)) == ("retryable", "botocore.ResponseParserError")


@pytest.mark.parametrize("how", ["nothing", "silent", "reset", "stalled"])
def test_a_connection_that_breaks_is_retryable(server: HttpServer, dynamodb: Any, how: str) -> None:
    server.misbehave(how)
    assert kind_and_rule(raised_by(dynamodb.list_tables))[0] == "retryable"


def test_an_endpoint_that_refuses_is_retryable_and_a_wrong_call_is_not(client: Callable[..., Any]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        sqs = client("sqs", f"http://127.0.0.1:{bound.getsockname()[1]}")
        assert kind_and_rule(raised_by(sqs.list_queues)) == ("retryable", "botocore.ConnectionError")
        assert kind_and_rule(raised_by(sqs.send_message)) == ("permanent", "botocore.ParamValidationError")
