"""redis-py and its fork valkey-py."""

from __future__ import annotations

import re
from typing import Any

from ..classification import PERMANENT, RETRYABLE, Classification
from .table import Look, Rules, always, certificate_refused

__all__ = ["RULES"]

#: First word of an error reply that says "not now" (redis.io, "Redis serialization protocol", simple errors).
_NOT_NOW = frozenset({"LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "NOREPLICAS", "MISCONF", "OOM", "UNBLOCKED"})
#: What stands before it: redis-py's own words about a pipeline; Redis' up to 6.2 about a script.
_BEFORE = re.compile(r"^(?:Command # \d+ \(.*\) of pipeline caused error: |(?:ERR )?Error running script .*?: -)", re.DOTALL)


def _connection(error: Any, _look: Look) -> Classification:
    return Classification(PERMANENT if certificate_refused(error) else RETRYABLE, rule="redis.ConnectionError")


def _reply(error: Any, _look: Look) -> Classification:
    word = _BEFORE.sub("", str(error), count=1).partition(" ")[0].rstrip(":")
    return Classification(RETRYABLE if word in _NOT_NOW else PERMANENT, rule="redis.ResponseError")


RULES: Rules = {}
for _package in ("redis", "valkey"):
    _module = f"{_package}.exceptions"
    RULES.update(
        {
            f"{_module}.ConnectionError": _connection,
            f"{_module}.ResponseError": _reply,
            **always(
                RETRYABLE,
                _module,
                "TimeoutError",
                "BusyLoadingError",
                "ReadOnlyError",
                "OutOfMemoryError",
                "TryAgainError",
                "ClusterError",
                "ClusterDownError",
                "MasterDownError",
                "AskError",
                "MovedError",
                "SlotNotCoveredError",
                "RedisClusterException",
                "ValkeyClusterException",
                "LockError",
                "WatchError",
                "InvalidResponse",
                # the scripts are gone with a restart or a failover, and are loaded with the next attempt
                "NoScriptError",
                "ExternalAuthProviderError",
            ),
            **always(
                PERMANENT,
                _module,
                "AuthenticationError",
                "AuthenticationWrongNumberOfArgsError",
                "AuthorizationError",
                "NoPermissionError",
                "DataError",
                "PubSubError",
                "ExecAbortError",
                "ClusterCrossSlotError",
                "CrossSlotTransactionError",
                "InvalidPipelineStack",
            ),
        }
    )
