"""Every page of the admin in a headless Chromium: it fits the window of a desk and of a phone, and no text of a message runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chromium import Chromium, live_server
from tests.support.office import Office, admin_tables
from tests.support.scenes import Scenes, furnish, url_of

pytest.importorskip("django", reason="pip install 'celery-guardrails[django]'")
pytestmark = pytest.mark.chaos

EVIL = '</pre></textarea></title><script>window.evil = 1; top.evil = 1</script><img src=x onerror="window.evil = 1">'
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def scenes() -> Iterator[tuple[str, Scenes]]:
    with admin_tables(), pytest.MonkeyPatch.context() as patch:
        pages = furnish(Office(patch), evil=EVIL)
        with live_server() as base:
            yield base, pages


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_page_fits_the_window_and_runs_no_text_of_a_message(scenes: tuple[str, Scenes], tmp_path: Path, width: int) -> None:
    base, pages = scenes
    chromium = Chromium(tmp_path, width=max(width, 500))
    for name, scene in pages.items():
        seen = chromium.said(base + url_of(scene, width=width, height=900), "width", "over", "evil", "title")
        assert "Django site admin" in seen["title"], (name, seen)
        assert seen["evil"] == "undefined", name
        assert not seen["over"], (name, seen)
        # the list of letters and the audit trail are Django's own pages
        assert int(seen["width"]) <= width or name in ("letters", "trail"), (name, seen)
