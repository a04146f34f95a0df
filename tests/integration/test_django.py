"""Django: one line in INSTALLED_APPS guards the project's Celery app, and manage.py has the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import BrokerUnderTest, RedisServer, Workers
from tests.support.processes import ROOT, free_port
from tests.support.waiting import eventually

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")

PROJECT = Path(__file__).parent / "django_project"


class Project:
    """The project of ``django_project``, run in processes of its own."""

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        strangers = ("CELERY_", "DJANGO_", "SHOP_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(strangers)}
        self.env |= {"PYTHONPATH": f"{PROJECT}{os.pathsep}{ROOT}", "SHOP_HOME": str(home), "NO_COLOR": "1", **env}

    def run(self, *command: str, code: int = 0, input: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:  # noqa: A002
        done = subprocess.run(
            [sys.executable, *command],
            env={**self.env, **env},
            cwd=PROJECT,
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def manage(self, *arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("manage.py", *arguments, code=code, **options)

    def celery(self, *arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "celery", "-A", "site_of_shop", *arguments, code=code, **env)

    def shell(self, code: str, **env: str) -> str:
        return self.manage("shell", "-v", "0", "-c", code, **env).stdout

    def charged(self) -> list[str]:
        ledger = self.home / "charged"
        return ledger.read_text().split() if ledger.exists() else []


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Project:
    """The project on a Redis of its own."""
    return Project(tmp_path, SHOP_BROKER_URL=redis_server.fresh_url(), SHOP_STORE_URL=redis_server.fresh_url())


# -- attaching ------------------------------------------------------------------------------------------------------

ATTACHED = "from celery import current_app as app; print(type(app.guardrails).__name__, app.main, app.guardrails.settings.max_crashes)"


def test_one_line_in_installed_apps_guards_the_projects_celery_app(project):
    assert project.shell(ATTACHED, SHOP_MAX_CRASHES="5").split() == ["Guardrails", "shop", "5"]


def test_the_celery_app_is_found_where_the_project_does_not_import_it_in_its_init(project):
    assert project.shell(ATTACHED, SHOP_CELERY="elsewhere").split() == ["Guardrails", "shop", "3"]


@pytest.mark.parametrize("where", ["in __init__", "elsewhere", "sets Django up itself"])
def test_celerys_own_command_line_finds_the_guard(project, where):
    app = "site_of_shop" if where == "in __init__" else "site_of_shop.celery"
    done = project.run("-m", "celery", "-A", app, "guardrails", "dead-letters", "list", "--json", SHOP_CELERY=where)
    assert json.loads(done.stdout) == []


def test_a_project_without_a_celery_app_is_told_so_and_works_on(project):
    bare = {"DJANGO_SETTINGS_MODULE": "bare_settings", "SHOP_CELERY": "elsewhere"}
    assert "guardrails.W001" in project.manage("check", **bare).stderr
    assert "no Celery app was found" in project.manage("replay_dead_letters", code=2, **bare).stderr


def test_a_guarded_task_under_django_keeps_delay_on_commit(project):
    code = "from shop.tasks import charge; print(callable(charge.delay_on_commit), callable(charge.apply_async_on_commit), charge.guarded)"
    assert project.shell(code).split() == ["True", "True", "True"]


def test_a_task_published_on_commit_carries_its_key(project):
    code = (
        "from celery import current_app\n"
        "from shop.tasks import charge\n"
        "charge.delay_on_commit(7)\n"
        "with current_app.connection_for_read() as c: print(c.SimpleQueue('celery').get(timeout=5).headers['x-guardrails']['key'])\n"
    )
    assert project.shell(code).split() == ["charge:7"]


def test_a_wrong_setting_is_a_system_check(project):
    done = project.manage("check", code=1, SHOP_WRONG_SETTING="1")
    assert "guardrails.E001" in done.stderr
    assert "guardrails_lease_seconds = -1" in done.stderr


def test_a_right_setting_passes_the_system_check(project):
    assert "no issues" in project.manage("check").stdout


def test_what_the_doctor_finds_in_the_configuration_is_a_system_check(project):
    done = project.manage("check", SHOP_PREFETCH="0")
    assert "guardrails.W007" in done.stderr
    assert "CELERY_WORKER_PREFETCH_MULTIPLIER = 1" in done.stderr


def test_only_the_live_checks_connect_to_the_broker(project):
    away = {"SHOP_BROKER_URL": f"redis://:s3cret@127.0.0.1:{free_port()}/0"}
    assert "no issues" in project.manage("check", **away).stdout
    assert "no issues" in project.manage("check", "--tag", "guardrails", **away).stdout
    for tag in (["--tag", "guardrails_live"], ["--tag=guardrails_live"]):
        done = project.manage("check", *tag, code=1, **away)
        assert "guardrails.E010" in done.stderr
        assert "s3cret" not in done.stderr


def test_the_live_checks_say_what_is_configured_wrong(project):
    done = project.manage("check", "--tag", "guardrails_live", code=1, SHOP_WRONG_SETTING="1")
    assert "guardrails.E001" in done.stderr
    assert "guardrails_lease_seconds = -1" in done.stderr


def test_the_doctor_is_a_management_command(project):
    done = project.manage("guardrails", "doctor", "--json", SHOP_PREFETCH="0")
    found = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["guardrails.W007"]["mend"] == "CELERY_WORKER_PREFETCH_MULTIPLIER = 1"
    assert "guardrails.W021" in found  # the Redis of the tests keeps nothing


# -- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["guardrails"], ["guardrails", "dead-letters"], ["guardrails", "dead-letters", "list"], ["replay_dead_letters"]]
)
def test_help_is_the_commands_own(project, command):
    done = project.manage(*command, "--help")
    assert f"Usage: manage.py {' '.join(command)} [OPTIONS]" in done.stdout
    if "dead-letters" not in command:
        assert project.manage("help", command[0]).stdout == done.stdout


def test_exit_codes_are_0_done_1_failed_2_bad_usage(project):
    project.manage("replay_dead_letters", code=0)
    project.manage("replay_dead_letters", "no-such-letter", code=1)
    project.manage("guardrails", "dead-letters", "show", "no-such-letter", code=1)
    project.manage("replay_dead_letters", "--rate", "fast", code=2)
    project.manage("guardrails", "dead-letters", "list", "--nonsense", code=2)
    project.manage("guardrails", "nonsense", code=2)
    assert "Python has no KeyErr" in project.manage("guardrails", "classify", "KeyErr", code=2).stderr


def test_the_management_command_says_what_becomes_of_an_error_as_celerys_does(project):
    asked = ("guardrails", "classify", "django.db.utils.OperationalError", "--cause", "sqlite3.OperationalError", "--code", "SQLITE_BUSY")
    said = json.loads(project.manage(*asked, "--json").stdout)
    assert (said["kind"], said["rule"]) == ("retryable", "sqlite3.SQLITE_BUSY")
    assert json.loads(project.celery(*asked, "--json").stdout) == said


def test_a_broker_that_is_away_is_told_in_one_line(project):
    done = project.manage("replay_dead_letters", code=1, SHOP_BROKER_URL="redis://127.0.0.1:1/0")
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


def test_djangos_own_options_are_djangos_wherever_they_stand(project):
    project.manage("replay_dead_letters", "--settings", "site_of_shop.settings", "--dry-run", "--traceback", "-v", "2")
    project.manage("guardrails", "dead-letters", "--no-color", "list", "--settings=site_of_shop.settings")


def test_call_command_writes_to_the_given_streams_and_raises_for_failures(project):
    code = (
        "import io\n"
        "from django.core.management import CommandError, call_command\n"
        "out = io.StringIO()\n"
        "call_command('guardrails', 'dead-letters', 'list', '--json', stdout=out)\n"
        "print(repr(out.getvalue()))\n"
        "try: call_command('replay_dead_letters', '--max-replays', '0', stderr=out)\n"
        "except CommandError as exc: print(exc.returncode, '--max-replays' in out.getvalue())\n"
    )
    assert project.shell(code).splitlines() == ["'[]\\n'", "2 True"]


@pytest.mark.long_on("redis")
def test_dead_letters_are_listed_mended_and_replayed_through_manage_py(
    tmp_path: Path, broker: BrokerUnderTest, redis_server: RedisServer, workers: Workers, queue: str
) -> None:
    project = Project(tmp_path, SHOP_BROKER_URL=broker.url, SHOP_STORE_URL=redis_server.fresh_url(), SHOP_QUEUE=queue)
    broker.used += [queue, f"{queue}.dead"]
    workers.start("site_of_shop", env=project.env)
    project.shell("from shop.tasks import charge\nfor order in range(3): charge.delay(order)")
    eventually(lambda: broker.depth(f"{queue}.dead") == 3, 30, because="the tasks are dead")

    listed = json.loads(project.manage("guardrails", "dead-letters", "list", "--json").stdout)
    assert [(letter["task"], letter["reason"], letter["queue"]) for letter in listed] == [("shop.tasks.charge", "permanent", queue)] * 3
    assert json.loads(project.celery("guardrails", "dead-letters", "list", "--json").stdout) == listed
    shown = json.loads(project.manage("guardrails", "dead-letters", "show", listed[1]["id"], "--json").stdout)
    assert shown["args"] == [int(listed[1]["key"].removeprefix("charge:"))]
    assert "the gateway is broken" in shown["traceback"]

    project.manage("guardrails", "dead-letters", "discard", listed[0]["id"], input="n\n", code=1)
    project.manage("guardrails", "dead-letters", "discard", listed[0]["id"], input="y\n")
    (project.home / "mended").touch()
    assert "would replay 2 of 2" in project.manage("replay_dead_letters", "--dry-run").stdout
    assert "replayed 2 of 2" in project.manage("replay_dead_letters", "--task", "shop.*").stdout
    eventually(lambda: len(project.charged()) == 2, 20, because="both are charged")
    assert sorted(project.charged()) == sorted(letter["key"].removeprefix("charge:") for letter in listed[1:])
    assert broker.depth(f"{queue}.dead") == 0
