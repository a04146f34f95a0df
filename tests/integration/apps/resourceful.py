"""Tasks that call something with limits of its own: it is up while no file says that it is down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery

from celery_guardrails import CircuitBreaker, GuardedTask, Guardrails, RetryBudget, RetryPolicy, current_execution
from celery_guardrails.errors import RetryableError
from tests.integration.apps.basic import make_celery
from tests.support.ledger import Ledger

#: What builds an option of a resource from the keywords that a test sends.
OPTIONS: dict[str, Any] = {"breaker": CircuitBreaker, "retry_budget": RetryBudget}


def make_app(environ: Mapping[str, str]) -> Celery:
    """Return the app with its guard, its resource and its tasks."""
    app = make_celery(environ)
    guardrails = Guardrails(app, store=environ["TESTAPP_STORE_URL"], namespace=environ["TESTAPP_NAMESPACE"])
    options = json.loads(environ.get("TESTAPP_RESOURCE", "{}"))
    made = {name: OPTIONS[name](**value) if isinstance(value, dict) else value for name, value in options.items()}
    if options.pop("declared", True):
        made.pop("declared", None)
        guardrails.resource("gateway", **made)
    ledger = Ledger(environ["TESTAPP_LEDGER"])
    down = Path(environ["TESTAPP_LEDGER"]).with_suffix(".down")
    retry = RetryPolicy(**json.loads(environ.get("TESTAPP_RETRY", '{"base": 0.2, "cap": 0.5}')))

    def task(name: str, **chosen: Any) -> Any:
        return app.task(base=GuardedTask, bind=True, name=f"testapp.{name}", shared=False, key="effect:{name}", retry=retry, **chosen)

    @task("call", resource="gateway")
    def call(self: Any, name: str, seconds: float = 0.0) -> str:
        """Call the gateway: it fails while it is down."""
        now = current_execution()
        with ledger.run(name, attempt=now.attempt, deliveries=now.deliveries, crashes=now.crashes) as run:
            time.sleep(seconds)
            if down.exists():
                raise RetryableError("the gateway is down")
            run.effect()
        return name

    app.finalize()
    return app


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    app = make_app(os.environ)
