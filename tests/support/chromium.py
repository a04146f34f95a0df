"""A headless Chromium that looks at pages, and a server in this process that it gets them from."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Chromium", "find_chromium", "live_server"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Seconds until a page must be there; busy machines are slow.
_PATIENCE = 90


def find_chromium() -> str:
    """Return the path of a Chromium, or skip the test."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    return found


@contextmanager
def live_server() -> Iterator[str]:
    """Serve the configured Django, with its static files, from a thread that shares the database in memory; yields the URL."""
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.db import connections
    from django.test.testcases import LiveServerThread

    connection = connections["default"]
    connection.inc_thread_sharing()
    server: Any = LiveServerThread("127.0.0.1", StaticFilesHandler, connections_override={connection.alias: connection})
    server.daemon = True
    server.start()
    server.is_ready.wait()
    try:
        if server.error:
            raise server.error
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.terminate()
        connection.dec_thread_sharing()


class Chromium:
    """Looks at one page at a time, each time with a new profile.

    Args:
        home: directory for its profile.
        dark: what the system says it likes.
        width: of the window in pixels; a phone's is 360 or more.
        height: likewise.
    """

    def __init__(self, home: Path, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        self._home = home
        # a window of Chromium's is at least 500 pixels wide: a narrow page is looked at in a frame
        self._options = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--virtual-time-budget=4000"),
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width},{height}",
        ]

    def _run(self, *arguments: str) -> str:
        command = [find_chromium(), *self._options, f"--user-data-dir={self._home}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def dom(self, url: str) -> str:
        """Return the document of a page after its scripts have run."""
        return self._run("--dump-dom", url)

    def picture(self, url: str, path: Path) -> None:
        """Write a picture of a page."""
        self._run(f"--screenshot={path}", url)
        assert path.is_file()

    def said(self, url: str, *names: str) -> dict[str, str]:
        """Return attributes ``data-NAME`` that a script of a page has set on its body."""
        dom = self.dom(url)
        found = {name: re.search(rf'<body[^>]* data-{name}="([^"]*)"', dom) for name in names}
        assert all(found.values()), f"{names} are not all on {url}: {dom[:2000]}"
        return {name: html.unescape(match[1]) for name, match in found.items() if match}
