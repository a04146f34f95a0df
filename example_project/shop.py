"""The shop's Celery app: one task that charges an order, guarded or (``SHOP_MODE=plain``) as plain Celery is usually set up.

The body is the same in both modes; only the decorator differs. Everything else (broker, number of attempts, longest wait,
gateway, orders) is the same too, so that the comparison is of the guard and of nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

PLAIN = os.environ.get("SHOP_MODE") == "plain"
GATEWAY = os.environ.get("SHOP_GATEWAY", "http://127.0.0.1:8099")
QUEUE = os.environ.get("SHOP_QUEUE", "orders")
SEND_KEY = os.environ.get("SHOP_IDEMPOTENCY_KEY", "1") == "1"
HOTFIX = Path(os.environ.get("SHOP_HOTFIX", "/nonexistent"))  # once this file exists the receipt bug is mended
GATEWAY_TIMEOUT = 1.5
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 12, 1, 5  # both modes
POISON = 66  # amounts that end in it kill the worker's child

app = Celery("shop", broker=os.environ.get("SHOP_BROKER", "redis://"), backend=os.environ.get("SHOP_BACKEND", "redis://"))
app.set_default()  # for all threads: a shared task called from another thread would go to Celery's own default app and its amqp://
app.conf.update(
    task_default_queue=QUEUE,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)
if not app.conf.broker_url.startswith("amqp"):
    # What a worker had taken when it was killed comes back after the visibility timeout, at the next sweep, unless the sweep's lock
    # died with it. Kombu's defaults (an hour, a sweep every 100 s, 5 minutes for the lock) would outlast the demo.
    app.conf.broker_transport_options = {
        "visibility_timeout": 10,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 3,
    }
else:
    app.conf.broker_transport_options = {"confirm_publish": True}


class CardDeclined(Exception):
    """The bank said no; asking again will not change its mind."""


task: Callable[..., Any]
if PLAIN:
    task = app.task(
        acks_late=True,
        reject_on_worker_lost=True,
        autoretry_for=(Exception,),
        max_retries=ATTEMPTS - 1,
        retry_backoff=FIRST_WAIT,
        retry_backoff_max=LONGEST_WAIT,
        retry_jitter=True,
    )
else:
    from celery_guardrails import CircuitBreaker, Guardrails, RetryPolicy, guarded_task

    app.conf.update(
        guardrails_store=os.environ.get("SHOP_STORE", "redis://localhost:6379/1"),
        guardrails_namespace=os.environ.get("SHOP_NAMESPACE", "shop"),
        guardrails_dead_letter_exchange=os.environ.get("SHOP_DLX", "guardrails.dlx"),
        guardrails_lease_seconds=5,
    )
    guardrails = Guardrails(app)
    # The outage lasts ten seconds, so the breaker looks more often than by default (5 s, doubled up to 30).
    guardrails.resource("gateway", breaker=CircuitBreaker(open_seconds=1, max_open_seconds=3))
    task = guarded_task(
        key="charge:{order_id}",
        retry=RetryPolicy(max_attempts=ATTEMPTS, base=FIRST_WAIT, cap=LONGEST_WAIT, jitter="equal"),
        permanent=(CardDeclined,),
        resource="gateway",
    )


@task
def charge(order_id: int, amount: int) -> str:
    """Charge an order and return the gateway's number of the charge."""
    render_receipt(order_id, amount)
    headers = {"Content-Type": "application/json", "X-Caller-Pid": str(os.getpid())}
    if SEND_KEY:
        headers["Idempotency-Key"] = f"order-{order_id}"
    body = json.dumps({"order_id": order_id, "amount": amount}).encode()
    request = urllib.request.Request(f"{GATEWAY}/charges", data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=GATEWAY_TIMEOUT) as response:
            return str(json.load(response)["charge"])
    except urllib.error.HTTPError as error:
        if error.code == 402:
            raise CardDeclined(f"order {order_id}") from error
        raise


def render_receipt(order_id: int, amount: int) -> None:
    """Draw the receipt with a C library that takes its process down at some amounts."""
    if amount % 100 == POISON and not HOTFIX.exists():
        os.write(2, b"receipt library: fatal error\n")
        os.kill(os.getpid(), signal.SIGKILL)
