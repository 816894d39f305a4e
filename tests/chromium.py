"""Headless Chromium for tests: a screenshot of a page, and its DOM after loading.

Pages are files: no server is reached.
"""

import pathlib
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-dev-shm-usage", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


def screenshot(
    page: pathlib.Path, tmp_path: pathlib.Path, *, width: int, height: int
) -> np.ndarray:
    """Draws a page; returns uint8[height, width, 3]."""
    file = tmp_path / "screenshot.png"
    _run(
        page,
        tmp_path,
        f"--screenshot={file}",
        f"--window-size={width},{height}",
        "--force-device-scale-factor=1",
    )
    return np.asarray(PIL.Image.open(file).convert("RGB"))


def dump_dom(page: pathlib.Path, tmp_path: pathlib.Path) -> str:
    """Returns the HTML of a page after it was loaded and its scripts ran."""
    return _run(page, tmp_path, "--dump-dom")


def program() -> str:
    """Returns the path of Chromium; skips the test where it is not installed."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if not found:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return found


def _run(page: pathlib.Path, tmp_path: pathlib.Path, *arguments: str) -> str:
    command = [
        program(),
        *OPTIONS,
        f"--user-data-dir={tmp_path / 'profile'}",
        *arguments,
        page.as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
