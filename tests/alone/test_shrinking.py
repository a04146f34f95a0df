"""A real pool that is told to shrink."""

from __future__ import annotations

import os
import signal

import pytest
from billiard.pool import Pool

from celery_guardrails.integration import stopping
from celery_guardrails.worker.shrinking import _look_at_what_is_written


@pytest.fixture
def pool():
    made = Pool(2, threads=False)
    _look_at_what_is_written(made)
    yield made
    stopping.reset()
    # One that is killed while it waits for work keeps the lock of the pool's pipe, for which its ordinary end waits.
    made._terminate.cancel()
    for process in made._pool:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def told(pool):
    return [process._controlled_termination for process in pool._pool]


def test_a_process_that_has_not_ended_yet_is_not_told_again(pool):
    for process in pool._pool:
        os.kill(process.pid, signal.SIGSTOP)  # they end later
    pool.shrink(1)
    assert told(pool) == [True, False]
    pool.shrink(1)
    assert told(pool) == [True, True]
    with pytest.raises(ValueError, match="busy"):
        pool.shrink(1)


def test_nothing_shrinks_while_the_worker_stops(pool):
    stopping.set_stopping()
    with pytest.raises(ValueError, match="busy"):
        pool.shrink(1)
    assert told(pool) == [False, False]
