"""Alerts by HTTP POST, in the form that Slack takes."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from hashlib import blake2b
from typing import Any
from urllib.parse import urljoin, urlsplit

from ...errors import GuardrailsConfigError, PermanentError
from ...policy.alerts import MESSAGE_LIMIT, Alert
from ...policy.printing import printable
from .text import body, title

__all__ = ["Webhook", "slack_escaped"]

#: Seconds that a webhook may take to connect, and for each answer of the network.
TIMEOUT = 5.0
_REDIRECTS = 3


class Webhook:
    """A JSON document by POST: ``text``, as Slack, Mattermost and others take it, and the same as fields in ``guardrails``.

    The certificate of the server is verified. A redirect is followed only where it keeps the message (307, 308) and the
    server: the URL is a secret that says who may write.

    Args:
        url: ``https://`` or ``http://``.
        context: of TLS, for tests; by default that of the system.
    """

    def __init__(self, url: str, *, context: ssl.SSLContext | None = None) -> None:
        self._url = url
        self.label = f"webhook {_server(url)}/…"
        self.identity = f"webhook {blake2b(url.encode(), digest_size=16).hexdigest()}"
        self._context = context

    def check(self) -> None:
        """Nothing to find out but by sending."""

    def send(self, alert: Alert, app: str) -> str:
        """See :class:`Channel`."""
        text = slack_escaped("\n".join((title(alert, app), body(alert))))
        content = json.dumps({"text": text, "guardrails": {"app": app, **alert.as_dict()}}).encode()
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=self._context), _Stay)
        url = self._url
        for _ in range(_REDIRECTS + 1):
            request = urllib.request.Request(  # noqa: S310 - http or https: see the constructor, and _target
                url, content, {"Content-Type": "application/json; charset=utf-8", "User-Agent": "celery-guardrails"}
            )
            try:
                with opener.open(request, timeout=TIMEOUT) as response:
                    return f"{response.status} {response.reason}"
            except urllib.error.HTTPError as exc:
                with exc:
                    if not 300 <= exc.code < 400:
                        exc.msg = _said(exc)
                        raise
                url = _target(url, exc)
        raise PermanentError(f"the webhook redirects more than {_REDIRECTS} times")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Takes every redirect for an error: urllib would turn the POST into a GET, and go anywhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Do not."""


def _server(url: object) -> str:
    """Return scheme, host and port of a URL: the rest of a webhook's is a secret."""
    try:
        assert isinstance(url, str)
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        if (
            parts.scheme in ("http", "https")
            and parts.hostname
            and "@" not in parts.netloc
            and url.isascii()
            and not re.search(r"[\s\x00-\x1f\x7f]", url)
        ):
            return f"{parts.scheme}://{parts.hostname}{port}"
    except (ValueError, AssertionError):
        pass
    raise GuardrailsConfigError(
        "alert: webhook=… and guardrails_alert_webhook: a URL with https:// or http://, and no user in it, is allowed"
    )


def _target(url: str, exc: urllib.error.HTTPError) -> str:
    target = urljoin(url, exc.headers.get("Location") or "")
    if exc.code in (307, 308) and target.startswith(f"{_server(url)}/"):
        return target
    raise PermanentError(
        f"the webhook answers {exc.code} and redirects to {urlsplit(target).scheme}://{urlsplit(target).hostname}: "
        "give the URL that takes the messages"
    )


def _said(exc: urllib.error.HTTPError) -> str:
    """Return the beginning of what a server says of an error: Slack says there what is wrong with the URL."""
    said = b""
    with suppress(OSError, http.client.HTTPException, ValueError):
        said = exc.read(MESSAGE_LIMIT)
    return f"{exc.msg}: {printable(said.decode('utf-8', 'replace'))}" if said else str(exc.msg)


def slack_escaped(text: str) -> str:
    """Return a text in which nothing is a link or a mention (https://docs.slack.dev/messaging/formatting-message-text)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
