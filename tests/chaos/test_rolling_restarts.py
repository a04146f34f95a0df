"""A hundred deploys under load: nothing is lost, nobody is charged an attempt or a crash, nothing that was not cut off is done twice.

``GUARDRAILS_SEED=7 GUARDRAILS_RESTARTS=20 pytest tests/chaos/test_rolling_restarts.py`` for another run.
"""

from __future__ import annotations

import logging
import os

import pytest

from tests.support.rolling import DRAIN, assert_nothing_lost_and_nobody_charged, roll

logger = logging.getLogger(__name__)
SEED = int(os.environ.get("GUARDRAILS_SEED", "20261125"))


def restarts(times: int) -> int:
    return int(os.environ.get("GUARDRAILS_RESTARTS", times))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("pool", "times"), [("prefork", 100), ("threads", 20), ("gevent", 20), ("solo", 20)])
def test_rolling_restarts_under_load_lose_nothing_and_charge_nobody(deploy, pool, times):
    app = deploy(guardrails_drain_seconds=DRAIN)
    rolled = roll(app, restarts(times), seed=SEED, pool=pool, rate=4.0 if pool == "solo" else 10.0)
    logger.info("%s on %s: %s; done twice: %s", pool, app.broker.kind, rolled, app.ledger.repeated())
    assert_nothing_lost_and_nobody_charged(app, rolled)
