"""The contestant on dramatiq: its own defaults, but for the number of attempts."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries, default_middleware

from .call import call_dependency
from .plan import ATTEMPTS, QUEUE

# Older releases have Prometheus among the defaults, which listens on all interfaces.
_others = [kind() for kind in default_middleware if kind is not Retries and kind.__name__ != "Prometheus"]
broker = RedisBroker(url=os.environ["STORM_BROKER"], middleware=[*_others, Retries(max_retries=ATTEMPTS - 1)])
dramatiq.set_broker(broker)

call = dramatiq.actor(queue_name=QUEUE)(call_dependency)
