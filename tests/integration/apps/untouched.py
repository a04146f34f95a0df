"""The guarded app without the renewal of visibility: Redis delivers again what runs longer than its timeout."""

from __future__ import annotations

import os

from celery_guardrails.integration.brokers.redis import RedisBroker

from .basic import make_app

__all__ = ["make_app"]


def _touch(self: RedisBroker, tags: object) -> int:
    return 0


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    RedisBroker.touch = _touch  # type: ignore[method-assign]
    app = make_app(os.environ)
