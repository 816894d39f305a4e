"""Runs the scripts of launch/ as a user would, in this Python's environment, on one device."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def run_script(
    name: str, *arguments: str, timeout: float | None = None
) -> subprocess.CompletedProcess:
    """Runs launch/NAME with arguments; `timeout` is in seconds."""
    return subprocess.run(
        [f"launch/{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "FLAMINGO_VENV": sys.prefix, "XLA_FLAGS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
