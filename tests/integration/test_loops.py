"""A loop over many rows goes on where it was: after a deploy without a charge, after a crash from its last save."""

from __future__ import annotations

import celery
import pytest

from celery_guardrails.errors import NoProgress
from celery_guardrails.policy.lease import RecordState
from tests.support import BrokerUnderTest, eventually


def handled(app, name):
    return [entry.fields["row"] for entry in app.ledger.entries(event="effect", key=name)]


def begun(app, name):
    return [(run.fields["attempt"], run.fields["crashes"]) for run in app.ledger.entries(event="start", key=name)]


def asked(app, name):
    return [run.fields["cursor"] for run in app.ledger.entries(event="asks", key=name)]


def deploy_in_the_middle(app, name, pool):
    """Let a loop begin, end its worker, let another go on."""
    first = app.worker(pool=pool, concurrency=1)
    result = app.send("rows", name, 80, 0.2)
    app.ledger.wait("effect", name, times=5)
    first.terminate()
    assert first.wait(30) == 0
    left = handled(app, name)
    assert 5 <= len(left) < 80, "it left in the middle, and did not wait for the end"
    assert app.guardrails.lookup(f"rows:{name}").state is RecordState.IDLE
    progress = app.guardrails.progress(f"rows:{name}")
    assert (progress.cursors, progress.items) == ({"": left[-1]}, len(left))
    app.worker(concurrency=1)
    assert result.get(timeout=30) == 80
    assert handled(app, name) == list(range(1, 81)), "each row once, and in order"
    assert asked(app, name) == [None, left[-1]]
    assert begun(app, name) == [(1, 0), (1, 0)], "nobody was charged"
    assert app.guardrails.progress(f"rows:{name}") is None
    eventually(lambda: app.depth() == 0, 30)
    assert app.dead() == 0


def test_a_deploy_in_the_middle_of_a_loop_costs_no_attempt_and_no_row(deploy, name):
    deploy_in_the_middle(deploy("looping"), name, "prefork")


@pytest.mark.chaos
@pytest.mark.brokers("redis")
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_so_it_is_in_other_pools(deploy, name, pool):
    deploy_in_the_middle(deploy("looping"), name, pool)


@pytest.mark.chaos
@pytest.mark.brokers("redis")
@pytest.mark.skipif(celery.VERSION < (5, 5), reason="soft shutdown came with Celery 5.5")
def test_a_soft_shutdown_tells_loops_to_stop(deploy, name):
    app = deploy("looping", worker_soft_shutdown_timeout=4)
    first = app.worker(concurrency=1, env={"REMAP_SIGTERM": "SIGQUIT"})
    result = app.send("rows", name, 200, 0.1)
    app.ledger.wait("effect", name, times=10)
    first.terminate()
    first.wait_log("Initiating Soft Shutdown")
    first.wait_log(rf"handed back for 0\.0 s: key rows:{name} stopped")
    first.wait(40)
    app.worker(concurrency=1)
    assert result.get(timeout=60) == 200
    assert handled(app, name) == list(range(1, 201))
    assert begun(app, name) == [(1, 0), (1, 0)]
    eventually(lambda: app.depth() == 0, 60)


@pytest.mark.chaos
@pytest.mark.brokers("redis")
@pytest.mark.parametrize("seconds", [3.0, None], ids=["handing over", "holding on"])
def test_a_loop_hands_over_before_rabbitmq_loses_patience(deploy, private_rabbitmq, name, seconds):
    node = private_rabbitmq(conf="consumer_timeout = 8000\n")
    node.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")  # it looks once a minute by default
    app = deploy("looping", on=BrokerUnderTest("amqp", node.fresh_url(), node), guardrails_hand_over_seconds=seconds)
    worker = app.worker(concurrency=1, options=["--prefetch-multiplier", "1"])
    result = app.send("slow_rows", name, 150, 0.1)
    if seconds is None:  # what it is good for
        worker.wait_log("PRECONDITION_FAILED.*delivery acknowledgement on channel .* timed out", 60)
        return
    assert result.get(timeout=90) == 150
    assert handled(app, name) == list(range(1, 151))
    assert len(begun(app, name)) >= 4
    assert set(begun(app, name)) == {(1, 0)}
    assert "PRECONDITION_FAILED" not in worker.log()


@pytest.mark.brokers("redis")
def test_a_crash_repeats_the_rows_since_the_last_save_and_no_others(deploy, name):
    app = deploy("looping")
    app.worker(concurrency=1)
    result = app.send("rows", name, 30, 0.05, dies=20)
    assert result.get(timeout=40) == 30
    first, second = asked(app, name)
    assert first is None
    assert 10 <= second <= 19, "saved every 0.2 s: a busy machine may be late"
    assert handled(app, name) == [*range(1, 20), *range(second + 1, 31)]
    assert begun(app, name) == [(1, 0), (1, 1)], "a crash is charged as ever"


@pytest.mark.chaos
@pytest.mark.brokers("amqp")
def test_a_worker_that_is_killed_as_a_whole_is_taken_over_at_its_cursor(deploy, name):
    app = deploy("looping", guardrails_lease_seconds=2)
    worker = app.worker(concurrency=1)
    result = app.send("rows", name, 40, 0.2)
    app.ledger.wait("effect", name, times=8)
    eventually(lambda: app.guardrails.progress(f"rows:{name}"), 30)
    worker.kill()
    left = app.guardrails.progress(f"rows:{name}").cursors[""]
    assert 1 <= left < 40
    app.worker(concurrency=1)
    assert result.get(timeout=40) == 40
    assert asked(app, name) == [None, left]
    assert sorted(set(handled(app, name))) == list(range(1, 41))
    assert begun(app, name) == [(1, 0), (1, 1)]


@pytest.mark.chaos
@pytest.mark.brokers("redis")
def test_a_loop_that_no_deploy_lets_get_anywhere_is_dead_lettered(deploy, name):
    app = deploy("looping", guardrails_drain_seconds=0.5, guardrails_max_stalls=1)
    result = app.send("rows", name, 10, 300.0)
    for times in (1, 2):
        worker = app.worker(concurrency=1)
        app.ledger.wait("begins", name, times=times, timeout=30)
        assert worker.stop(40) == 0
    assert app.guardrails.progress(f"rows:{name}").begun == (0, 0)
    app.worker(concurrency=1)
    with pytest.raises(NoProgress, match="left the cursor None 1 times where it was .guardrails_max_stalls."):
        result.get(timeout=30)
    (letter,) = app.letters()
    assert (letter.headers["guardrails"]["reason"], letter.headers["guardrails"]["attempts"]) == ("exhausted", 0)
    assert begun(app, name) == [(1, 0), (1, 0)]
