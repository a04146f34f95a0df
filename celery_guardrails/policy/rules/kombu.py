"""kombu and py-amqp: errors of the broker, raised where a task publishes.

What py-amqp calls irrecoverable ends the connection; a new attempt comes with a new one, so only those of it that are
refusals are permanent.
"""

from __future__ import annotations

from ..classification import PERMANENT, RETRYABLE
from .table import Rules, always

__all__ = ["RULES"]

RULES: Rules = {
    **always(RETRYABLE, "kombu.exceptions", "OperationalError", "LimitExceeded", "InconsistencyError"),
    **always(
        PERMANENT,
        "kombu.exceptions",
        "SerializationError",
        "EncodeError",
        "DecodeError",
        "SerializerNotInstalled",
        "ContentDisallowed",
        "NotBoundError",
        "MessageStateError",
        "VersionMismatch",
    ),
    # MessageNacked: the queue refused it, overflow=reject-publish
    **always(RETRYABLE, "amqp.exceptions", "MessageNacked", "ConnectionError", "RecoverableChannelError"),
    **always(
        PERMANENT,
        "amqp.exceptions",
        "ChannelError",
        "NotFound",
        "AccessRefused",
        "PreconditionFailed",
        "ContentTooLarge",
        "InvalidPath",
        "InvalidCommand",
        "NotAllowed",
        "AMQPNotImplementedError",
    ),
}
