"""RabbitMQ's management API, for what AMQP does not tell: what policies add to a queue, and arguments that it does not compare."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ...errors import GuardrailsConfigError

__all__ = ["ManagedQueue", "Management"]


@dataclass(frozen=True)
class ManagedQueue:
    """A queue as the API tells of it.

    Args:
        policy: what policies add, by their own names (``dead-letter-exchange``).
        arguments: that it was declared with, also those that a declaration does not compare (``x-consumer-timeout``).
    """

    policy: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Management:
    """Asks the API; nothing is changed by it.

    Args:
        url: ``http://user:password@host:15672``; without a user it is guest, as RabbitMQ has it.
        timeout: seconds for an answer.

    Raises:
        GuardrailsConfigError: the URL is no http:// or https:// one, or its password is not quoted.
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        if not _fits(url):
            # without the URL: where it is misread, so is where its password ends
            raise GuardrailsConfigError(
                "--management-url: http://user:password@host:15672 is allowed, with / # ? @ of the password as %2F %23 %3F %40"
            )
        parts = urlsplit(url)
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        self._base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._timeout = timeout

    def queue(self, vhost: str, queue: str) -> ManagedQueue:
        """Return what it says of a queue; nothing where there is no such queue.

        Raises:
            GuardrailsConfigError: the API does not answer, or refuses.
        """
        address = f"{self._base}/api/queues/{quote(vhost, safe='')}/{quote(queue, safe='')}"
        request = urllib.request.Request(address, headers={"Authorization": self._authorization})  # noqa: S310 - http(s), see __init__
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310 - the same
                found = json.load(answer)
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                return ManagedQueue()
            raise GuardrailsConfigError(f"--management-url {self._base}: it answers {exc.code} {exc.reason}") from exc
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise GuardrailsConfigError(f"--management-url {self._base}: {exc}") from exc
        # RabbitMQ sends a list where it means an empty mapping
        policies = [found.get(name) or {} for name in ("effective_policy_definition", "operator_policy_definition")]
        return ManagedQueue(
            policy={name: value for policy in policies for name, value in dict(policy).items()},
            arguments=dict(found.get("arguments") or {}),
        )


def _fits(url: str) -> bool:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an address or a port that is none
        return False
    # an @ behind the host ends a password that was not quoted
    return known and "@" not in f"{parts.path}{parts.query}{parts.fragment}"
