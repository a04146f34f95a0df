"""Flask: GuardrailsFlask guards the Celery app, runs its tasks in the app context and adds ``flask guardrails``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery, Task

from celery_guardrails import Guardrails, GuardrailsConfigError
from tests.support import BrokerUnderTest, RedisServer, Workers, eventually
from tests.support.processes import ROOT

flask = pytest.importorskip("flask", reason="pip install 'celery-guardrails[flask]'")

from celery_guardrails.contrib.flask import GuardrailsFlask  # noqa: E402 - not without Flask

SHOP = "tests.integration.flask_project.shop"


@pytest.fixture
def flask_app():
    app = flask.Flask("shop")
    app.config["CELERY"] = {"broker_url": "memory://", "task_always_eager": True, "guardrails_max_crashes": 7}
    return app


def make_celery(**options):
    return Celery("shop", set_as_current=False, **options)


# -- attaching ------------------------------------------------------------------------------------------------------


def test_the_guard_takes_its_settings_from_flasks_celery_mapping(flask_app):
    celery_app = make_celery()
    extension = GuardrailsFlask(flask_app, celery_app)
    assert isinstance(celery_app.guardrails, Guardrails)
    assert extension.guardrails is celery_app.guardrails
    assert celery_app.guardrails.settings.max_crashes == 7
    assert flask_app.extensions["guardrails"] is extension
    assert flask_app.extensions["celery"] is celery_app


def test_a_celery_app_that_is_configured_already_keeps_its_configuration(flask_app):
    celery_app = make_celery()
    celery_app.config_from_object({"guardrails_max_crashes": 2})
    GuardrailsFlask(flask_app, celery_app)
    assert celery_app.guardrails.settings.max_crashes == 2


def test_a_guard_that_is_there_already_is_kept(flask_app):
    celery_app = make_celery()
    rails = Guardrails(celery_app, store="memory://")
    assert GuardrailsFlask(flask_app, celery_app).guardrails is rails


def test_init_app_finds_the_celery_app_where_flasks_documentation_puts_it(flask_app):
    flask_app.extensions["celery"] = celery_app = make_celery()
    extension = GuardrailsFlask()
    with pytest.raises(GuardrailsConfigError, match="init_app"):
        extension.guardrails  # noqa: B018
    extension.init_app(flask_app)
    assert extension.guardrails is celery_app.guardrails


def test_without_a_celery_app_it_says_what_is_missing(flask_app):
    with pytest.raises(GuardrailsConfigError, match="celery_app="):
        GuardrailsFlask(flask_app)


# -- app context ----------------------------------------------------------------------------------------------------


def contexts(flask_app, celery_app):
    """Run a task of the app; return the names of the apps it ran in, and how many contexts were taken down."""
    torn = []
    flask_app.teardown_appcontext(lambda _: torn.append(1))

    @celery_app.task(shared=False)
    def where():
        return flask.current_app.name if flask.has_app_context() else None

    return where.delay().get(), len(torn)


def test_tasks_run_in_a_context_of_their_own_that_is_taken_down_after_each(flask_app):
    celery_app = make_celery()
    GuardrailsFlask(flask_app, celery_app)
    assert contexts(flask_app, celery_app) == ("shop", 1)
    assert not flask.has_app_context()


def test_a_context_is_taken_down_when_the_task_fails(flask_app):
    celery_app = make_celery()
    GuardrailsFlask(flask_app, celery_app)
    torn = []
    flask_app.teardown_appcontext(lambda _: torn.append(1))

    @celery_app.task(shared=False)
    def fails():
        raise ValueError

    assert fails.delay().failed()
    assert torn == [1]
    assert not flask.has_app_context()


def test_a_task_class_that_brings_a_context_is_left_to_it(flask_app):
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with flask_app.app_context():
                return self.run(*args, **kwargs)

    celery_app = make_celery(task_cls=FlaskTask)
    GuardrailsFlask(flask_app, celery_app)
    assert contexts(flask_app, celery_app) == ("shop", 1)


def test_a_guarded_task_class_brings_no_context(flask_app):
    celery_app = make_celery(task_cls="celery_guardrails:GuardedTask")
    GuardrailsFlask(flask_app, celery_app)
    assert contexts(flask_app, celery_app) == ("shop", 1)


def test_the_context_can_be_switched_off(flask_app):
    celery_app = make_celery()
    GuardrailsFlask(flask_app, celery_app, app_context=False)
    assert contexts(flask_app, celery_app) == (None, 0)


def test_tasks_of_another_celery_app_get_no_context(flask_app):
    GuardrailsFlask(flask_app, make_celery())
    assert contexts(flask_app, make_celery(task_always_eager=True)) == (None, 0)


# -- commands -------------------------------------------------------------------------------------------------------


def test_the_flask_command_line_has_the_same_commands(flask_app):
    GuardrailsFlask(flask_app, make_celery())
    runner = flask_app.test_cli_runner()
    result = runner.invoke(args=["guardrails", "dead-letters", "--help"])
    assert result.exit_code == 0
    for command in ("list", "groups", "show", "replay", "discard"):
        assert f"\n  {command} " in result.output
    assert runner.invoke(args=["guardrails", "dead-letters", "list", "--reason", "bored"]).exit_code == 2
    said = runner.invoke(args=["guardrails", "classify", "KeyError"])
    assert (said.exit_code, said.output.splitlines()[0]) == (0, "builtins.KeyError: permanent")


@pytest.mark.long_on("amqp")
@pytest.mark.parametrize("tasks", ["plain", "as documented"])
def test_dead_letters_are_listed_mended_and_replayed_through_flask(
    tmp_path: Path, broker: BrokerUnderTest, redis_server: RedisServer, workers: Workers, queue: str, tasks: str
) -> None:
    broker.used += [queue, f"{queue}.dead"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "FLASK_", "SHOP_"))}
    env |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "SHOP_HOME": str(tmp_path), "SHOP_QUEUE": queue, "SHOP_TASKS": tasks}
    env |= {"SHOP_BROKER_URL": broker.url, "SHOP_STORE_URL": redis_server.fresh_url()}

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run([sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def flask_guardrails(*arguments: str, code: int = 0) -> str:
        return run("-m", "flask", "--app", SHOP, "guardrails", *arguments, code=code)

    def log() -> list[str]:
        return [line for line in (tmp_path / "log").read_text().splitlines() if line != "teardown"] if (tmp_path / "log").exists() else []

    workers.start(SHOP, env=env)
    run("-c", f"from {SHOP} import charge, plain; charge.delay(7); plain.delay('hello')")
    eventually(lambda: broker.depth(f"{queue}.dead") == 1 and log(), 30, because="one is dead, the other done")
    assert log() == ["hello in the shop"]

    [letter] = json.loads(flask_guardrails("dead-letters", "list", "--json"))
    assert (letter["key"], letter["message"]) == ("charge:7", "the gateway of the shop is broken")
    flask_guardrails("dead-letters", "show", "nobody", code=1)
    (tmp_path / "mended").touch()
    assert "replayed 1 of 1" in flask_guardrails("dead-letters", "replay", letter["id"])
    eventually(lambda: log()[1:] == ["charged 7"], 20, because="it is charged")


def test_the_doctor_is_a_command_of_flask(flask_app):
    celery_app = make_celery()
    GuardrailsFlask(flask_app, celery_app)
    celery_app.conf.worker_prefetch_multiplier = 0
    done = flask_app.test_cli_runner().invoke(args=["guardrails", "doctor", "--offline", "--json"])
    assert done.exit_code == 0, done.output
    assert "guardrails.W007" in [finding["id"] for finding in json.loads(done.output)["findings"]]
