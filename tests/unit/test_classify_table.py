"""Every shipped rule: which class it is for, and which kind it gives, where it does not have to look at the error.

The list is kept apart from the rules on purpose: a rule that goes, or changes its mind, is seen here.
"""

from __future__ import annotations

import pytest

from celery_guardrails.policy.classification import Classification
from celery_guardrails.policy.rules import SHIPPED

#: Kind → module → classes; "asked" are those whose rule looks at the error.
TABLE: dict[str, dict[str, str]] = {
    "retryable": {
        "_queue": "Empty",
        "aiohttp.client_exceptions": "ClientConnectionError ClientPayloadError",
        "amqp.exceptions": "ConnectionError MessageNacked RecoverableChannelError",
        "asyncio.exceptions": "BrokenBarrierError CancelledError IncompleteReadError TimeoutError",
        "asyncio.queues": "QueueEmpty QueueFull",
        "billiard.exceptions": "SoftTimeLimitExceeded Terminated TimeLimitExceeded WorkerLostError",
        "botocore.exceptions": (
            "CapacityNotAvailableError ChecksumError ConnectionError CredentialRetrievalError FlexibleChecksumError "
            "HTTPClientError IncompleteReadError MetadataRetrievalError TokenRetrievalError WaiterError"
        ),
        "botocore.parsers": "ResponseParserError",
        "builtins": "BlockingIOError ConnectionError EOFError InterruptedError KeyboardInterrupt MemoryError SystemExit TimeoutError",
        "celery.exceptions": "BackendError IncompleteStream TimeoutError WorkerShutdown WorkerTerminate",
        "celery_guardrails.errors": "LeaseLost PublishFailed StoreUnavailable",
        "concurrent.futures._base": "BrokenExecutor CancelledError TimeoutError",
        "ftplib": "error_proto error_temp",
        "google.api_core.exceptions": "MissingStatusHeaderError RetryError TransferStalledError",
        "google.auth.exceptions": "TimeoutError TransportError",
        "grpc": "FutureCancelledError FutureTimeoutError",
        "http.client": "BadStatusLine ImproperConnectionState IncompleteRead NotConnected",
        "httpcore": "ConnectionNotAvailable NetworkError ProxyError RemoteProtocolError TimeoutException",
        "httpx": "DecodingError TransportError",
        "kombu.exceptions": "InconsistencyError LimitExceeded OperationalError",
        "multiprocessing.context": "TimeoutError",
        "queue": "Full",
        "redis.exceptions": (
            "AskError BusyLoadingError ClusterDownError ClusterError ExternalAuthProviderError InvalidResponse LockError "
            "MasterDownError MovedError NoScriptError OutOfMemoryError ReadOnlyError RedisClusterException SlotNotCoveredError "
            "TimeoutError TryAgainError ValkeyClusterException WatchError"
        ),
        "requests.exceptions": "ChunkedEncodingError ConnectionError ContentDecodingError JSONDecodeError Timeout",
        "smtplib": "SMTPServerDisconnected",
        "socket": "gaierror herror",
        "sqlalchemy.exc": "DisconnectionError TimeoutError",
        "sqlalchemy.orm.exc": "ObjectDeletedError StaleDataError",
        "subprocess": "TimeoutExpired",
        "urllib.error": "ContentTooShortError",
        "urllib3.exceptions": (
            "ClosedPoolError DecodeError EmptyPoolError FullPoolError IncompleteRead InvalidChunkLength ProtocolError ProxyError "
            "TimeoutError"
        ),
        "valkey.exceptions": (
            "AskError BusyLoadingError ClusterDownError ClusterError ExternalAuthProviderError InvalidResponse LockError "
            "MasterDownError MovedError NoScriptError OutOfMemoryError ReadOnlyError RedisClusterException SlotNotCoveredError "
            "TimeoutError TryAgainError ValkeyClusterException WatchError"
        ),
    },
    "permanent": {
        "aiohttp.client_exceptions": (
            "ClientConnectorCertificateError InvalidURL NonHttpUrlClientError ServerFingerprintMismatch TooManyRedirects WSMessageTypeError"
        ),
        "amqp.exceptions": (
            "AMQPNotImplementedError AccessRefused ChannelError ContentTooLarge InvalidCommand InvalidPath NotAllowed NotFound "
            "PreconditionFailed"
        ),
        "botocore.exceptions": (
            "BaseEndpointResolverError ConfigNotFound ConfigParseError DataNotFoundError EndpointProviderError "
            "InvalidConfigError InvalidDNSNameError MissingDependencyException MissingParametersError OperationNotPageableError "
            "ParamValidationError PartialCredentialsError ProfileNotFound UnknownRegionError UnseekableStreamError "
            "ValidationError"
        ),
        "builtins": (
            "ArithmeticError AssertionError AttributeError ChildProcessError FileExistsError FileNotFoundError ImportError "
            "IndexError IsADirectoryError KeyError LookupError ModuleNotFoundError NameError NotADirectoryError "
            "NotImplementedError OverflowError PermissionError ProcessLookupError RecursionError ReferenceError "
            "StopAsyncIteration StopIteration SyntaxError TypeError ValueError ZeroDivisionError"
        ),
        "celery.exceptions": (
            "AlreadyRegistered ChordError ImproperlyConfigured InvalidTaskError MaxRetriesExceededError NotRegistered "
            "QueueNotFound SecurityError TaskRevokedError"
        ),
        "celery_guardrails.errors": "GuardrailsConfigError",
        "django.core.exceptions": (
            "AppRegistryNotReady BadRequest FieldDoesNotExist FieldError ImproperlyConfigured PermissionDenied "
            "SuspiciousOperation SynchronousOnlyOperation ValidationError ViewDoesNotExist"
        ),
        "django.db.transaction": "TransactionManagementError",
        "django.template.exceptions": "TemplateDoesNotExist TemplateSyntaxError",
        "django.utils.connection": "ConnectionDoesNotExist",
        "ftplib": "error_perm",
        "google.api_core.exceptions": "DuplicateCredentialArgs",
        "google.auth.exceptions": "DefaultCredentialsError",
        "http.client": "InvalidURL UnknownProtocol",
        "httpcore": "LocalProtocolError UnsupportedProtocol",
        "httpx": "CookieConflict InvalidURL LocalProtocolError StreamError TooManyRedirects UnsupportedProtocol",
        "kombu.exceptions": (
            "ContentDisallowed DecodeError EncodeError MessageStateError NotBoundError SerializationError SerializerNotInstalled "
            "VersionMismatch"
        ),
        "redis.exceptions": (
            "AuthenticationError AuthenticationWrongNumberOfArgsError AuthorizationError ClusterCrossSlotError "
            "CrossSlotTransactionError DataError ExecAbortError InvalidPipelineStack NoPermissionError PubSubError"
        ),
        "requests.exceptions": (
            "InvalidHeader InvalidJSONError InvalidSchema InvalidURL MissingSchema StreamConsumedError TooManyRedirects "
            "URLRequired UnrewindableBodyError"
        ),
        "smtplib": "SMTPNotSupportedError",
        "sqlalchemy.exc": (
            "AmbiguousColumnError ArgumentError CircularDependencyError CompileError IdentifierError MissingGreenlet "
            "NoInspectionAvailable NoReferenceError NoSuchTableError UnboundExecutionError"
        ),
        "sqlalchemy.orm.exc": "DetachedInstanceError FlushError UnmappedError",
        "sqlite3": "DataError DatabaseError IntegrityError InterfaceError NotSupportedError ProgrammingError",
        "ssl": "SSLCertVerificationError",
        "urllib3.exceptions": (
            "HostChangedError InvalidHeader LocationValueError ProxySchemeUnknown ProxySchemeUnsupported TimeoutStateError "
            "UnrewindableBodyError"
        ),
        "valkey.exceptions": (
            "AuthenticationError AuthenticationWrongNumberOfArgsError AuthorizationError ClusterCrossSlotError "
            "CrossSlotTransactionError DataError ExecAbortError InvalidPipelineStack NoPermissionError PubSubError"
        ),
    },
    "asked": {
        "MySQLdb": "DataError Error IntegrityError InterfaceError InternalError NotSupportedError OperationalError ProgrammingError",
        "MySQLdb._exceptions": (
            "DataError Error IntegrityError InterfaceError InternalError NotSupportedError OperationalError ProgrammingError"
        ),
        "_mysql_exceptions": (
            "DataError Error IntegrityError InterfaceError InternalError NotSupportedError OperationalError ProgrammingError"
        ),
        "aiohttp.client_exceptions": "ClientResponseError",
        "botocore.exceptions": "ClientError SSLError",
        "builtins": "OSError",
        "celery_guardrails.errors": "QueueFull",
        "django.db.utils": "DataError Error IntegrityError InterfaceError NotSupportedError OperationalError ProgrammingError",
        "google.api_core.exceptions": "Aborted Cancelled DataLoss GoogleAPICallError",
        "google.auth.exceptions": "GoogleAuthError",
        "grpc": "RpcError",
        "httpcore": "ConnectError",
        "httpx": "ConnectError HTTPStatusError",
        "mysql.connector.errors": (
            "DataError Error IntegrityError InterfaceError InternalError NotSupportedError OperationalError ProgrammingError"
        ),
        "psycopg": "DataError Error IntegrityError InterfaceError NotSupportedError OperationalError ProgrammingError",
        "psycopg2": "DataError Error IntegrityError InterfaceError NotSupportedError OperationalError ProgrammingError",
        "pymysql.err": "DataError Error IntegrityError InterfaceError InternalError NotSupportedError OperationalError ProgrammingError",
        "redis.exceptions": "ConnectionError ResponseError",
        "requests.exceptions": "HTTPError RetryError SSLError",
        "smtplib": "SMTPRecipientsRefused SMTPResponseException",
        "sqlalchemy.exc": "DataError IntegrityError InterfaceError NotSupportedError OperationalError ProgrammingError StatementError",
        "sqlite3": "OperationalError",
        "ssl": "SSLError",
        "stripe._error": (
            "APIConnectionError APIError AuthenticationError CardError IdempotencyError InvalidRequestError PermissionError "
            "RateLimitError SignatureVerificationError StripeError"
        ),
        "stripe.error": (
            "APIConnectionError APIError AuthenticationError CardError IdempotencyError InvalidRequestError PermissionError "
            "RateLimitError SignatureVerificationError StripeError"
        ),
        "urllib.error": "HTTPError URLError",
        "urllib3.exceptions": "MaxRetryError ResponseError SSLError",
        "valkey.exceptions": "ConnectionError ResponseError",
    },
}


def shipped() -> dict[str, str]:
    return {name: rule.kind if isinstance(rule, Classification) else "asked" for name, rule in SHIPPED.items()}


@pytest.mark.parametrize("kind", list(TABLE))
def test_the_rules_are_those_of_the_table(kind: str) -> None:
    listed = {f"{module}.{name}" for module, names in TABLE[kind].items() for name in names.split()}
    assert {name for name, said in shipped().items() if said == kind} == listed


def test_the_table_knows_every_kind_that_a_rule_gives() -> None:
    assert set(shipped().values()) == set(TABLE)
