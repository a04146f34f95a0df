"""The mutation tool, on a package of three modules: what its tests notice is killed, what they do not notice survives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

# By names that the tool knows: ``policy/rate.py``, and its tests in ``unit/test_rate.py``.
TREE = {
    "pyproject.toml": '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\n',
    "benchmarks/__init__.py": "",
    "celery_guardrails/__init__.py": "",
    "celery_guardrails/pytest_plugin.py": "",
    "celery_guardrails/policy/__init__.py": "",
    "celery_guardrails/policy/classify.py": "SHIPPED = {}\n",
    "celery_guardrails/policy/rate.py": """\
from typing import NamedTuple

MOST = 3
UNTOLD = 7
SIZES = {"box": 1}


class Load(NamedTuple):
    boxes: int = 0


def is_too_many(number, most=MOST):
    return number > most
""",
    # who imports a constant by its name keeps it: it must be imported anew as well
    "celery_guardrails/desk.py": "from .policy.rate import MOST, SIZES\n\nroom = MOST\nbox = SIZES.get('box')\n",
    "tests/__init__.py": "",
    "tests/unit/__init__.py": "",
    "tests/unit/test_rate.py": """\
from celery_guardrails import desk
from celery_guardrails.policy import rate


def test_a_lorry_takes_three_boxes_and_is_empty_at_first():
    assert desk.room == 3
    assert desk.box == 1
    assert rate.Load() == (0,)
    assert rate.is_too_many(4)
    assert not rate.is_too_many(3)
""",
}


def verdicts(root: Path) -> dict[str, str]:
    """Run the tool on the tree; mutant → verdict."""
    for name, text in TREE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(ROOT / "tests" / "mutation", root / "tests" / "mutation", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--jobs", "1", "--json", "results.json", "policy/rate.py"],
        cwd=root,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (root / "results.json").exists(), done.stdout + done.stderr
    results = json.loads((root / "results.json").read_text())
    return {f"{each['mutant']['before']} → {each['mutant']['after']}": each["verdict"] for each in results}


def test_what_stands_outside_functions_is_seen_by_the_tests_as_the_mutant_has_it(tmp_path):
    found = verdicts(tmp_path)
    survived = {name for name, verdict in found.items() if verdict != "killed"}
    assert survived == {"7 → 8", "7 → 6"}
    assert {"3 → 4", "3 → 2", "0 → 1", "'box' → 'XXbox'", "number > most → number >= most"} <= found.keys()
