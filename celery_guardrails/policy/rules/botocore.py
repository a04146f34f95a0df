"""botocore, and so boto3 and every AWS client.

Codes are those of botocore's own standard retry mode (botocore/retries/standard.py).
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
    # credentials that ran out: the next attempt fetches new ones
    "ExpiredToken ExpiredTokenException RequestExpired".split()
)


def _client_error(error: Any, look: Look) -> Classification | None:
    response = error.response
    code = response.get("Error", {}).get("Code")
    meta = response.get("ResponseMetadata") or {}
    headers = meta.get("HTTPHeaders") or {}
    if code in _THROTTLED:
        return Classification(THROTTLED, retry_after(headers, look.now), f"botocore.{code}")
    if code in _RETRYABLE:
        return Classification(RETRYABLE, retry_after(headers, look.now), f"botocore.{code}")
    return answer(meta.get("HTTPStatusCode"), headers, look.now)


def _tls(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="botocore.SSLError")


RULES: Rules = {
    f"{_MODULE}.ClientError": _client_error,
    f"{_MODULE}.SSLError": _tls,
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
