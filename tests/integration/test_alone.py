"""The tests of ``tests/alone``, each module in an interpreter of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

MODULES = sorted(path.name for path in (ROOT / "tests" / "alone").glob("test_*.py"))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.timeout(600)
def test_what_minds_other_tests_threads_holds_where_nothing_else_runs(module: str) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/alone/{module}"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "GUARDRAILS_TEST_ALONE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"= [1-9]\d* passed in ", ran.stdout), ran.stdout


def test_there_are_some() -> None:
    assert MODULES
