"""Tests that fork their own process or count its threads: ``tests/integration/test_alone.py`` gives each module an interpreter of its own.

A process that has run other tests has their threads. A lock that one of these holds at a fork is never given back in the child, and one
that ends while a task is watched hides what the task leaves.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("GUARDRAILS_TEST_ALONE") == "1" else ["test_*.py"]
