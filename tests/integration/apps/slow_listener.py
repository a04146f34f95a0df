"""The guarded app whose pool is slow to read the broker's answer to ``basic.qos``: the consumer, which reads as well, comes first."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from amqp import Channel, spec

from tests.support.ledger import Ledger

from .basic import make_app

__all__ = ["make_app"]

_wait = Channel.wait


def _wait_slowly(self: Channel, method: Any, *args: Any, **kwargs: Any) -> Any:
    if method == spec.Basic.QosOk:
        thread = threading.current_thread()
        Ledger(os.environ["TESTAPP_LEDGER"]).record("qos", thread.name)
        if thread is not threading.main_thread():
            time.sleep(1.0)
    return _wait(self, method, *args, **kwargs)


if "TESTAPP_BROKER_URL" in os.environ:  # in a worker; a test calls make_app itself
    Channel.wait = _wait_slowly
    app = make_app(os.environ)
