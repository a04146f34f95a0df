"""The pools that a test runs on: prefork whenever it runs, the others in the long runs only."""

from __future__ import annotations

import pytest

#: Those whose bodies run in the worker's main process.
IN_MAIN = tuple(pytest.param(pool, marks=pytest.mark.chaos) for pool in ("threads", "gevent", "solo"))
ANY = ("prefork", *IN_MAIN)
