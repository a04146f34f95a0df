"""Python loads this at its start where the directory is on the path: this process's clock is wrong by so many seconds."""

import os
import time

_right, _skew = time.time, float(os.environ["GUARDRAILS_TEST_SKEW"])
time.time = lambda: _right() + _skew
