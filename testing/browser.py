"""Chromium for tests of pages. It comes from the system's packages (`apt install chromium`).

`make browser` requires it; `make test` skips these tests without it.
"""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# Chromium's sandbox does not start in containers. It opens only our own pages.
ARGUMENTS = ["--no-sandbox"]
PHONE = {"width": 360, "height": 740}
HAS_NO_SIDE_SCROLL = "document.documentElement.scrollWidth <= window.innerWidth"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: apt install chromium, or set CHROMIUM"
)


def picture(folder: Path, name: str) -> Path:
    """The path of a screenshot: in the folder SCREENSHOTS, or in the test's folder."""
    return Path(os.environ.get("SCREENSHOTS", folder)) / f"{name}.png"
