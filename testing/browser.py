"""Chromium for the tests of pages: which one, how large, and when there is none.

It comes from the system's packages (`apt install chromium`); `make browser` insists on it,
`make test` says when it is missing.
"""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# Chromium's own sandbox does not start in containers; it sees our pages only.
ARGUMENTS = ["--no-sandbox"]
PHONE = {"width": 360, "height": 740}
HAS_NO_SIDE_SCROLL = "document.documentElement.scrollWidth <= window.innerWidth"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt install chromium, or name one in CHROMIUM"
)


def picture(folder: Path, name: str) -> Path:
    """Where a picture for people goes: SCREENSHOTS, or the test's own folder."""
    return Path(os.environ.get("SCREENSHOTS", folder)) / f"{name}.png"
