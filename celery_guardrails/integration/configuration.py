"""What the package reads from an app's Celery configuration, and the one thing that it writes there."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from celery import Celery

from ..config import PREFIX

__all__ = ["configured", "confirm_publishes", "redis_of"]

_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket", "valkey", "valkeys")


def configured(app: Celery) -> dict[str, Any]:
    """Return the ``guardrails_*`` settings of an app, however its configuration spells them."""
    conf = app.conf
    found: dict[str, Any] = {}
    for name in list(conf.keys()):
        lowered = str(name).lower()
        start = lowered.find(PREFIX)
        if start < 0 or (start and not lowered[:start].endswith("_")):
            continue
        normal = lowered[start:]
        try:
            found[normal] = conf[normal]
        except KeyError:  # another namespace's setting of that name
            continue
    return found


def redis_of(app: Celery) -> str | None:
    """Return the URL of the Redis that an app uses already, as its broker or its result backend; None where it uses none."""
    conf = app.conf
    for url in (conf.broker_url, conf.broker_write_url, conf.result_backend):
        for candidate in [url] if isinstance(url, str) else list(url or ()):
            first = str(candidate).split(";")[0]
            if urlsplit(first).scheme in _REDIS_SCHEMES:
                return first
    return None


def confirm_publishes(app: Celery) -> None:
    """Have RabbitMQ confirm what the app publishes: without it a lost retry or chain step is lost in silence."""

    def configure(conf: Any) -> None:
        options = dict(conf.broker_transport_options or {})
        if "confirm_publish" not in options:
            conf.broker_transport_options = {**options, "confirm_publish": True}

    if app.configured:
        configure(app.conf)
        return

    def once(source: Any = None, **_: Any) -> None:
        configure(source)

    app.on_after_configure.connect(once, weak=False)
