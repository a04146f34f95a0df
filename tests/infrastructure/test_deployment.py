"""The guarded app of the integration tests runs at all; what it promises is tested in tests/integration."""

from __future__ import annotations


def test_a_guarded_task_runs_once_in_a_real_worker(deploy):
    app = deploy()
    app.worker()
    assert app.send("effect", "a").get(timeout=15) == "a"
    assert app.ledger.counts() == {"a": 1}
    assert app.depth() == app.dead() == 0


def test_every_task_of_the_app_is_guarded_but_the_one_that_says_not(deploy):
    app = deploy()
    ours = {name: task for name, task in app.app.tasks.items() if name.startswith("testapp.")}
    plain = {name for name, task in ours.items() if not getattr(task, "guarded", False)}
    assert plain == {"testapp.unguarded", "testapp.unguarded_kill", "testapp.errback"}
