"""The pytest plug-in: the fixture ``guardrails_harness``. Imports nothing but pytest until a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing.harness import Harness

__all__ = ["guardrails_harness"]


@pytest.fixture
def guardrails_harness() -> Iterator[Harness]:
    """Runs guarded tasks in process, on a memory broker and store with a fake clock (docs/testing.md).

    It has taken the current Celery app over, if that one has guardrails; ``guardrails_harness.use(app)`` takes another.
    """
    from .testing.harness import Harness

    harness = Harness()
    harness.use_current_app()
    yield harness
    harness.close()
