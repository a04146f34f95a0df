"""RabbitMQ's management API, for the one thing that AMQP does not tell: what policies add to a queue."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ...errors import GuardrailsConfigError
from ...stores import hide_password

__all__ = ["Management"]


class Management:
    """Asks the API; nothing is changed by it.

    Args:
        url: ``http://user:password@host:15672``; without a user it is guest, as RabbitMQ has it.
        timeout: seconds for an answer.

    Raises:
        GuardrailsConfigError: the URL is no http:// or https:// one.
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise GuardrailsConfigError(f"--management-url {hide_password(url)!r}: http://user:password@host:15672 is allowed")
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        self._base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._timeout = timeout

    def policy(self, vhost: str, queue: str) -> dict[str, Any]:
        """Return what policies add to a queue, by their own names; nothing where there is no such queue.

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
                return {}
            raise GuardrailsConfigError(f"--management-url {self._base}: it answers {exc.code} {exc.reason}") from exc
        except (OSError, ValueError) as exc:
            raise GuardrailsConfigError(f"--management-url {self._base}: {exc}") from exc
        # RabbitMQ sends a list where it means an empty mapping
        policies = [found.get(name) or {} for name in ("effective_policy_definition", "operator_policy_definition")]
        return {name: value for policy in policies for name, value in dict(policy).items()}
