"""launch/demo.sh: when a stage with an export is skipped, and when train decides.

The programs are a stub that writes down its command. tests/e2e/test_demo.py runs the real ones.
"""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

STAGES = ["contrastive", "language_model", "flamingo"]
# An interpreter that runs programs of standard input, and makes an export where train would.
PYTHON = f"""#!/usr/bin/env bash
if [ "$1" = - ]; then exec {sys.executable} -I -S "$@"; fi
for word in "$@"; do
  case "$word" in
    --workdir=*) echo "${{word##*/}}" >>"$COMMANDS"; mkdir -p "${{word#*=}}/export" ;;
  esac
done
"""


@pytest.fixture
def demo(tmp_path):
    """Runs the demo; returns its status, the stages that train was called for, and what it said."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    commands = tmp_path / "commands"
    variables = {**os.environ, "FLAMINGO_VENV": str(tmp_path / "venv"), "COMMANDS": str(commands)}

    def run(*options):
        commands.write_text("")
        done = subprocess.run(
            [ROOT / "launch" / "demo.sh", f"--output={tmp_path / 'demo'}", *options],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, commands.read_text().split(), done.stderr

    return run


def test_what_is_done_is_skipped(demo):
    assert demo("--config.steps=3")[:2] == (0, STAGES)
    assert demo("--config.steps=3")[:2] == (0, [])


def test_other_options_are_refused(demo):
    demo("--config.steps=3")
    status, called, said = demo("--config.steps=4")
    assert (status, called) == (1, []) and "with other options (size=demo seed=1 --con" in said


@pytest.mark.parametrize("change", ["no options", "another config", "an older version"])
def test_train_decides_about_an_export_of_which_the_config_is_not_known(demo, tmp_path, change):
    demo()
    options = tmp_path / "demo" / "options"
    line, config = options.read_text().splitlines()
    assert config.startswith("config ")
    if change == "no options":
        options.unlink()
    else:
        options.write_text(f"{line}\n" + ("config 1 2\n" if change == "another config" else ""))
    assert demo()[:2] == (0, STAGES)
    assert demo()[:2] == (0, [])
