"""Takes the pictures of the admin in docs/images, in a headless Chromium: python -m benchmarks.admin_pictures [DIRECTORY] [NAME …]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.chromium import Chromium, live_server
from tests.support.office import Office, migrated
from tests.support.scenes import furnish, url_of

#: Picture: page, dark, width and height of the window.
PICTURES = {
    "admin-groups": ("groups", False, 1280, 560),
    "admin-dark": ("letter", True, 1280, 900),
    "admin-letter": ("letter", False, 1280, 900),
    "admin-confirm": ("confirm-replay", False, 1280, 560),
    "admin-edit": ("edit-confirm", False, 1280, 400),
    "admin-canary": ("canary", False, 1280, 560),
    "admin-phone": ("groups", False, 500, 900),
}


def main(directory: Path, names: list[str]) -> None:
    """Take pictures.

    Args:
        directory: for the files.
        names: of the pictures; none for all.
    """
    migrated()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        scenes = furnish(Office(patch))
        with live_server() as base:
            for name in names or PICTURES:
                page, dark, width, height = PICTURES[name]
                chromium = Chromium(Path(home), dark=dark, width=width, height=height)
                chromium.picture(base + url_of(scenes[page], width=width, height=height), directory / f"{name}.png")
                print(directory / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"), sys.argv[2:])
