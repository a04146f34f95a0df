"""botocore, and so boto3 and every AWS client.

Codes are those of botocore's own standard retry mode (botocore/retries/standard.py), and conflicts with another request
that ran at the same time, of which the services say that one may try again: S3's and DynamoDB's ("Error handling with
DynamoDB", "List of S3 error codes").
"""

from __future__ import annotations

from typing import Any

from ..classification import PERMANENT, RETRYABLE, THROTTLED, Classification
from .http import answer, retry_after
from .table import Look, Rules, always, certificate_refused

__all__ = ["RULES"]

_MODULE = "botocore.exceptions"

_THROTTLED = frozenset(
    "Throttling ThrottlingException ThrottledException RequestThrottledException TooManyRequestsException RequestThrottled "
    "ProvisionedThroughputExceededException ProvisionedThroughputExceeded TransactionInProgressException RequestLimitExceeded "
    "BandwidthLimitExceeded LimitExceededException SlowDown PriorRequestNotComplete EC2ThrottledException".split()
)
_RETRYABLE = frozenset(
    "RequestTimeout RequestTimeoutException InternalError InternalFailure InternalServerError InternalServerException "
    "ServiceUnavailable ServiceUnavailableException Unavailable IDPCommunicationError ServerException "
    # another request at the same time
    "TransactionConflictException ReplicatedWriteConflictException OperationAborted ConditionalRequestConflict "
    # credentials that ran out: the next attempt fetches new ones
    "ExpiredToken ExpiredTokenException RequestExpired".split()
)


def _client_error(error: Any, look: Look) -> Classification | None:
    response = error.response
    code = response.get("Error", {}).get("Code")
    meta = response.get("ResponseMetadata") or {}
    headers = meta.get("HTTPHeaders") or {}
    if code == "TransactionCanceledException":
        return _cancelled(response)
    if code in _THROTTLED:
        return Classification(THROTTLED, retry_after(headers, look.now), f"botocore.{code}")
    if code in _RETRYABLE:
        return Classification(RETRYABLE, retry_after(headers, look.now), f"botocore.{code}")
    return answer(meta.get("HTTPStatusCode"), headers, look.now)


def _cancelled(response: Any) -> Classification:
    """A transaction of DynamoDB says of each item why; the worst counts, as the next attempt meets them all again."""
    reasons = {reason.get("Code") for reason in response.get("CancellationReasons") or ()} - {"None", None}
    throttled = {"ThrottlingError", "ProvisionedThroughputExceeded", "RequestLimitExceeded"}
    kind = PERMANENT
    if reasons and reasons <= throttled | {"TransactionConflict"}:
        kind = THROTTLED if reasons & throttled else RETRYABLE
    return Classification(kind, rule="botocore.TransactionCanceledException")


def _tls(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="botocore.SSLError")


RULES: Rules = {
    f"{_MODULE}.ClientError": _client_error,
    f"{_MODULE}.SSLError": _tls,
    # an answer that is not the service's: a proxy's page
    **always(RETRYABLE, "botocore.parsers", "ResponseParserError"),
    **always(
        RETRYABLE,
        _MODULE,
        "ConnectionError",
        "HTTPClientError",
        "MetadataRetrievalError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "IncompleteReadError",
        "ChecksumError",
        "FlexibleChecksumError",
        "WaiterError",
        "CapacityNotAvailableError",
    ),
    **always(
        PERMANENT,
        _MODULE,
        "DataNotFoundError",
        "UnknownRegionError",
        "BaseEndpointResolverError",
        "EndpointProviderError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "ConfigParseError",
        "ConfigNotFound",
        "MissingParametersError",
        "ValidationError",
        "ParamValidationError",
        "InvalidConfigError",
        "InvalidDNSNameError",
        "MissingDependencyException",
        "UnseekableStreamError",
        "OperationNotPageableError",
    ),
}
