"""The plug-in in a pytest of its own, as a project that has the package installed runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

SHOP = """
from celery import Celery
from celery_guardrails import Guardrails, RetryPolicy, guarded_task

app = Celery("shop", broker="amqp://nowhere.invalid")
Guardrails(app, store="redis://nowhere.invalid")
charged = []

@guarded_task(key="charge:{order_id}", name="charge", retry=RetryPolicy(max_attempts=2))
def charge(order_id):
    charged.append(order_id)
    if order_id < 0:
        raise ConnectionError("away")
"""


def run_pytest(where: Path, text: str, *, passed: int, failed: int = 0) -> str:
    """Run a test file beside shop.py with our plug-in and no other, and return what pytest said."""
    (where / "shop.py").write_text(SHOP)
    (where / "test_it.py").write_text(text)
    (where / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "celery_guardrails.pytest_plugin", "test_it.py"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False)
    outcome = ", ".join(f"{number} {word}" for number, word in ((failed, "failed"), (passed, "passed")) if number)
    assert f"{outcome} in " in done.stdout, done.stdout + done.stderr
    return done.stdout


def test_the_plugin_is_an_entry_point():
    assert [entry.value for entry in entry_points(group="pytest11", name="guardrails")] == ["celery_guardrails.pytest_plugin"]


def test_importing_the_plugin_loads_no_library():
    script = (
        "import sys, celery_guardrails.pytest_plugin\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'celery', 'kombu', 'amqp', 'redis', 'django', 'click'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('celery_guardrails')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n['celery_guardrails', 'celery_guardrails.pytest_plugin']\n"


def test_the_fixture_has_the_current_app_and_gives_it_back(tmp_path):
    run_pytest(
        tmp_path,
        """
from shop import app, charge, charged

def test_once(guardrails_harness):
    charge.delay(7)
    charge.delay(7)
    with guardrails_harness.crash_at("before_effect"):
        guardrails_harness.drain()
    assert charged == [7]

def test_dead(guardrails_harness):
    assert guardrails_harness.waiting == []
    charge.delay(-1)
    guardrails_harness.drain()
    assert [letter.reason for letter in guardrails_harness.dead_letters] == ["exhausted"]

def test_after():
    assert "_connection" not in vars(app)
""",
        passed=3,
    )


def test_the_app_is_given_back_after_a_test_that_failed(tmp_path):
    said = run_pytest(
        tmp_path,
        """
from shop import app, charge

def test_fails(guardrails_harness):
    harness = guardrails_harness(app)
    charge.delay(7)
    with harness.crash_at("in_publish"):
        harness.drain()

def test_after():
    assert "_connection" not in vars(app)
""",
        passed=1,
        failed=1,
    )
    assert "nothing came to 'in_publish'" in said


@pytest.mark.parametrize("where", ["", "app = celery.Celery('plain', broker='amqp://nowhere.invalid')"])
def test_without_guardrails_the_fixture_says_what_to_do(tmp_path, where):
    run_pytest(
        tmp_path,
        f"""
import celery, pytest
{where}

def test_it(guardrails_harness):
    with pytest.raises(ValueError, match="use"):
        guardrails_harness.deliver()
""",
        passed=1,
    )
